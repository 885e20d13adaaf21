"""A run folder, read without trusting it: somebody else's, half-written, damaged, older or newer than this code."""

import itertools
import json
import math
import re
import shlex
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from src.errors import UserError

FORMAT = 1  # of run.json, as src/run/run_record.py writes it
STATUSES = ("running", "finished", "failed", "stopped")
# More than any run writes; what is beyond is left out, and said to be.
TEXT_BYTES = 8_000_000  # of run.json, results.json, .hydra/*.yaml
LINE_BYTES = 1_000_000  # of metrics.jsonl
N_POINTS = 2_000_000  # of all curves together
N_CURVES = 500
N_ALARMS = 1_000
N_VALUES = 20_000  # of a configuration
N_PICTURES = 10_000
N_CLASSES = 1_000
LARGEST = 1e39  # a number; those of training, in single precision, are below
WORD = 500  # letters of a name, a value of the configuration, ...
COMMAND = 10_000
# Letters that would not be shown, or would turn the text around them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass
class Curve:
    """One metric over a run, in the order of steps; a value that was not a finite number is NaN."""

    steps: np.ndarray  # float64 [N], batches from 0
    epochs: np.ndarray  # float64 [N], from 0
    seconds: np.ndarray  # float64 [N], since the run started
    values: np.ndarray  # float64 [N]


@dataclass
class Table:
    """Counts, such as a confusion matrix, and the epoch they are of."""

    counts: list[list[int]]
    epoch: int


@dataclass
class Run:
    """What a run folder says. Texts are of bounded length, and are to be escaped by whoever shows them.

    Attributes:
        folder: where it lies.
        name: the run's, else the folder's.
        status: one of `STATUSES`, or `unknown`. A run that was killed is `running` for ever.
        command: what was typed.
        overrides: what was typed behind `run.py`.
        commit: ends with `+changes` where the tree had some.
        machine: processor, cards, threads.
        versions: of packages.
        started: when, ISO 8601 and UTC.
        seconds: of the whole command; None: it has not ended, or is not known.
        data: `source`, `classes`, `sha256`, `train`, `val`, `test`, `img_size`, `channels`, as far as they are known.
        config: the composed configuration.
        metrics: the final ones by name, else the last there are.
        curves: by metric; those of the test have one point.
        tables: the last of each kind.
        alarms: what the run warned of, a sentence each.
        grids: sample grids by epoch.
        raw_grids: those of G without its average.
        real: a picture of real images.
        interpolations: from class to class, by epoch.
        diff: what was not committed.
        missing: what a run folder has and this one lacks.
        damaged: what is there and cannot be used, or not as a whole.
    """

    folder: Path
    name: str
    status: str = "unknown"
    command: str | None = None
    overrides: list[str] = field(default_factory=list)
    commit: str | None = None
    machine: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    started: str | None = None
    seconds: float | None = None
    data: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    grids: dict[int, Path] = field(default_factory=dict)
    raw_grids: dict[int, Path] = field(default_factory=dict)
    real: Path | None = None
    interpolations: dict[int, Path] = field(default_factory=dict)
    diff: str | None = None
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int | None:
        """What weights, noise and data order came from."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def epochs(self) -> int:
        """How many epochs it has completed, as far as can be seen."""

        def last(split: str) -> int:
            found = [c.epochs[~np.isnan(c.epochs)] for name, c in self.curves.items() if name.startswith(split)]
            return int(max((epochs.max() for epochs in found if len(epochs)), default=-1))

        # The last epoch of a run that trains, or was stopped while it did, is not complete.
        trained = last("train/") + (self.status == "finished")
        return max(trained, last("val/") + 1, max(self.grids, default=-1) + 1, 0)

    @property
    def of_older_version(self) -> bool:
        """Whether it was made before there was a run.json."""
        return "run.json" in self.missing


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run, or what is left of one."""
    names = ("run.json", "metrics.jsonl", "results.json", "config_tree.txt")
    try:
        if any((folder / name).is_file() for name in names) or any((folder / "samples").glob("epoch_*.png")):
            return True
        config = _Folder(folder).yaml(".hydra/config.yaml")
    except OSError:
        return False
    return isinstance(config, dict) and config.get("task") == "train"


