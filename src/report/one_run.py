"""What the page says of one run. A comparison shows parts of it for each of its runs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from src.report.curves import curves_of_one
from src.report.groups import n_measured
from src.report.measures import MEASURES, SPLITS, count, duration, split_of
from src.report.pictures import Picture, Strip, picture_of, pictures_of
from src.report.run_folder import Run, TableTexts
from src.report.verdict import judge

# Of pictures, before they are written as text, which makes them a third larger.
N_BYTES = 3_200_000
FRAMES = 24  # sample grids of each kind
MATRIX = 20  # classes that a confusion matrix shows one by one
WORST = 10  # classes that it shows where there are more
LABELS = TableTexts(title="Labels of generated images", rows="asked for", columns="classifier sees", names=[])


@dataclass
class Fact:
    """A term, its value, and whether it is to be read as `text`, as `code`, or as a warning, `warn`."""

    term: str
    value: str
    kind: str = "text"


@dataclass
class Matrix:
    """A confusion matrix; of many classes the worst: name, share that is right, mostly taken for, with what share."""

    title: str
    texts: TableTexts
    names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    worst: list[tuple[str, float, str, float]] = field(default_factory=list)


def about_one(run: Run) -> dict[str, Any]:
    """What `report.html` needs to know of a run. Damaged pictures are added to `run.damaged`."""
    n_frames = sum(min(len(grids), FRAMES) for grids in (run.grids, run.raw_grids))
    n_bytes = N_BYTES // (n_frames + 2)
    title = "Samples with averaged weights" if run.raw_grids else "Samples"
    kinds = [(title, run.grids), ("The same noise without the average", run.raw_grids)]
    strips = [
        Strip(title, "Generated images, one row a class", pictures_of(run, grids, FRAMES, n_bytes))
        for title, grids in kinds
    ]
    strips = [strip for strip in strips if strip.frames]
    real = picture_of(run, run.real, n_bytes) if run.real else None
    singles = {"Real images, for comparison": real} if real else {}
    split = split_of(run.metrics)
    return described(run) | {
        "title": run.name,
        "several": False,
        "split": split,
        "n_images": n_measured(run, split) if split else None,
        "quality": _quality(run, split),
        "numbers": _numbers(run),
        "figures": curves_of_one(run),
        "strips": strips,
        "stops": stops_of(strips),
        "singles": singles | interpolation_of(run, n_bytes),
        "configuration": as_yaml(run.about.config),
        "notes": [(run, "")],
    }


def described(run: Run) -> dict[str, Any]:
    """What a page says of each run, be it one or several."""
    return {"run": run, "facts": facts(run), "verdict": judge(run), "matrices": matrices_of(run)}


def facts(run: Run) -> list[Fact]:
    """What was run, on what, when and where."""
    about = run.about
    commit = about.commit.replace("+changes", " + uncommitted changes")
    steps = max((int(c.steps[-1]) + 1 for name, c in run.curves.items() if name.startswith("train/")), default=0)
    trained = [count(run.epochs, "epoch")] if run.epochs else []
    trained += [f"{steps:,} batches"] if steps else []
    took = duration(about.seconds)
    if not took and run.last_logged:
        took = f"at least {duration(run.last_logged)}, when it last logged"
    found = [
        Fact("Commit", commit, "warn" if commit != about.commit else "code"),
        Fact("Data", data_in_words(run)),
        Fact("Checksum of the data", about.data.sha256 and f"sha256 {about.data.sha256}", "code"),
        Fact("Seed", "" if run.seed is None else str(run.seed)),
        Fact("Trained", ", ".join(trained)),
        Fact("Wall-clock", took),
        Fact("Machine", about.machine),
        Fact("Started", about.started.replace("T", " ").replace("+00:00", " UTC")),
        Fact("Versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        Fact("Folder", str(run.folder), "code"),
    ]
    return [fact if fact.value else Fact(fact.term, "not recorded") for fact in found]


def data_in_words(run: Run) -> str:
    """The data set: its name, classes, size of images, sizes of its splits."""
    data = run.about.data
    parts = [data.source] if data.source else []
    parts += [count(len(data.classes), "class", "classes")] if data.classes else []
    if data.img_size:
        size = f"{data.img_size} by {data.img_size} pixels"
        parts.append(f"{size}, {count(data.channels, 'channel')}" if data.channels else size)
    sizes = {"train": data.train, "val": data.val, "test": data.test}
    parts.append(" / ".join(f"{n:,} {split}" for split, n in sizes.items() if n is not None))
    return "; ".join(filter(None, parts))


def interpolation_of(run: Run, n_bytes: int) -> dict[str, Picture]:
    """The last one by its title, if there is any."""
    last = max(run.interpolations, default=0)
    picture = picture_of(run, run.interpolations[last], n_bytes) if run.interpolations else None
    return {f"From each class to the next, epoch {last}": picture} if picture else {}


def stops_of(strips: list[Strip]) -> list[int]:
    """The epochs that the slider stops at; none where there is nothing to slide."""
    epochs = sorted({epoch for strip in strips for epoch in strip.frames})
    return epochs if len(epochs) > 1 else []


def matrices_of(run: Run) -> list[Matrix]:
    """The model's own confusion matrices and that of the labels of generated images, of the test, else validation."""
    found = []
    for kind, texts in [*run.about.tables.items(), ("label_confusion", LABELS)]:
        split = next((split for split in SPLITS if f"{split}/{kind}" in run.tables), None)
        if split is None:
            continue
        table = run.tables[f"{split}/{kind}"]
        n = len(table.counts)
        names = texts.names or run.about.data.classes
        names = names if len(names) == n else [str(i) for i in range(n)]
        counts = np.array(table.counts)
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        when = "test" if split == "test" else f"validation of epoch {table.epoch}"
        matrix = Matrix(f"{texts.title}, {when}", texts, names, table.counts, shares.tolist())
        right = shares.diagonal()
        wrong = shares - np.diag(right)
        for i in np.argsort(right, kind="stable")[:WORST] if n > MATRIX else ():
            taken = int(wrong[i].argmax())
            matrix.worst.append((names[i], float(right[i]), names[taken], float(wrong[i, taken])))
        found.append(matrix)
    return found


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration to read."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100) if config else ""


def _quality(run: Run, split: str | None) -> list[dict[str, Any]]:
    rows = []
    for measure in MEASURES:
        value, floor = (run.metrics.get(f"{split}/{measure.name}{suffix}") for suffix in ("", "_floor"))
        if value is not None:
            rows.append({"measure": measure, "value": measure.show(value), "floor": measure.show(floor)})
    return rows


def _numbers(run: Run) -> list[tuple[str, list[str]]]:
    """Each final number's name, with its values in training, validation and test."""
    splits = ("train", "val", "test")
    names = dict.fromkeys(name.partition("/")[2] for name in run.metrics if name.partition("/")[0] in splits)
    values = {name: [run.metrics.get(f"{split}/{name}") for split in splits] for name in names}
    return [(name, ["" if each is None else f"{each:,.5g}" for each in row]) for name, row in values.items()]
