"""A run folder, read without trust: it may be somebody else's, half-written, damaged or hostile.

`run.json` and `metrics.jsonl` (see `src/run/run_record.py`) say what there is to know; the rest is pictures and a diff.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

FORMAT = 1  # of run.json
# More than any run writes. Whatever is beyond is left out, and the page says so.
RUN_BYTES = 1_000_000
METRICS_BYTES = 50_000_000
DIFF_BYTES = 200_000
TEXT = 10_000  # letters
DEPTH = 50  # of values within values
N_CURVES = 500
N_CLASSES = 1_000
LARGEST = 1e39  # numbers of training, in single precision, are below
# Letters that would not be shown, or would turn the text around them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

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
    """The data set of a run."""

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
    status: Literal["running", "finished", "failed", "stopped", "unknown"] = "unknown"  # a killed run stays `running`
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


@dataclass
class Curve:
    """One metric over a run, in the order of steps; a value that was not a finite number is NaN."""

    steps: np.ndarray  # float64 [N], batches from 0
    epochs: np.ndarray  # float64 [N], from 0
    values: np.ndarray  # float64 [N]


@dataclass
class Table:
    """Counts [N, N], such as a confusion matrix, and the epoch that they belong to."""

    counts: list[list[int]]
    epoch: int


@dataclass
class Run:
    """What a run folder says. Its texts have at most `TEXT` letters; whoever shows them must escape them."""

    folder: Path
    about: About = field(default_factory=About)
    metrics: dict[str, float] = field(default_factory=dict)  # the last value of each, where that is a finite number
    curves: dict[str, Curve] = field(default_factory=dict)  # by metric; those of the test have one point
    tables: dict[str, Table] = field(default_factory=dict)  # the last of each kind
    last_alarm: str = ""  # what the run warned of last
    last_logged: float | None = None  # seconds from its start
    grids: dict[int, Path] = field(default_factory=dict)  # samples by epoch
    raw_grids: dict[int, Path] = field(default_factory=dict)  # the same without the moving average of the weights
    real: Path | None = None  # a picture of real images
    interpolations: dict[int, Path] = field(default_factory=dict)  # from class to class, by epoch
    diff: str = ""  # what was not committed
    missing: list[str] = field(default_factory=list)  # what a run folder has and this one lacks
    damaged: list[str] = field(default_factory=list)  # what is there and cannot be used, or not as a whole

    @property
    def name(self) -> str:
        return self.about.name or clean(self.folder.resolve().name) or "run"

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration's values by their dotted keys; a list is one value."""
        return _flatten(self.about.config)

    @property
    def seed(self) -> int | None:
        """Seed of weights, noise and data order."""
        seed = self.about.config.get("seed")
        return seed if type(seed) is int else None

    @property
    def epochs(self) -> int:
        """How many epochs it has completed, as far as can be seen."""

        def last(split: str) -> int:
            found = [np.fmax.reduce(c.epochs, initial=-1) for name, c in self.curves.items() if name.startswith(split)]
            return int(max(found, default=-1))

        # The last epoch of a run that still trains, or was stopped in training, is not complete.
        trained = last("train/") + (self.about.status == "finished")
        return max(trained, last("val/") + 1, max(self.grids, default=-1) + 1, 0)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run."""
    return (folder / "run.json").is_file()


def read_run(folder: Path) -> Run:
    """Reads the folder of a run as far as it goes.

    Checkpoints are not opened, links that lead out of the folder are not followed, nothing is looked up elsewhere.
    """
    run = Run(folder)
    run.about = _read_about(run)
    _read_metrics(run)
    run.grids = _pictures(run, "samples/epoch_*.png")
    run.raw_grids = _pictures(run, "samples/raw_*.png")
    run.interpolations = _pictures(run, "pictures/interpolation/epoch_*.png")
    run.real = _find(run, "pictures/real_imgs.png")
    run.diff = clean(_read(run, "diff.patch", DIFF_BYTES).decode("utf-8", errors="replace"), DIFF_BYTES)
    parts = {"metrics.jsonl": run.curves, "samples/epoch_*.png": run.grids, "pictures/real_imgs.png": run.real}
    run.missing = [name for name, part in parts.items() if not part]
    return run


def clean(text: str, limit: int = TEXT) -> str:
    """A text that can be shown: at most `limit` letters, none that hides or turns others."""
    return UNSEEN.sub("\ufffd", text if len(text) <= limit else text[:limit] + "…")


def number(value: Any) -> float | None:
    """A number that training in single precision calls finite, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:  # nor NaN
        return None
    return float(value)