def read_run(folder: str | Path) -> Run:
    """Reads a run folder. Checkpoints are not opened, links that lead out of the folder are not followed, and nothing
    is looked up elsewhere.

    Raises:
        UserError: it is no run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the folder of a run, such as logs/runs/<date>/<time>")
    if not is_run(folder):
        for below in ("/*", "/*/*", "/*/*/*"):
            if any(path.is_dir() and is_run(path) for path in folder.glob(below[1:])):
                raise UserError(f"{folder} holds runs, but is none itself: type runs='{folder}{below}'")
        raise UserError(
            f"{folder} is no run folder, as it has neither run.json nor results.json nor samples: name one such as"
            " logs/runs/<date>/<time>"
        )
    files = _Folder(folder)
    run = Run(folder, clean(folder.resolve().name) or "run", missing=files.missing, damaged=files.damaged)
    about, results = files.json("run.json"), files.json("results.json")
    _describe(run, about, results)
    if not run.config:
        run.config = _configuration(files)
    if not run.overrides:
        typed = files.yaml(".hydra/overrides.yaml")
        run.overrides = [clean(each) for each in typed if isinstance(each, str)] if isinstance(typed, list) else []
    if run.command is None and run.overrides:
        run.command = shlex.join(["python", "run.py", *run.overrides])
    if run.status == "unknown" and not about:
        if results:
            run.status = "finished"
        elif files.find("traceback.txt"):
            run.status = "failed"
    _read_metrics(run, files)
    last = {name: _last(curve.values) for name, curve in run.curves.items()}
    final = results.get("metrics") if results else None
    final = {clean(name): number(value) for name, value in final.items()} if isinstance(final, dict) else {}
    run.metrics = {
        name: value
        for name, value in sorted((last | final).items())
        if value is not None and name not in ("epoch", "step")
    }
    if not results and run.status in ("finished", "unknown"):
        files.missing.append("results.json")
    _find_pictures(run, files)
    patch = files.text("diff.patch")
    run.diff = clean(patch, 200_000) if patch else None
    return run


def clean(text: Any, limit: int = WORD) -> str:
    """A text that can be shown: of bounded length, without letters that hide or turn others; "" if it is no text."""
    if not isinstance(text, str):
        return ""
    shown = UNSEEN.sub("\ufffd", text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "…"


def number(value: Any) -> float | None:
    """A number that training in single precision calls finite, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) < LARGEST else None  # not for NaN


def _count(value: Any) -> float | None:
    """A number of batches or epochs, or None."""
    found = number(value)
    return found if found is not None and 0 <= found < 1e12 else None


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The configuration's values by their dotted keys; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


class _Folder:
    """A run folder's own files, and a list of what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path.resolve()
        self.missing: list[str] = []
        self.damaged: list[str] = []

    def find(self, name: str) -> Path | None:
        """A regular file; links that lead out of the folder are not followed."""
        path = self.path / name
        try:
            real = path.resolve(strict=True)
            usable = real.is_file()
        except (OSError, RuntimeError):  # it is not there, or links go round in a circle
            return None
        if usable and not real.is_relative_to(self.root):
            self.damaged.append(f"{name} is a link that leads out of the run folder, and was not followed")
            return None
        return path if usable else None

    def text(self, name: str) -> str | None:
        path = self.find(name)
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                raw = file.read(TEXT_BYTES + 1)
        except OSError as error:
            self.damaged.append(f"{name} cannot be read ({error.strerror})")
            return None
        if len(raw) > TEXT_BYTES:
            self.damaged.append(f"{name} is larger than {TEXT_BYTES // 1_000_000} MB, and was not read")
            return None
        return raw.decode("utf-8", errors="replace")

    def json(self, name: str) -> dict[str, Any]:
        """An object; empty where there is none."""
        text = self.text(name)
        if text is None:
            if name == "run.json":
                self.missing.append(name)
            return {}
        value = _parse(text)
        if not isinstance(value, dict):
            self.damaged.append(f"{name} is cut short or no JSON")
            return {}
        return value

    def yaml(self, name: str) -> Any:
        text = self.text(name)
        if text is None:
            return None
        try:
            return yaml.load(text, _PlainLoader)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            self.damaged.append(f"{name} is no YAML of plain values")
            return None

    def pictures(self, name: str, pattern: str) -> dict[int, Path]:
        """Pictures by epoch, whose names match `pattern`."""
        found = {}
        try:
            names = sorted(entry.name for entry in itertools.islice((self.path / name).iterdir(), N_PICTURES))
        except OSError:
            return {}
        for each in names:
            if match := re.fullmatch(pattern, each, re.ASCII):
                path = self.find(f"{name}/{each}")
                if path:
                    found[int(match[1])] = path
        return dict(sorted(found.items()))


class _PlainLoader(yaml.SafeLoader):
    """YAML without references, by which a small file can stand for a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references are not read")
        return super().compose_node(parent, index)


