"""What a run leaves in its folder for whoever opens it later: `run.json` and `metrics.jsonl`."""

import json
import math
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from src.run.files import replacing
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER


class RunRecord(Logger):
    """Keeps a run in its folder, whatever other loggers there are, so that it can be judged from the folder alone.

    `run.json` says what the run is (`about`, plain values), and is written when it begins and again when it ends.
    `metrics.jsonl` has a line for each call of `log_metrics` and `add`, written at once: a killed run keeps what it
    had. It begins with `history`, the rows of the run that is being resumed. `values` has the last of each metric.
    """

    name = None
    version = None

    def __init__(self, folder: Path, about: Mapping[str, Any], history: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.folder = folder
        self.about = {"format": 1, "status": "running", **about, "seconds": None}
        self.values: dict[str, float | None] = {}
        self.metrics: dict[str, float] = {}  # the final ones; empty where the run does not finish
        self.exit_code = 1  # 0: it finished; 128 + the number of the signal that stopped it; 1: it failed
        self.pruned = False  # whether a search ended it early
        self._begun = time.perf_counter()
        self._metrics_file = folder / "metrics.jsonl"
        self._epoch = 0
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)
            lines = []
            for row in history:
                lines.append(json.dumps(row) + "\n")
                self.values |= {name: value for name, value in row.items() if not isinstance(value, (list, str))}
                self._epoch = row["epoch"]
                self._begun = min(self._begun, time.perf_counter() - row["seconds"])
            with replacing(self._metrics_file) as partial:  # resumed in the same folder, a kill loses nothing
                partial.write_text("".join(lines), encoding="utf-8")
            self.set_status("running")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: they are in `run.json`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds scalars; those that are not finite become null."""
        values = {name: as_recorded(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._epoch = int(values.pop("epoch", self._epoch) or 0)
        self.values |= values
        self.add(values, step)

    @rank_zero_only
    def add(self, values: Mapping[str, Any], step: int | None) -> None:
        """Adds plain values: scalars, tables of counts, sentences."""
        seconds = round(time.perf_counter() - self._begun, 2)
        line = json.dumps({"step": step, "epoch": self._epoch, "seconds": seconds, **values})
        with open(self._metrics_file, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def best(self) -> dict[str, dict[str, float]]:
        """The best and the last validation by each metric that has a better end, as W&B's summary has them."""
        rows = list(read_rows(self._metrics_file)) if self._metrics_file.exists() else []  # not on another machine
        found = {}
        for which, choose, names in [("min", min, LOWER_IS_BETTER), ("max", max, HIGHER_IS_BETTER)]:
            for name in (f"val/{name}" for name in names):
                values = [row[name] for row in rows if name in row]
                if finite := [value for value in values if value is not None]:
                    found[name] = {which: choose(finite), "last": math.nan if values[-1] is None else values[-1]}
        return found

    @rank_zero_only
    def write_results(self, seconds: float | None) -> None:
        """Writes `results.json`: the final metrics but training's, and their origin."""
        record = {
            **{key: self.about[key] for key in ("name", "command", "commit", "machine")},
            "versions": ", ".join(f"{name} {version}" for name, version in self.about["versions"].items()),
            "seconds": seconds,
            "metrics": {name: value for name, value in sorted(self.metrics.items()) if not name.startswith("train/")},
        }
        (self.folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @rank_zero_only
    def set_status(self, status: str, seconds: float | None = None) -> None:
        """Writes `run.json`: what the run is, how it ended, and the seconds that the whole command took."""
        self.about |= {"status": status, "seconds": seconds}
        with replacing(self.folder / "run.json") as partial:  # other processes may read it
            partial.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without those that a kill or a full disk has cut short."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def log_record(trainer: Trainer, name: str, value: list[Any] | str) -> None:
    """Adds a table or a sentence, which other loggers do not keep, to the run's record."""
    for logger in trainer.loggers:
        if isinstance(logger, RunRecord):
            logger.add({name: value}, step_of(trainer))


def step_of(trainer: Trainer) -> int:
    """Where Lightning puts metrics of this moment: batches are numbered from 0, and a test comes after the last."""
    return trainer.global_step if trainer.testing else max(trainer.global_step - 1, 0)


def as_recorded(value: Any) -> float:
    """A metric in every file of a run: with as many digits as a float32 has."""
    return float(f"{float(value):.7g}")
