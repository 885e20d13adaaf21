"""The part of a run that its files and loggers record, with an honest end whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from src.config.instantiate import instantiate_each
from src.run.loggers import finish
from src.run.resume import Past, go_on, take_over
from src.run.run_record import RunRecord
from src.run.signals import StopRequest
from src.run.summary import seconds_so_far


@contextmanager
def recorded(
    config: DictConfig, trainer: Trainer, about: dict[str, Any], past: Past, stop: StopRequest
) -> Iterator[RunRecord]:
    """For the block, the trainer logs to the run folder and to the loggers of `config`, which are told how it ended.

    A signal that `stop` names ends the block without an error; `about` is what `run.json` says of the run.
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
        best = record.best() if past.checkpoint else {}
        finish(trainer, loggers, status, record.exit_code, record.metrics, best)
        record.set_status(status, seconds_so_far(run_dir, past.seconds))
