"""The verb `train`: build the parts, check that they fit, train, test, and say what was made."""

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch.nn.modules.batchnorm import _BatchNorm

from src.callbacks.checkpoint import RequiredMetric, arrange, check_logged
from src.callbacks.run_state import RunState
from src.config.instantiate import blamed_on, instantiate, instantiate_each
from src.config.text import escaped
from src.datamodules.image_datamodule import ImageDataModule
from src.errors import DivergedError, UserError
from src.models.image_model import ImageModel
from src.run.checksum import splits_sha256
from src.run.commands import is_sweep, typed_overrides
from src.run.follow_data import follow_data
from src.run.init_from import read_start, take_weights
from src.run.loggers import LONGEST_TAG, check_wandb, finish
from src.run.provenance import origin_of_run, record_diff, versions
from src.run.resume import Past, go_on, resume_from, take_over
from src.run.run_record import RunRecord, as_recorded
from src.run.signals import StopRequest, stop_on_signals
from src.run.summary import (
    print_summary,
    record_config,
    record_results,
    seconds_so_far,
)
from src.run.trainer import point_out_gpu
from src.run.trust import trusted_packages, warn_of_strangers

NAMED = ("model.", "datamodule.", "model/", "+model.")  # overrides that a run's name shows


def train(config: DictConfig) -> float | None:
    """Trains what `config` composes (see configs/train.yaml), then tests it.

    Returns:
        The value of `optimized_metric`, or None where that is null.

    Raises:
        UserError: the configuration cannot be run; one sentence says what to type instead.
        SystemExit: a signal stopped the run, and it was saved; the code is 128 + the signal's number.
    """
    # A configuration composed by hand may still hold Hydra's own part, which is no part of the run.
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check_run_wide(config)
    check_wandb(config)
    seed_everything(config.seed, verbose=False)
    datamodule = instantiate(config, "datamodule")
    follow_data(config, datamodule)
    model = instantiate(config, "model")
    callbacks = list(instantiate_each(config, "callbacks"))
    arrange([each for each in callbacks if isinstance(each, ModelCheckpoint)], Path(config.trainer.default_root_dir))
    trainer = instantiate(config, "trainer", callbacks=callbacks)
    check_parts(model, datamodule, trainer)
    point_out_gpu(trainer, typed_overrides())
    warn_of_strangers(config)
    start = read_start(config) if config.init_from else None
    past = resume_from(config, model) if config.ckpt_path else Past()

    with blamed_on("datamodule", folder="data_dir"):
        datamodule.prepare_data()  # before the loggers: a run on other data than asked for carries that in its name
        datamodule.setup("fit")
    if start is not None:
        take_weights(start, model, getattr(datamodule, "class_names", ()), config.init_from)
    name_run(config, datamodule)
    run_dir = Path(trainer.default_root_dir)
    record_config(config, run_dir)
    origin = origin_of_run()
    record_diff(run_dir)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    about = describe(config, plain, model, datamodule, origin, past)
    seconds = partial(seconds_so_far, run_dir, past.seconds)
    trainer.callbacks.insert(0, RunState(about, [*past.folders, str(run_dir.resolve())], seconds))
    monitors = {f"callbacks.{name}.monitor": each.get("monitor") for name, each in config.callbacks.items() if each}
    for key, metric in [("optimized_metric", config.optimized_metric), *monitors.items()]:
        if metric:
            trainer.callbacks.insert(0, RequiredMetric(key, metric))
    record = RunRecord(run_dir, about, take_over(past, run_dir) or ())
    loggers: list[Logger] = []
    metrics: dict[str, float] = {}
    exit_code = 1
    with stop_on_signals(trainer) as stop:
        try:
            for logger in instantiate_each(config, "logger"):
                loggers.append(logger)
                go_on(logger, past, run_dir)
                logger.log_hyperparams(plain | {key: about[key] for key in ("command", "commit", "machine", "data")})
            trainer.loggers = [*loggers, record]
            metrics = fit_and_test(config, trainer, model, datamodule, past, record.values, stop)
            record_results(config, run_dir, origin, metrics, seconds())
            exit_code = 0
        except (SystemExit, KeyboardInterrupt):
            if stop.signum is None:
                raise
            exit_code = 128 + stop.signum
        finally:
            status = {0: "finished", 1: "failed"}.get(exit_code, "stopped")
            finish(trainer, loggers, status, exit_code, metrics, record.best() if past.checkpoint else {})
            record.end(status, seconds())

    print_summary(config, trainer, metrics, past)
    if exit_code:
        raise SystemExit(exit_code)
    if not config.optimized_metric:
        return None
    found = float(metrics[config.optimized_metric])
    if is_sweep() and not math.isfinite(found):  # infinity might be taken for the best
        raise DivergedError(f"optimized_metric={config.optimized_metric} is {found}, which is not a result")
    return found


