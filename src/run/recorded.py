"""The part of a run that its files and loggers record, with an honest end whatever happens."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.explain import telling
from src.config.instantiate import instantiate_each
from src.run.resume import Past, go_on, take_over
from src.run.run_record import RunRecord
from src.run.signals import StopRequest
from src.run.summary import seconds_so_far

log = logging.getLogger(__name__)


@contextmanager
def recorded(
    config: DictConfig, trainer: Trainer, about: dict[str, Any], past: Past, stop: StopRequest
) -> Iterator[RunRecord]:
    """For the block, the trainer logs to the run folder and to the loggers of `config`, which are told how it ended.

    A signal that `stop` names ends the block without an error; `about` is what `run.json` says of the run. At the end,
    callbacks and loggers with a `finish_run(trainer, status, metrics)` are called; the status is `finished`, `failed`
    or, after a signal, `stopped`.
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
        status = {0: "finished", 1: "failed"}.get(record.exit_code, "stopped")
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
                logger.experiment.finish(exit_code=record.exit_code)
        record.set_status(status, seconds_so_far(run_dir, past.seconds))