def _find(run: Run, name: str) -> Path | None:
    """A regular file that lies in the run folder; None: there is none, such as a pipe or a link out of the folder."""
    path = run.folder / name
    try:
        real = path.resolve(strict=True)
        usable = real.is_file()
    except (OSError, RuntimeError):  # it is not there, or links go round in a circle
        return None
    if usable and not real.is_relative_to(run.folder.resolve()):
        run.damaged.append(f"{name} is a link that leads out of the run folder, and was not followed")
        return None
    return path if usable else None


def _read(run: Run, name: str, n_bytes: int) -> bytes:
    """The first `n_bytes` of a file; nothing where it is not there or cannot be read."""
    path = _find(run, name)
    if path is None:
        return b""
    try:
        with open(path, "rb") as file:
            raw = file.read(n_bytes + 1)
    except OSError as error:
        run.damaged.append(f"{name} cannot be read ({error.strerror})")
        return b""
    if len(raw) > n_bytes:
        run.damaged.append(f"{name} is larger than {n_bytes / 1e6:g} MB: the rest was not read")
    return raw[:n_bytes]


def _pictures(run: Run, pattern: str) -> dict[int, Path]:
    """Pictures by epoch, which is the number at the end of their names."""
    found = {}
    for path in run.folder.glob(pattern):
        digits = re.search(r"_(\d{1,9})\.png$", path.name, re.ASCII)
        if digits and _find(run, str(path.relative_to(run.folder))):
            found[int(digits[1])] = path
    return dict(sorted(found.items()))


def _read_about(run: Run) -> About:
    try:
        about = _shown(_parse(_read(run, "run.json", RUN_BYTES)))
    except ValueError:
        about = None
    if not isinstance(about, dict):
        run.damaged.append("run.json is cut short or not JSON")
        return About()
    if about.get("format") != FORMAT:
        run.damaged.append(
            f"run.json has the format {clean(str(about.get('format')), 20)}, but this version reads {FORMAT}: what it"
            " understands is shown"
        )
    try:
        return About.model_validate(about)
    except ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors()}
        run.damaged.append(f"run.json has values that cannot be used: {', '.join(sorted(wrong))}")
        return About.model_validate({name: value for name, value in about.items() if name not in wrong})


def _read_metrics(run: Run) -> None:
    points: dict[str, list[tuple[float, float | None, float | None]]] = {}
    *lines, rest = _read(run, "metrics.jsonl", METRICS_BYTES).split(b"\n")
    n_bad = 0
    for line in filter(bytes.strip, [*lines, rest]):
        row = _parse(line)
        step = number(row.pop("step", None)) if isinstance(row, dict) else None
        if step is None:
            n_bad += line is not rest
            continue
        epoch, seconds = (number(row.pop(name, None)) for name in ("epoch", "seconds"))
        run.last_logged = max(filter(None, (run.last_logged, seconds)), default=None)
        for name, value in row.items():
            if name == "alarm" and isinstance(value, str):
                run.last_alarm = clean(value)
            elif isinstance(value, list) and _is_table(value):
                run.tables[clean(name)] = Table(value, int(epoch or 0))
            elif (value is None or number(value) is not None) and (name in points or len(points) < N_CURVES):
                points.setdefault(name, []).append((step, epoch, number(value)))
    if n_bad:
        run.damaged.append(f"{n_bad} line{'s' if n_bad > 1 else ''} of metrics.jsonl cannot be read")
    if rest.strip() and _parse(rest) is None:
        run.damaged.append("the last line of metrics.jsonl is cut short: the run was killed, or goes on")
    for name, rows in sorted(points.items()):
        table = np.array(rows, dtype=np.float64)  # None becomes NaN
        table = table[np.argsort(table[:, 0], kind="stable")]
        # What was logged again at a step, as a resumed run does, replaces what was there.
        table = table[np.append(np.diff(table[:, 0]) > 0, True)]
        run.curves[clean(name)] = Curve(*table.T)
        if np.isfinite(table[-1, 2]):
            run.metrics[clean(name)] = float(table[-1, 2])


def _parse(raw: bytes) -> Any:
    """JSON, with null in place of NaN and infinity; None: it is not JSON."""
    try:
        return json.loads(raw.decode("utf-8", errors="replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _shown(value: Any, depth: int = 0) -> Any:
    """JSON with texts that can be shown, and null in place of numbers that are not finite.

    Raises:
        ValueError: it is too deep.
    """
    if depth > DEPTH:
        raise ValueError("it is too deep")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _shown(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each, depth + 1) for each in value]
    return value if isinstance(value, bool) or number(value) is not None else None


def _is_table(rows: list[Any]) -> bool:
    """Whether it is a square table of counts."""
    n = len(rows)

    def is_row(row: Any) -> bool:
        return isinstance(row, list) and len(row) == n and all(type(each) is int and 0 <= each < 2**53 for each in row)

    return 0 < n <= N_CLASSES and all(map(is_row, rows))


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
