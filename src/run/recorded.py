"""What a run is called, what its files and loggers record of it, and how it ended, whatever happens."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.explain import telling
from src.config.instantiate import instantiate_each
from src.config.text import escaped
from src.datamodules.image_datamodule import ImageDataModule
from src.run.commands import is_sweep, search_of_run, typed_overrides
from src.run.loggers import LONGEST_TAG
from src.run.provenance import provenance
from src.run.resume import Past, go_on, point_out_other_data, take_over
from src.run.run_record import RunRecord
from src.run.signals import StopRequest
from src.run.slurm import job_id
from src.run.summary import seconds_so_far
from src.run.sweep import swept

log = logging.getLogger(__name__)


def name_run(config: DictConfig, datamodule: LightningDataModule, trainer: Trainer) -> None:
    """Writes into the configuration what the run is called, which data it really uses, and in which precision."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    experiment = str(choices.get("experiment") or choices.get("model") or "train").removesuffix(".yaml")
    source = getattr(datamodule, "source", type(datamodule).__name__)
    typed = typed_overrides()
    # What sets a run apart from others of its experiment, as far as it fits into a name.
    named = ("model.", "datamodule.", "model/", "+model.")
    changes = {
        each.removeprefix("model.").removeprefix("datamodule."): each.partition("=")[0] in swept()
        for each in typed
        if each.startswith(named)
    }
    name = "-".join([experiment, source, *changes])[:80]
    # Runs that differ in their seed alone are of one group, and so are all runs of a sweep.
    group = "-".join([experiment, source, *(change for change, differs in changes.items() if not differs)])[:80]
    if {*swept()} - {"seed"}:
        group += f"-sweep-{Path(HydraConfig.get().sweep.dir).name}"
    with open_dict(config):
        config.data_source = escaped(source)
        if isinstance(datamodule, ImageDataModule) and "in_memory" in config.datamodule:
            config.datamodule.in_memory = datamodule.in_memory  # auto is another on another machine
        config.trainer.precision = trainer.precision
        search = search_of_run()
        config.group = escaped(config.group or (search.study if search else group))
        of_sweep = [f"trial{search.trial}" if search else f"job{HydraConfig.get().job.num}"] if is_sweep() else []
        config.name = escaped(config.name or "-".join([name, f"seed{config.seed}", *of_sweep]))
        config.tags = [escaped(tag) for tag in dict.fromkeys([*config.tags, source[:LONGEST_TAG]])]
        config.notes = escaped(config.notes or " ".join(typed)) or None


def describe(config: DictConfig, model: LightningModule, datamodule: LightningDataModule, past: Past) -> dict[str, Any]:
    """What `run.json` says of a run: its name, what was typed, on which data it trains, and how to show its metrics."""
    data: dict[str, Any] = {"source": config.data_source}
    if isinstance(datamodule, ImageDataModule):
        data |= {
            "classes": list(datamodule.class_names),
            "sha256": datamodule.sha256(),
            **{split: len(datamodule.sets[split]) for split in ("train", "val", "test")},
            "img_size": datamodule.img_size,
            "channels": datamodule.channels,
            **({} if datamodule.in_memory else {"in_memory": False}),
        }
        point_out_other_data(past, data)
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pillow", "wandb")
    resumed = {"checkpoint": str(past.checkpoint), "batch": past.batch, "folders": list(past.folders)}
    return {
        "name": config.name,
        "started": past.started,
        "slurm_job": job_id(),
        "resumed_from": resumed if past.checkpoint else None,
        "overrides": typed_overrides(),
        **provenance(),
        "versions": {package: version(package) for package in packages},
        "data": data,
        "curves": getattr(model, "curves", []),
        "tables": getattr(model, "tables", {}),
        "config": OmegaConf.to_container(config, resolve=True),
    }


@contextmanager
def recorded(
    config: DictConfig, trainer: Trainer, about: dict[str, Any], past: Past, stop: StopRequest
) -> Iterator[RunRecord]:
    """For the block, the trainer logs to the run folder and to the loggers of `config`, which are told how it ended.

    A signal that `stop` names ends the block without an error; `about` is what `run.json` says of the run. At the end,
    callbacks and loggers with a `finish_run(trainer, status, metrics)` are called; the status is `finished`, `failed`,
    after a signal `stopped`, or `pruned` by a search.
    """
    run_dir = Path(trainer.default_root_dir)
    record = RunRecord(run_dir, about, take_over(past, run_dir) or ())
    loggers: list[Logger] = []
    try:
        for logger in instantiate_each(config, "logger"):
            loggers.append(logger)
            go_on(logger, past, run_dir)
            logger.log_hyperparams(
                about["config"] | {key: about[key] for key in ("command", "commit", "machine", "data")}
            )
        trainer.loggers = [*loggers, record]
        yield record
        record.write_results(seconds_so_far(run_dir, past.seconds))
        record.exit_code = 0
    except (SystemExit, KeyboardInterrupt):
        if stop.signum is None:
            raise
        record.exit_code = 128 + stop.signum
    finally:
        ended = "pruned" if record.pruned else "finished"
        status = {0: ended, 1: "failed"}.get(record.exit_code, "stopped")
        for part in [*trainer.callbacks, *loggers] if rank_zero_only.rank == 0 else ():  # type: ignore[attr-defined]
            try:
                if hasattr(part, "finish_run"):
                    part.finish_run(trainer, status, record.metrics)
            except Exception as error:  # a server is gone, for instance: the run is over, and its files are kept
                log.warning("%s could not add what the run ends with: %s", type(part).__name__, telling(str(error)))
        for logger in loggers if rank_zero_only.rank == 0 else ():  # type: ignore[attr-defined]
            if isinstance(logger, WandbLogger):  # Lightning ends the others
                if past.checkpoint:  # W&B forgets the best of a run that is stopped and resumed
                    logger.experiment.summary.update(record.best())
                if record.pruned:
                    logger.experiment.tags = (*(logger.experiment.tags or ()), "pruned")
                logger.experiment.finish(exit_code=record.exit_code)
        record.set_status(status, seconds_so_far(run_dir, past.seconds))