def _parse(text: str | bytes) -> Any:
    """JSON, with null for what is not finite; None for what is no JSON."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _describe(run: Run, about: dict[str, Any], results: dict[str, Any]) -> None:
    """Fills in what run.json says, else results.json."""
    version = about.get("format", FORMAT)
    if about and version != FORMAT:
        kind = "a newer" if isinstance(version, int) and version > FORMAT else "no known"
        run.damaged.append(
            f"run.json is of {kind} format ({clean(str(version), 20)}; this version knows {FORMAT}): what is understood"
            " is shown"
        )
    status = about.get("status")
    run.status = status if status in STATUSES else "unknown"

    def said(name: str, limit: int = WORD) -> str | None:
        return clean(about.get(name), limit) or clean(results.get(name), limit) or None

    run.name = said("name") or run.name
    run.command = said("command", COMMAND)
    run.commit, run.machine, run.started = said("commit"), said("machine"), said("started")
    seconds = number(about.get("seconds"))
    run.seconds = number(results.get("seconds")) if seconds is None else seconds
    overrides = about.get("overrides")
    if isinstance(overrides, list):
        run.overrides = [clean(each, COMMAND) for each in overrides[:1_000] if isinstance(each, str)]
    versions = about.get("versions") or results.get("versions")
    if isinstance(versions, str):  # "Python 3.11.7, torch 2.15.0"
        versions = dict(part.rpartition(" ")[::2] for part in versions[:WORD].split(", "))
    if isinstance(versions, dict):
        run.versions = {clean(k): clean(v) for k, v in list(versions.items())[:100] if clean(k) and clean(v)}
    if isinstance(about.get("config"), dict):
        run.config = _plain(about["config"], run.damaged)
    data = about.get("data")
    if isinstance(data, dict):
        run.data = {name: clean(data.get(name)) for name in ("source", "sha256") if clean(data.get(name))}
        for name in ("train", "val", "test", "img_size", "channels"):
            size = number(data.get(name))
            if size is not None:
                run.data[name] = int(size)
        if isinstance(data.get("classes"), list):
            run.data["classes"] = [clean(str(each), 60) for each in data["classes"][:N_CLASSES]]
    elif isinstance(run.config.get("data_source"), str):
        run.data = {"source": run.config["data_source"]}


def _configuration(files: _Folder) -> dict[str, Any]:
    """The configuration as Hydra keeps it, with its references to other keys followed.

    Others, such as to the environment, stay as they are: whoever reads a report is not to be asked for theirs.
    """
    config = files.yaml(".hydra/config.yaml")
    if config is None:
        if not files.find(".hydra/config.yaml"):
            files.missing.append(".hydra/config.yaml")
        return {}
    if not isinstance(config, dict):
        files.damaged.append(".hydra/config.yaml holds no configuration")
        return {}
    config = _plain(config, files.damaged)

    def look_up(reference: str, path: list[str], depth: int) -> Any:
        dots, keys = re.fullmatch(r"(\.*)(.*)", reference).groups()  # type: ignore[union-attr]
        steps = [*(path[: len(path) - len(dots)] if dots else []), *keys.split(".")]
        node: Any = config
        for step in steps:
            if not isinstance(node, dict) or step not in node:
                raise LookupError(reference)
            node = node[step]
        return follow(node, steps, depth + 1)

    def follow(node: Any, path: list[str], depth: int = 0) -> Any:
        if isinstance(node, dict):
            return {key: follow(value, [*path, key], depth) for key, value in node.items()}
        if isinstance(node, str) and depth < 10 and (match := re.fullmatch(r"\$\{(\.*[A-Za-z_][\w.]*)\}", node)):
            try:
                found = look_up(match[1], path, depth)
            except LookupError:
                return node
            return node if isinstance(found, dict) else found  # whole parts would multiply
        return node

    return follow(config, [])


def _plain(config: dict[Any, Any], damaged: list[str]) -> dict[str, Any]:
    """The configuration as dicts, lists and plain values, not too many of them."""
    left = N_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 50:
            raise OverflowError
        if isinstance(value, dict):
            return {clean(str(key), 200): copy(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [copy(each, depth + 1) for each in value]
        if isinstance(value, bool) or value is None or number(value) is not None:
            return value
        return clean(str(value), 2_000)

    try:
        return copy(config, 0)
    except (OverflowError, ValueError):
        damaged.append(f"the configuration has more than {N_VALUES} values, and was not read")
        return {}


def _read_metrics(run: Run, files: _Folder) -> None:
    path = files.find("metrics.jsonl")
    if path is None:
        files.missing.append("metrics.jsonl")
        return
    points: dict[str, tuple[array[float], array[float], array[float], array[float]]] = {}
    n_points, n_bad = 0, 0
    cut = False
    try:
        for line, is_whole in _lines(path):
            row = _parse(line) if line is not None else None
            step = _count(row.get("step")) if isinstance(row, dict) else None
            if not isinstance(row, dict) or step is None:
                if is_whole:
                    n_bad += 1
                else:
                    cut = True
                continue
            epoch, seconds = number(row.get("epoch")), number(row.get("seconds"))
            for name, value in row.items():
                if name in ("step", "epoch", "seconds"):
                    continue
                if isinstance(value, list):
                    counts = _counts(value)
                    if counts:
                        run.tables[clean(name)] = Table(counts, int(epoch or 0))
                    continue
                if name == "alarm" and isinstance(value, str) and len(run.alarms) < N_ALARMS:
                    run.alarms.append(clean(value, 1_000))
                if value is not None and number(value) is None:
                    continue
                if name not in points:
                    if len(points) >= N_CURVES:
                        continue
                    points[name] = array("d"), array("d"), array("d"), array("d")
                n_points += 1
                row_values = (step, epoch, seconds, number(value))
                for column, each in zip(points[name], row_values, strict=True):
                    column.append(math.nan if each is None else each)
            if n_points > N_POINTS:
                files.damaged.append(f"metrics.jsonl has more than {N_POINTS:,} numbers: the rest was not read")
                break
    except OSError as error:
        files.damaged.append(f"metrics.jsonl cannot be read ({error.strerror})")
    if cut:
        files.damaged.append("the last line of metrics.jsonl is cut short: the run was killed, or goes on")
    if n_bad:
        files.damaged.append(f"{n_bad} line{'s' if n_bad > 1 else ''} of metrics.jsonl cannot be read")
    for name, columns in points.items():
        steps, epochs, seconds_, values = (np.array(column) for column in columns)
        # What was logged again at a step, as a resumed run does, replaces what was there.
        order = np.argsort(steps, kind="stable")
        is_last = np.append(np.diff(steps[order]) > 0, True)
        kept = order[is_last]
        run.curves[clean(name)] = Curve(steps[kept], epochs[kept], seconds_[kept], values[kept])
    if not points and not files.damaged:
        files.missing.append("any number in metrics.jsonl")


def _lines(path: Path) -> Iterator[tuple[bytes | None, bool]]:
    """Each line that is not empty, and whether it ends as a line does; None for one that is too long."""
    with open(path, "rb") as file:
        while line := file.readline(LINE_BYTES + 1):
            if len(line) > LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                yield None, True
            elif line.strip():
                yield line, line.endswith(b"\n")


def _counts(rows: list[Any]) -> list[list[int]] | None:
    """A square table of counts, or None."""
    n = len(rows)
    if not 0 < n <= N_CLASSES or not all(isinstance(row, list) and len(row) == n for row in rows):
        return None
    if not all(type(each) is int and 0 <= each < 2**53 for row in rows for each in row):
        return None
    return rows


def _last(values: np.ndarray) -> float | None:
    return number(float(values[-1])) if len(values) else None


def _find_pictures(run: Run, files: _Folder) -> None:
    run.grids = files.pictures("samples", r"epoch_(\d{1,9})\.png")
    run.raw_grids = files.pictures("samples", r"raw_(\d{1,9})\.png")
    run.interpolations = files.pictures("pictures/interpolation", r"epoch_(\d{1,9})\.png")
    run.real = files.find("pictures/real_imgs.png")
    if not run.grids:
        files.missing.append("samples/epoch_*.png")
    if not run.of_older_version and not run.real:
        files.missing.append("pictures/real_imgs.png")
