"""What no part can check by itself before the first batch: run-wide keys, and whether the parts fit each other."""

import logging
import math
import os
from contextlib import suppress
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from src.config.text import escaped
from src.datamodules.image_datamodule import ImageDataModule
from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.scheduled_model import ScheduledModel
from src.run.commands import is_sweep
from src.run.ranks import is_first
from src.run.trust import trusted_packages

log = logging.getLogger(__name__)

READS_NO_TEXT = (
    "datamodule.captions is {!r}, but the model reads no text: type datamodule.captions=null to train it on classes, or"
    " model=flow_model model/condition=captions"
)


def check_run_wide(config: DictConfig) -> None:
    """Refuses values that no part will look at; tags that nobody chose are those of `WANDB_TAGS`."""
    trusted_packages(config)
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    if "WANDB_TAGS" in os.environ:
        os.environ["WANDB_TAGS"] = ",".join(tags)  # wandb reads it, too, and refuses a comma at its end
    if not config.tags:
        config.tags = tags
    if config.study is not None:  # a search has taken it
        raise UserError(f"study={config.study} needs a search: add hparams_search=mnist_gan_optuna, or leave it out")
    metric = config.optimized_metric
    if metric and metric.startswith("test/") and not config.test_after_training:
        raise UserError(f"optimized_metric={metric} needs test_after_training=true")


def follow_data(config: DictConfig, datamodule: LightningDataModule) -> None:
    """Sets what the model has to know of the data, such as `model.n_classes`, where it is null.

    From then on the configuration, and with it the checkpoint, holds plain numbers: a verb builds the model from them.

    Raises:
        UserError: the data have captions and no classes, of which a model that reads no text cannot be built.
    """
    if isinstance(datamodule, ImageDataModule) and not datamodule.n_classes:
        kind = None
        with suppress(Exception):  # building the model says what is wrong with its _target_
            kind = hydra.utils.get_object(config.model._target_)
        if getattr(kind, "encode", None) is ImageModel.encode:
            raise UserError(READS_NO_TEXT.format(datamodule.captions))
    for key, name in {"n_classes": "n_classes", "channels": "channels", "prompts.names": "class_names"}.items():
        part, _, last = f"model.{key}".rpartition(".")
        if last in (OmegaConf.select(config, part) or ()) and OmegaConf.select(config, f"model.{key}") is None:
            OmegaConf.update(config, f"model.{key}", getattr(datamodule, name, None))


def follow_files(config: DictConfig) -> None:
    """Sets what the model has to know of files that it reads, such as their checksum, where it is null.

    Raises:
        UserError: they are not there, or cannot be used.
    """
    for part in (OmegaConf.select(config, "model.conditioner"), config.model):
        kind: Any = None
        with suppress(Exception):  # building the model says what is wrong with its _target_
            kind = hydra.utils.get_object(part._target_)
        for key, value in kind.follow_files(part).items() if hasattr(kind, "follow_files") else ():
            if key in ("encoder", "base") or part[key] is None:
                part[key] = escaped(value) if isinstance(value, str) else value


def expect_prompts(model: LightningModule, datamodule: LightningDataModule) -> None:
    """Lets the model look at the data, and get ready for the prompts and captions of the run."""
    if isinstance(model, ImageModel) and isinstance(datamodule, ImageDataModule):
        model.check_data(datamodule)
        model.expect(each.captions for each in datamodule.sets.values() if each.captions is not None)


def leave_out_classes(config: DictConfig, datamodule: LightningDataModule) -> None:
    """Where the data have no classes: leaves out callbacks with `needs_classes`, and chooses the best by `val/loss`."""
    if getattr(datamodule, "n_classes", None) != 0:
        return
    left_out = []
    for name, part in config.callbacks.items():
        with suppress(Exception):  # building it says what is wrong with its _target_
            if part is not None and getattr(hydra.utils.get_object(part._target_), "needs_classes", False):
                config.callbacks[name] = None
                left_out.append(f"callbacks.{name}")
    by_loss = [part for part in config.callbacks.values() if part is not None and part.get("monitor") == "val/fd"]
    for part in by_loss:
        part.monitor = "val/loss"
    chosen = ", and val/loss chooses the best checkpoint" if by_loss else ""
    if is_first() and left_out:
        log.info("the data have no classes: %s are left out%s", ", ".join(left_out), chosen)


