"""The verb `train`: build the parts, check that they fit, train, test, and say what was made."""

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything

from src.callbacks.checkpoint import RequiredMetric, arrange, check_logged
from src.callbacks.pruning import Pruning
from src.callbacks.run_state import RunState
from src.config.instantiate import blamed_on, instantiate, instantiate_each
from src.errors import DivergedError
from src.run.checkpoints import read_start, take_weights
from src.run.checks import (
    check_limits,
    check_parts,
    check_run_wide,
    expect_prompts,
    follow_data,
    follow_files,
    leave_out_classes,
)
from src.run.commands import is_sweep, search_of_run, typed_overrides
from src.run.loggers import check_wandb
from src.run.provenance import record_diff
from src.run.recorded import describe, name_run, recorded
from src.run.resume import Past, go_on_after_requeue, resume_from
from src.run.run_record import RunRecord, as_recorded
from src.run.signals import StopRequest, stop_on_signals
from src.run.slurm import TIME_IS_UP, requeue
from src.run.study import RunningTrial
from src.run.summary import print_summary, record_config
from src.run.trainer import point_out_gpu
from src.run.trust import warn_of_strangers


def train(config: DictConfig) -> float | None:
    """Trains what `config` composes (see configs/train.yaml), then tests it.

    Returns:
        The value of `optimized_metric`, or None where that is null.

    Raises:
        UserError: the configuration cannot be run; one sentence says what to type instead.
        SystemExit: a signal stopped the run, and it was saved; the code is 128 + the signal's number.
    """
    # A configuration composed by hand may still hold Hydra's own part, which the run does not need.
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    if (metrics := go_on_after_requeue(config)) is not None:
        return metrics.get(config.optimized_metric)
    check_run_wide(config)
    check_wandb(config)
    seed_everything(config.seed, verbose=False)
    datamodule = instantiate(config, "datamodule")
    follow_data(config, datamodule)
    follow_files(config)
    leave_out_classes(config, datamodule)
    model = instantiate(config, "model")
    callbacks = list(instantiate_each(config, "callbacks"))
    arrange(callbacks, Path(config.trainer.default_root_dir))
    trainer = instantiate(config, "trainer", callbacks=callbacks)
    check_parts(model, datamodule, trainer)
    point_out_gpu(trainer, typed_overrides())
    warn_of_strangers(config)
    start = read_start(config) if config.init_from else None
    past = resume_from(config, model) if config.ckpt_path else Past()

    with blamed_on("datamodule", folder="data_dir"):
        datamodule.prepare_data()  # before the loggers: a run on other data than asked for carries that in its name
        datamodule.setup("fit")
    check_limits(trainer, datamodule, config.test_after_training)
    expect_prompts(model, datamodule)
    if start is not None:
        take_weights(start, model, getattr(datamodule, "class_names", ()), config.init_from)
    name_run(config, datamodule, trainer)
    about = describe(config, model, datamodule, past)
    record_config(config, Path(trainer.default_root_dir))
    record_diff(Path(trainer.default_root_dir))
    trainer.callbacks[:0] = [*required_metrics(config), *pruning(config), RunState(about, past)]
    with stop_on_signals(trainer) as stop, recorded(config, trainer, about, past, stop) as record:
        record.metrics = fit_and_test(config, trainer, model, datamodule, past, record, stop)

    print_summary(config, trainer, record.metrics, past)
    if stop.signum == TIME_IS_UP and record.exit_code and (not trainer.is_global_zero or requeue()):
        return None  # the job has not failed, whichever of its processes ends first
    if record.exit_code:
        raise SystemExit(record.exit_code)
    if not config.optimized_metric:
        return None
    found = record.metrics[config.optimized_metric]
    if is_sweep() and not math.isfinite(found):  # infinity might be taken for the best
        raise DivergedError(f"optimized_metric={config.optimized_metric} is {found}, which is not a result")
    return found


def fit_and_test(
    config: DictConfig,
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    past: Past,
    record: RunRecord,
    stop: StopRequest,
) -> dict[str, float]:
    """Trains and, with `test_after_training`, tests the best checkpoint, else the last.

    Args:
        past: what the run goes on from.
        record: what was logged so far; a resumed run need not come to a validation of its own.
        stop: whether a signal asked to stop.

    Returns:
        The final metrics.
    """
    trainer.fit(model, datamodule=datamodule, ckpt_path=past.checkpoint, weights_only=True)
    if stop.is_made(trainer):  # it came during the last moments of training
        raise SystemExit
    metrics: dict[str, Any] = {
        name: value for name, value in record.values.items() if name.startswith("val/") and value is not None
    }
    metrics |= trainer.callback_metrics
    validated: bool = trainer.strategy.broadcast(any(name.startswith("val/") for name in metrics))
    if trainer.enable_validation and not validated:
        # It ended before its first validation, by `max_steps` for instance. The first process decides: it alone knows
        # what a resumed run has logged.
        trainer.validate(model, datamodule=datamodule, verbose=False)
        metrics |= trainer.callback_metrics
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    record.pruned = any(isinstance(callback, Pruning) and callback.pruned for callback in callbacks)
    if config.test_after_training and not record.pruned:
        checkpoints = trainer.checkpoint_callback
        best = getattr(checkpoints, "best_model_path", None) or getattr(checkpoints, "last_model_path", None)
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        metrics |= trainer.callback_metrics
    if config.optimized_metric:
        check_logged(metrics, "optimized_metric", config.optimized_metric)
    return {name: as_recorded(value) for name, value in metrics.items()}  # stopped in its test, it has no others


def required_metrics(config: DictConfig) -> list[RequiredMetric]:
    """A guard for each metric that decides something in a run: those that callbacks monitor, and `optimized_metric`."""
    monitors = {f"callbacks.{name}.monitor": each.get("monitor") for name, each in config.callbacks.items() if each}
    keys: dict[str, list[str]] = {}
    for key, metric in ({"optimized_metric": config.optimized_metric} | monitors).items():
        keys.setdefault(metric, []).append(key)
    return [RequiredMetric(their_keys, metric) for metric, their_keys in keys.items() if metric]


def pruning(config: DictConfig) -> list[Pruning]:
    """What ends the run early where it is a trial of a search, and others are better by a metric of validation."""
    search, metric = search_of_run(), config.optimized_metric
    if search is None or not metric.startswith("val/"):
        return []
    return [Pruning(metric, RunningTrial(search, config.work_dir))]