def fit_and_test(
    config: DictConfig,
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    past: Past,
    logged: Mapping[str, float | None],
    stop: StopRequest,
) -> dict[str, float]:
    """Trains and, with `test_after_training`, tests the best checkpoint, else the last.

    Args:
        past: what it goes on from.
        logged: the last value of each metric; a resumed run need not come to a validation of its own.

    Returns:
        The final metrics.
    """
    trainer.fit(model, datamodule=datamodule, ckpt_path=past.checkpoint, weights_only=True)
    if stop.is_made(trainer):  # it came during the last moments of training
        raise SystemExit
    metrics: dict[str, Any] = {
        name: value for name, value in logged.items() if name.startswith("val/") and value is not None
    }
    metrics |= trainer.callback_metrics
    if trainer.enable_validation and not any(name.startswith("val/") for name in metrics):
        # It ended before its first validation, by `max_steps` for instance.
        trainer.validate(model, datamodule=datamodule, verbose=False)
        metrics |= trainer.callback_metrics
    if config.test_after_training:
        checkpoints = trainer.checkpoint_callback
        best = getattr(checkpoints, "best_model_path", None) or getattr(checkpoints, "last_model_path", None)
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        metrics |= trainer.callback_metrics
    if config.optimized_metric:
        check_logged(metrics, "optimized_metric", config.optimized_metric)
    return {name: as_recorded(value) for name, value in metrics.items()}  # stopped in its test, it has no others


def check_run_wide(config: DictConfig) -> None:
    """Refuses values that no part will look at; tags that nobody chose are those of `WANDB_TAGS`.

    Raises:
        UserError: names the key.
    """
    trusted_packages(config)
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    if "WANDB_TAGS" in os.environ:
        os.environ["WANDB_TAGS"] = ",".join(tags)  # wandb reads it, too, and refuses a comma at its end
    if not config.tags:
        config.tags = tags
    metric = config.optimized_metric
    if metric is None and is_sweep() and "basic_sweeper" not in HydraConfig.get().sweeper._target_:
        raise UserError("optimized_metric is null, but the sweeper needs a number: set optimized_metric=val/fd")
    if metric and metric.startswith("test/") and not config.test_after_training:
        raise UserError(f"optimized_metric={metric} needs test_after_training=true")


def check_parts(model: LightningModule, datamodule: LightningDataModule, trainer: Trainer) -> None:
    """Refuses parts that do not fit each other, before the first batch.

    Raises:
        UserError: names both keys.
    """
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
        last = torch.tensor([datamodule.n_classes - 1])
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
    batch_size = getattr(datamodule, "batch_size", None)
    if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError("datamodule.batch_size is 1, but the model has BatchNorm, which needs 2 images or more: use 64")
    if trainer.world_size > 1 and is_sweep():
        raise UserError(
            "a sweep runs one process a job, because each further process would repeat the whole sweep: use"
            " trainer.gpus=1 or 0 and trainer.devices=1, or start the jobs one by one"
        )


def describe(
    config: DictConfig,
    plain: dict[str, Any],
    model: LightningModule,
    datamodule: LightningDataModule,
    origin: dict[str, str],
    past: Past,
) -> dict[str, Any]:
    """What `run.json` says of a run: its name, what was typed, on which data it trains, and how to show its metrics."""
    data: dict[str, Any] = {"source": config.data_source}
    if isinstance(datamodule, ImageDataModule):
        sets = datamodule.sets | {"train": datamodule.whole_train}
        data |= {
            "classes": list(datamodule.class_names),
            "sha256": splits_sha256(sets),
            **{split: len(datamodule.sets[split]) for split in ("train", "val", "test")},
            "img_size": datamodule.img_size,
            "channels": datamodule.channels,
        }
    return {
        "name": config.name,
        "started": past.started,
        "resumed_from": past.origin,
        "command": origin["command"],
        "overrides": typed_overrides(),
        "commit": origin["commit"],
        "machine": origin["machine"],
        "versions": versions(),
        "data": data,
        "curves": getattr(model, "curves", []),
        "tables": getattr(model, "tables", {}),
        "config": plain,
    }


def name_run(config: DictConfig, datamodule: LightningDataModule) -> None:
    """Writes into the configuration what the run is called and which data it really uses."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    experiment = str(choices.get("experiment") or choices.get("model") or "train").removesuffix(".yaml")
    source = getattr(datamodule, "source", type(datamodule).__name__)
    typed = typed_overrides()
    # What sets a run apart from others of its experiment, as far as it fits into a name.
    changes = [each.removeprefix("model.").removeprefix("datamodule.") for each in typed if each.startswith(NAMED)]
    group = "-".join([experiment, source, *changes])[:80]
    with open_dict(config):
        config.data_source = escaped(source)
        config.group = escaped(config.group or group)
        numbers = [f"seed{config.seed}"] + ([f"job{HydraConfig.get().job.num}"] if is_sweep() else [])
        config.name = escaped(config.name or "-".join([group, *numbers]))
        config.tags = [escaped(tag) for tag in dict.fromkeys([*config.tags, source[:LONGEST_TAG]])]
        config.notes = escaped(config.notes or " ".join(typed)) or None
