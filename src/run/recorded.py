"""The part of a run that its files and loggers record, with an honest end whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        logged: the last value of each metric, those before a resume included.
        metrics: the final ones; empty where the run did not finish.
        exit_code: 0, 1 (it failed), or 128 + the number of the signal that stopped it.
    """

    logged: dict[str, float | None]
    metrics: dict[str, float] = field(default_factory=dict)
    exit_code: int = 1


@contextmanager
def recorded(
    config: DictConfig, trainer: Trainer, about: dict[str, Any], past: Past, stop: StopRequest
) -> Iterator[Outcome]:
    """For the block, the trainer logs to the run folder and to the loggers of `config`, which are told how it ended.

    A signal that `stop` names ends the block without an error; `about` is what `run.json` says of the run.
    """
    run_dir = Path(trainer.default_root_dir)
    record = RunRecord(run_dir, about, take_over(past, run_dir) or ())
    outcome = Outcome(record.values)
    loggers: list[Logger] = []
    try:
        for logger in instantiate_each(config, "logger"):
            loggers.append(logger)
            go_on(logger, past, run_dir)
            logger.log_hyperparams(
                about["config"] | {key: about[key] for key in ("command", "commit", "machine", "data")}
            )
        trainer.loggers = [*loggers, record]
        yield outcome
        record.write_results(outcome.metrics, seconds_so_far(run_dir, past.seconds))
        outcome.exit_code = 0
    except (SystemExit, KeyboardInterrupt):
        if stop.signum is None:
            raise
        outcome.exit_code = 128 + stop.signum
    finally:
        status = {0: "finished", 1: "failed"}.get(outcome.exit_code, "stopped")
        best = record.best() if past.checkpoint else {}
        finish(trainer, loggers, status, outcome.exit_code, outcome.metrics, best)
        record.set_status(status, seconds_so_far(run_dir, past.seconds))
