"""What the page about one run and the comparison of several both show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from src.report.groups import show_value
from src.report.measures import count, duration
from src.report.pictures import DamagedPictureError, Picture, embed, load
from src.report.run_folder import Run, flatten
from src.report.verdict import threshold_of

MATRIX = 20  # classes that a confusion matrix shows one by one
WORST = 10  # classes that it shows where there are more


@dataclass
class Fact:
    """A term, its value, and whether it is to be read as `text`, as `code`, or as a warning, `warn`."""

    term: str
    value: str
    kind: str = "text"


@dataclass
class Frame:
    """A picture of one epoch."""

    epoch: int
    picture: Picture
    is_last: bool = False


@dataclass
class Strip:
    """Pictures of the same kind, one an epoch, of which the slider shows one; `letter` and `style` are the run's."""

    title: str
    alt: str
    frames: list[Frame]
    letter: str = ""
    style: int = 0


@dataclass
class Single:
    """A picture by itself."""

    title: str
    alt: str
    picture: Picture


@dataclass
class Matrix:
    """A confusion matrix; of many classes the worst: name, share that is right, mostly taken for, with what share."""

    title: str
    note: str
    rows: str
    columns: str
    names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    worst: list[tuple[str, float, str, float]] = field(default_factory=list)


def facts(run: Run) -> list[Fact]:
    """What was run, on what, when and where."""
    if run.commit:
        kind = "warn" if run.commit.endswith("+changes") else "code"
        found = [Fact("Commit", run.commit.replace("+changes", " + uncommitted changes"), kind)]
    else:
        found = [Fact("Commit", "not recorded")]
    found.append(Fact("Data", data_in_words(run)))
    if run.data.get("sha256"):
        found.append(Fact("Checksum of the data", f"sha256 {run.data['sha256']}", "code"))
    found.append(Fact("Seed", "not recorded" if run.seed is None else str(run.seed)))
    steps = max((int(c.steps[-1]) + 1 for name, c in run.curves.items() if name.startswith("train/")), default=0)
    trained = [count(run.epochs, "epoch")] if run.epochs else []
    trained += [f"{steps:,} batches"] if steps else []
    if trained:
        found.append(Fact("Trained", ", ".join(trained)))
    took = duration(run.seconds)
    if not took:
        known = [float(np.nanmax(c.seconds)) for c in run.curves.values() if not np.isnan(c.seconds).all()]
        took = f"at least {duration(max(known))}, when it last logged" if known else "not recorded"
    found.append(Fact("Wall-clock", took))
    found.append(Fact("Machine", run.machine or "not recorded"))
    if run.started:
        found.append(Fact("Started", run.started.replace("T", " ").replace("+00:00", " UTC")))
    if run.versions:
        found.append(Fact("Versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())))
    return [*found, Fact("Folder", str(run.folder), "code")]


def data_in_words(run: Run) -> str:
    """The data set: its name, classes, size of images, sizes of its splits."""
    data, flat = run.data, flatten(run.config)
    parts = [data["source"]] if data.get("source") else []
    if not parts and flat.get("datamodule._target_"):
        parts = [show_value(flat["datamodule._target_"])]
    if data.get("classes"):
        parts.append(count(len(data["classes"]), "class", "classes"))
    size, channels = data.get("img_size", flat.get("datamodule.img_size")), data.get("channels")
    if size:
        parts.append(f"{size} by {size} pixels" + (f", {count(channels, 'channel')}" if channels else ""))
    sizes = [f"{data[name]:,} {name}" for name in ("train", "val", "test") if name in data]
    split = flat.get("datamodule.train_val_test_split")
    if sizes:
        parts.append(" / ".join(sizes))
    elif isinstance(split, list):
        parts.append(f"split {' / '.join(map(str, split))} as configured")
    return "; ".join(map(str, parts)) or "not recorded"


def frames_of(run: Run, grids: dict[int, Path], epochs: Sequence[int], n_bytes: int) -> list[Frame]:
    """The grids of these epochs; one that cannot be used is left out, and noted."""
    found = [(epoch, picture_of(run, grids[epoch], n_bytes)) for epoch in epochs]
    frames = [Frame(epoch, picture) for epoch, picture in found if picture]
    if frames:
        frames[-1].is_last = True
    return frames


def picture_of(run: Run, path: Path, n_bytes: int) -> Picture | None:
    """A picture of a run folder; None where it cannot be used, which is noted."""
    try:
        return embed(load(path), n_bytes)
    except DamagedPictureError as error:
        run.damaged.append(f"{path.relative_to(run.folder)} {error}")
        return None


def interpolation_of(run: Run, n_bytes: int) -> list[Single]:
    """The last one, if there is any."""
    if not run.interpolations:
        return []
    last = max(run.interpolations)
    picture = picture_of(run, run.interpolations[last], n_bytes)
    if picture is None:
        return []
    return [Single(f"From each class to the next, epoch {last}", "Generated images between classes", picture)]


def stops_of(strips: Sequence[Strip]) -> list[int]:
    """The epochs that the slider stops at; none where there is nothing to slide."""
    epochs = sorted({frame.epoch for strip in strips for frame in strip.frames})
    return epochs if len(epochs) > 1 else []


def matrices_of(run: Run) -> list[Matrix]:
    """The discriminator's confusion and that of the labels of generated images, of the test, else the validation."""
    found = []
    for kind in ("d_confusion", "label_confusion"):
        split = next((split for split in ("test", "val") if f"{split}/{kind}" in run.tables), None)
        if split is None:
            continue
        table = run.tables[f"{split}/{kind}"]
        when = "test" if split == "test" else f"validation of epoch {table.epoch}"
        n = len(table.counts)
        if kind == "d_confusion":
            if n != 2:
                run.damaged.append(f"{split}/{kind} in metrics.jsonl is no table of two rows")
                continue
            matrix = Matrix(f"Discriminator, {when}", "", "image is", "judged", ["real", "generated"], table.counts, [])
            if threshold_of(run) is None:
                matrix.note = "Its loss sets no limit between the two: midway between its mean scores is taken."
        else:
            known = [str(name) for name in run.data.get("classes") or []]
            names = known if len(known) == n else [str(i) for i in range(n)]
            title = f"Labels of generated images, {when}"
            matrix = Matrix(title, "", "asked for", "classifier sees", names, table.counts, [])
        matrix.shares = [[each / max(1, sum(row)) for each in row] for row in table.counts]
        if n > MATRIX:
            worst = sorted(range(n), key=lambda i: (matrix.shares[i][i], i))[:WORST]
            for i in worst:
                taken = max((j for j in range(n) if j != i), key=lambda j: matrix.shares[i][j])
                matrix.worst.append((names[i], matrix.shares[i][i], names[taken], matrix.shares[i][taken]))
        found.append(matrix)
    return found


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration to read."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100) if config else ""
