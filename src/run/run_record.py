"""What a run leaves in its folder for whoever opens it later: `run.json`, `metrics.jsonl` and `diff.patch`."""

import json
import math
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.provenance import ROOT

FORMAT = 1
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pillow", "wandb")


class RunRecord(Logger):
    """Keeps a run in its folder, whatever other loggers there are, so that it can be judged from the folder alone.

    `run.json` says what the run is, and is written when it begins and again when it ends. `metrics.jsonl` has a line
    for each call of `log_metrics`, `log_table` and `log_alarm`, written at once: a killed run keeps what it had.

    Args:
        folder: the run folder.
        about: what stands in `run.json`, plain values.
        history: lines of `metrics.jsonl` that come first, of the run that is being resumed.

    Attributes:
        values: the last one of each metric.
        extremes: the least and the greatest.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], history: Sequence[str] = ()) -> None:
        super().__init__()
        self.folder = folder
        self.about = {"format": FORMAT, "status": "running", **about, "seconds": None}
        self.values: dict[str, float | None] = {}
        self.extremes: dict[str, tuple[float, float]] = {}
        self._begun = time.perf_counter()
        self._metrics_file = folder / "metrics.jsonl"
        self._epoch = 0
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)
            for row in map(json.loads, history):
                self._remember(row)
                self._epoch = row["epoch"]
                self._begun = min(self._begun, time.perf_counter() - row["seconds"])
            partial = folder / ".metrics.jsonl.partial"  # in the same folder, a kill must not lose what was there
            partial.write_text("".join(history), encoding="utf-8")
            os.replace(partial, self._metrics_file)
            self._write_about()

    name = None
    version = None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in `run.json` already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds scalars; what is not finite becomes null."""
        values = {name: _finite(value) for name, value in metrics.items()}
        self._epoch = int(values.pop("epoch", self._epoch) or 0)
        self._add(step, values)

    @rank_zero_only
    def log_table(self, name: str, rows: Sequence[Sequence[int]], step: int) -> None:
        """Adds a table of counts."""
        self._add(step, {name: [list(row) for row in rows]})

    @rank_zero_only
    def log_alarm(self, text: str, step: int) -> None:
        """Adds a sentence."""
        self._add(step, {"alarm": text})

    def best(self) -> dict[str, dict[str, float]]:
        """The best and the last validation by each metric that has a better end, as W&B's summary has them."""
        found = {}
        for i, (which, names) in enumerate([("min", LOWER_IS_BETTER), ("max", HIGHER_IS_BETTER)]):
            for name in (f"val/{name}" for name in names if f"val/{name}" in self.extremes):
                last = self.values[name]
                found[name] = {which: self.extremes[name][i], "last": math.nan if last is None else last}
        return found

    def end(self, status: str, seconds: float | None) -> None:
        """Writes into `run.json` how the run ended, and the seconds that the whole command took."""
        self.about |= {"status": status, "seconds": seconds}
        self._write_about()

    def _add(self, step: int | None, values: dict[str, Any]) -> None:
        seconds = round(time.perf_counter() - self._begun, 2)
        self._remember(values)
        line = json.dumps({"step": step, "epoch": self._epoch, "seconds": seconds, **values})
        with open(self._metrics_file, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _remember(self, values: Mapping[str, Any]) -> None:
        self.values |= {name: value for name, value in values.items() if not isinstance(value, (list, str))}
        for name, value in values.items():
            if isinstance(value, float):
                least, greatest = self.extremes.get(name, (value, value))
                self.extremes[name] = min(least, value), max(greatest, value)

    @rank_zero_only
    def _write_about(self) -> None:
        (self.folder / "run.json").write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")


def log_table(trainer: Trainer, name: str, counts: Tensor) -> None:
    """Hands a table of counts [R, C] to the loggers that keep tables."""
    for logger in trainer.loggers:
        if isinstance(logger, RunRecord):
            logger.log_table(name, counts.tolist(), step_of(trainer))


def log_alarm(trainer: Trainer, text: str) -> None:
    """Keeps a sentence that warns of the run's images."""
    for logger in trainer.loggers:
        if isinstance(logger, RunRecord):
            logger.log_alarm(text, step_of(trainer))


def step_of(trainer: Trainer) -> int:
    """Where Lightning puts metrics of this moment: batches are numbered from 0, and a test comes after the last."""
    return trainer.global_step if trainer.testing else max(trainer.global_step - 1, 0)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@rank_zero_only
def record_diff(folder: Path) -> None:
    """Keeps what is not committed as `diff.patch`, for the commit alone would not say what ran."""
    try:
        command = ["git", "diff", "HEAD", "--", "run.py", "src", "configs"]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or the project was downloaded without its history
        return
    if done.stdout:
        (folder / "diff.patch").write_bytes(done.stdout)


def _finite(value: Any) -> float | None:
    number = as_recorded(value)
    return number if math.isfinite(number) else None


def as_recorded(value: Any) -> float:
    """A metric in every file of a run: with as many digits as a float32 has."""
    return float(f"{float(value):.7g}")
