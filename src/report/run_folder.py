"""A run folder, read without trust: it may be somebody else's, half-written, damaged or hostile.

`run.json` and `metrics.jsonl` (see `src/run/run_record.py`) say what there is to know; the rest is pictures and a diff.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

# More than any run writes. Whatever is beyond is left out, and the page says so.
TEXT = 10_000  # letters
N_CLASSES = 1_000
# How a model draws, against which a run measures what that makes of its images.
OPTIONS = {"by_guidance": "guidance", "by_steps": "steps"}
MEASURED = ("fd", "label_accuracy", "precision", "recall")
# Letters that would not be shown, or would turn the text around them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

NUMBER = (int, float)  # as types, without bool
Word = Annotated[str, Field(max_length=500)]


class Panel(BaseModel, strict=True):
    """Curves that share their axes; `ImageModel.curves` explains each value."""

    title: Word
    unit: Word
    lines: dict[Word, Word] = Field(min_length=1, max_length=20)
    note: Word = ""
    levels: dict[Word, float] = Field(default={}, max_length=20)
    log: bool = False
    percent: bool = False
    compare: bool = False


class TableTexts(BaseModel, strict=True):
    """What stands around a table of counts; `ImageModel.tables` explains each value."""

    title: Word
    rows: Word
    columns: Word
    names: list[Word]
    note: Word = ""


class Data(BaseModel, strict=True):
    source: Word = ""
    sha256: Word = ""
    classes: list[Word] = Field(default=[], max_length=N_CLASSES)
    train: int | None = None
    val: int | None = None
    test: int | None = None
    img_size: int | None = None
    channels: int | None = None


class About(BaseModel, strict=True):
    """What `run.json` says. A value that is missing or cannot be used is the default."""

    name: Word = ""
    # A killed run stays `running`.
    status: Literal["running", "finished", "pruned", "failed", "stopped", "unknown"] = "unknown"
    command: str = ""
    overrides: list[str] = Field(default=[], max_length=1_000)
    commit: Word = ""  # ends with `+changes` where not everything was committed
    machine: Word = ""
    versions: dict[Word, Word] = Field(default={}, max_length=100)
    started: Word = ""  # ISO 8601 and UTC
    seconds: float | None = None  # of the whole command; None: it has not ended
    data: Data = Data()
    curves: list[Panel] = Field(default=[], max_length=50)
    tables: dict[Word, TableTexts] = Field(default={}, max_length=50)
    config: dict[str, Any] = {}


class Curve(NamedTuple):
    """One metric over a run, in the order of steps; a value that was not a finite number is NaN."""

    steps: np.ndarray  # float64 [N], batches from 0
    epochs: np.ndarray  # float64 [N], from 0
    values: np.ndarray  # float64 [N]


class Run:
    """A run folder, read as far as it goes. Its texts have at most `TEXT` letters; whoever shows them must escape them.

    Checkpoints are not opened, links that lead out of the folder are not followed, nothing is looked up elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []  # what is there and cannot be used, or not as a whole
        self.about = self._read_about()
        self.name = self.about.name or clean(folder.resolve().name) or "run"
        status = self.about.status
        self.status = {"running": "running or killed", "unknown": "end unknown"}.get(status, status)
        seed = self.about.config.get("seed")
        self.seed = seed if type(seed) is int else None
        self.flat = dict(flatten(self.about.config))  # values by their dotted keys; a list is one value
        self.metrics: dict[str, float] = {}  # the last value of each, where that is a finite number
        self.curves: dict[str, Curve] = {}  # by metric; those of the test have one point
        self.against: dict[
            str, tuple[np.ndarray, np.ndarray]
        ] = {}  # an option, and as `guidance/fd` what it makes of it
        self.tables: dict[str, tuple[list[list[int]], int]] = {}  # last counts [N, N], with their epoch
        self.last_alarm = ""  # what the run warned of last
        self.passed_over = set[Any]()  # steps of validations whose images were copies: none became the best
        self.last_logged: float | None = None  # seconds from its start
        self._read_metrics()
        self.grids = self._pictures("samples/epoch_*.png")
        self.raw_grids = self._pictures("samples/raw_*.png")  # without the moving average of the weights
        self.prompt_grids = self._pictures("pictures/prompt_imgs/epoch_*.png")  # one row a prompt
        self.interpolations = self._pictures("pictures/interpolation/epoch_*.png")  # from class to class
        self.real = self._find("pictures/real_imgs.png")
        self.diff = UNSEEN.sub("\ufffd", self._read("diff.patch", 200_000).decode("utf-8", errors="replace"))
        parts = {"metrics.jsonl": self.curves, "samples/epoch_*.png": self.grids, "pictures/real_imgs.png": self.real}
        self.missing = [name for name, part in parts.items() if not part]
        # How many epochs it has completed, as far as can be seen.
        self.epochs = max([0, *(epoch + 1 for epoch in self.grids)])
        for name, curve in self.curves.items():
            # The last epoch of a run that still trains, or was stopped in training, is not complete.
            last = name.startswith("val/") or status == "finished"
            if name.startswith(("train/", "val/")):
                self.epochs = max(self.epochs, int(np.fmax.reduce(curve.epochs, initial=-1)) + last)

    def n_measured(self, split: str | None) -> int | None:
        """How many images were generated to measure quality; None where that is not known."""
        counts, _ = self.tables.get(f"{split}/label_confusion", ([], 0))
        return sum(map(sum, counts)) or None

    def _find(self, name: str) -> Path | None:
        """A regular file that lies in the run folder; None: there is none, such as a pipe or a link out of it."""
        path = self.folder / name
        if not os.path.isfile(path):
            return None
        if not path.resolve().is_relative_to(self.folder.resolve()):
            self.damaged.append(f"{name} is a link that leads out of the run folder, and was not followed")
            return None
        return path

    def _read(self, name: str, n_bytes: int) -> bytes:
        """The first `n_bytes` of a file; nothing where it is not there or cannot be read."""
        raw = b""
        try:
            if path := self._find(name):
                with open(path, "rb") as file:
                    raw = file.read(n_bytes + 1)
        except OSError as error:
            self.damaged.append(f"{name} cannot be read ({error.strerror})")
        if len(raw) > n_bytes:
            self.damaged.append(f"{name} is larger than {n_bytes / 1e6:g} MB: the rest was not read")
        return raw[:n_bytes]

    def _read_about(self) -> About:
        about = parse(self._read("run.json", 1_000_000))
        if not isinstance(about, dict):
            self.damaged.append("run.json is cut short or not JSON")
            about = {"format": 1}
        if about.get("format") != 1:
            self.damaged.append(
                f"run.json has the format {clean(str(about.get('format')), 20)}, but this version reads 1: what it"
                " understands is shown"
            )
        try:
            return About.model_validate(about)
        except ValidationError as error:
            wrong = {str(each["loc"][0]) for each in error.errors()}
            self.damaged.append(f"run.json has values that cannot be used: {', '.join(sorted(wrong))}")
            return About.model_validate({name: value for name, value in about.items() if name not in wrong})

    def _pictures(self, pattern: str) -> dict[int, Path]:
        """Pictures by epoch, which is the number at the end of their names."""
        found = {}
        for path in self.folder.glob(pattern):
            digits = re.search(r"_(\d{1,9})\.png$", path.name, re.ASCII)
            if digits and self._find(str(path.relative_to(self.folder))):
                found[int(digits[1])] = path
        return dict(sorted(found.items()))

    def _read_metrics(self) -> None:
        points: dict[str, list[tuple[Any, ...]]] = {}  # step, epoch, value
        *lines, rest = self._read("metrics.jsonl", 50_000_000).split(b"\n")
        n_bad = 0
        for line in filter(bytes.strip, [*lines, rest]):
            row = parse(line)
            step = row.pop("step", None) if isinstance(row, dict) else None
            if type(step) not in NUMBER:
                n_bad += line is not rest
                continue
            epoch, seconds = (x if type(x := row.pop(name, None)) in NUMBER else None for name in ("epoch", "seconds"))
            self.last_logged = max(filter(None, (self.last_logged, seconds)), default=None)
            for name, value in row.items():
                if name == "alarm" and isinstance(value, str):
                    self.last_alarm = value
                elif name == "passed_over" and isinstance(value, str):
                    self.passed_over.add(step)
                elif name in OPTIONS and isinstance(value, list):
                    self._read_against(OPTIONS[name], value[:100])
                elif isinstance(value, list):
                    fits = 0 < len(value) <= N_CLASSES and all(type(x) is list and len(x) == len(value) for x in value)
                    if fits and all(type(n) is int and 0 <= n < 2**53 for counts in value for n in counts):
                        self.tables[name] = value, int(epoch or 0)
                elif (value is None or type(value) in NUMBER) and (name in points or len(points) < 500):
                    points.setdefault(name, []).append((step, epoch, value))
        if n_bad:
            self.damaged.append(f"{n_bad} line{'s' if n_bad > 1 else ''} of metrics.jsonl cannot be read")
        if rest.strip() and parse(rest) is None:
            self.damaged.append("the last line of metrics.jsonl is cut short: the run was killed, or goes on")
        for name, rows in sorted(points.items()):
            table = np.array(rows, dtype=np.float64)  # None becomes NaN
            table = table[np.argsort(table[:, 0], kind="stable")]
            # What was logged again at a step, as a resumed run does, replaces what was there.
            table = table[np.append(np.diff(table[:, 0]) > 0, True)]
            self.curves[name] = Curve(*table.T)
            if np.isfinite(table[-1, 2]):
                self.metrics[name] = float(table[-1, 2])

    def _read_against(self, option: str, rows: list[Any]) -> None:
        """What was measured for each value of an option."""
        for name in ("seconds", *(f"{metric}{end}" for metric in MEASURED for end in ("", "_floor"))):
            pairs = [(row.get(option), row.get(name)) for row in rows if isinstance(row, dict)]
            points = sorted({x: y for x, y in pairs if type(x) in NUMBER and type(y) in NUMBER}.items())
            if points:
                x, y = np.array(points, dtype=np.float64).T
                self.against[f"{option}/{name}"] = x, y


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run."""
    return (folder / "run.json").is_file()


def clean(text: str, limit: int = TEXT) -> str:
    """A text that can be shown: at most `limit` letters, none that hides or turns others."""
    return UNSEEN.sub("\ufffd", text if len(text) <= limit else text[:limit] + "…")


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse(raw: bytes) -> Any:
    """JSON with texts that can be shown, and null in place of numbers that are not finite; None: it cannot be used."""

    def shown(value: Any, depth: int) -> Any:
        if depth > 50:
            raise ValueError("it is too deep")
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, dict):
            return {clean(key): shown(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [shown(each, depth + 1) for each in value]
        # Numbers of training, in single precision, are below.
        return None if type(value) in NUMBER and not abs(value) < 1e39 else value

    try:
        return shown(json.loads(raw.decode("utf-8", errors="replace")), 0)
    except (ValueError, RecursionError):
        return None