def check_parts(model: LightningModule, datamodule: LightningDataModule, trainer: Trainer) -> None:
    """Refuses parts that do not fit each other, and names both keys."""
    found, hints = [], []
    for name in ("img_size", "channels", "n_classes"):
        ours, theirs = getattr(model, name, None), getattr(datamodule, name, None)
        if ours != theirs and None not in (ours, theirs):
            found.append(f"model.{name} is {ours}, but datamodule.{name} is {theirs}")
            follows = "datamodule.img_size alone, which model.img_size follows"
            hints.append(follows if name == "img_size" else f"model.{name}={theirs}")
    if found:
        raise UserError(f"{', and '.join(found)}: set {' '.join(hints)}")
    if isinstance(model, ImageModel) and isinstance(datamodule, ImageDataModule):
        check_text(model, datamodule)
        if model.images_at_once is None:  # else it would take long
            check_drawing(model, datamodule)
    batch_size = getattr(datamodule, "batch_size", None)
    if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError("datamodule.batch_size is 1, but the model has BatchNorm, which needs 2 images or more: use 64")
    if getattr(trainer, "cuda_graph", False) is True and not isinstance(model, ScheduledModel):
        raise UserError(
            f"trainer.cuda_graph is true, but {type(model).__name__} makes none of its steps: set"
            " trainer.cuda_graph=false"
        )
    if trainer.world_size > 1 and is_sweep():
        raise UserError(
            "a sweep runs one process a job, because each further process would repeat the whole sweep: use"
            " trainer.gpus=1 or 0 and trainer.devices=1, or start the jobs one by one"
        )


def check_limits(trainer: Trainer, datamodule: LightningDataModule, tests: bool) -> None:
    """Refuses a share of the batches that is less than one of them, which Lightning finds when it comes to them.

    Args:
        trainer: has the limits.
        datamodule: is set up.
        tests: whether there will be a test.
    """
    if not isinstance(datamodule, ImageDataModule):
        return
    for split in ("train", "val", *(["test"] if tests else [])):
        limit = getattr(trainer, f"limit_{split}_batches")
        images = (datamodule.epoch_length if split == "train" else None) or len(datamodule.sets[split])
        size = datamodule.batch_size if split == "train" else datamodule.eval_batch_size
        images = math.ceil(images / trainer.world_size)
        batches = max(1, images // size) if split == "train" else math.ceil(images / size)
        if isinstance(limit, float) and limit > 0 and int(limit * batches) == 0:
            overfits = trainer.overfit_batches and split != "test"  # type: ignore[attr-defined]
            key = "trainer.overfit_batches" if overfits else f"trainer.limit_{split}_batches"
            what = {"train": "training", "val": "validation", "test": "test"}[split]
            batch = "the only batch" if batches == 1 else f"one of the {batches} batches"
            raise UserError(f"{key}={limit} is less than {batch} of the {what}: set {key}=1 for one batch")


def check_drawing(model: ImageModel, datamodule: ImageDataModule) -> None:
    """Refuses a model that does not draw images of every class and of the data's size."""
    last = torch.tensor([datamodule.n_classes - 1])
    if model.condition_shape:
        last = torch.zeros(1, *model.condition_shape, dtype=torch.int64)
    try:
        images = model.generate(last, torch.Generator().manual_seed(0))
    except IndexError as error:
        raise UserError(
            f"model.generator knows no class {int(last)}, but the datamodule has {datamodule.n_classes}: set"
            " model.n_classes alone, which the networks follow"
        ) from error
    drawn = list(images.shape[1:])
    served = [datamodule.channels, datamodule.img_size, datamodule.img_size]
    if drawn != served:
        raise UserError(
            f"model.generator draws images of {drawn}, but the datamodule's are {served}: set datamodule.img_size"
            " alone, which the networks follow"
        )


def check_text(model: ImageModel, datamodule: ImageDataModule) -> None:
    """Refuses captions for a model of classes, and classes for a model of text that has no prompts for them."""
    if not model.condition_shape:
        if datamodule.captions is not None:
            raise UserError(READS_NO_TEXT.format(datamodule.captions))
        return
    prompts = getattr(model, "prompts", None)
    if datamodule.captions is None and prompts is not None and not prompts.templates:
        raise UserError(
            "model.prompts.templates is empty, as the model learns from captions, but the data have classes alone: type"
            " model/condition=text to make prompts of their names, or datamodule.captions=COLUMN"
        )
    if datamodule.n_classes and model.as_condition(torch.zeros(1, dtype=torch.int64)).dim() == 1:
        raise UserError(
            "model.prompts is null, but the data have classes, which a model of text needs prompts for: remove"
            " model.prompts=null"
        )
