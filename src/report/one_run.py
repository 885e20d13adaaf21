"""What the page says of one run. A comparison shows parts of it for each of its runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.report.curves import draw_curves
from src.report.measures import MEASURES, SPLITS, count, duration, split_of
from src.report.pictures import picture_of, pictures_of
from src.report.run_folder import Run, TableTexts
from src.report.verdict import judge

N_BYTES = 3_200_000  # of pictures, before they are written as text, which makes them a third larger
FRAMES = 24  # sample grids of each kind
LABELS = TableTexts(title="Labels of generated images", rows="asked for", columns="classifier sees", names=[])


def about_one(run: Run) -> dict[str, Any]:
    """What `report.html` needs to know of a run. Damaged pictures are added to `run.damaged`."""
    name, a_class = "Samples with averaged weights" if run.raw_grids else "Samples", "one row a class"
    all_grids = [(name, a_class, run.grids), ("The same noise without the average", a_class, run.raw_grids)]
    all_grids.append(("Prompts", "one row a prompt", run.prompt_grids))
    n_bytes = N_BYTES // (sum(min(len(grids), FRAMES) for _, _, grids in all_grids) + 2)
    strips = [
        {"name": name, "alt": f"Generated images, {rows}", "letter": "", "wide": grids is run.prompt_grids}
        | {"frames": pictures_of(run, grids, FRAMES, n_bytes)}
        for name, rows, grids in all_grids
    ]
    real = picture_of(run, run.real, n_bytes) if run.real else None
    about = described(run, n_bytes)
    split = split_of(run.metrics)
    quality = [
        (measure, *(measure.show(run.metrics.get(f"{split}/{measure.name}{suffix}")) for suffix in ("", "_floor")))
        for measure in MEASURES
        if f"{split}/{measure.name}" in run.metrics
    ]
    splits = ("train", "val", "test")
    names = dict.fromkeys(name for where, _, name in (key.partition("/") for key in run.metrics) if where in splits)
    numbers = {name: [run.metrics.get(f"{where}/{name}") for where in splits] for name in names}
    return about | {
        "title": run.name,
        "several": False,
        "split": split,
        "n_images": run.n_measured(split),
        "quality": quality,
        "numbers": [(name, ["" if n is None else f"{n:,.5g}" for n in row]) for name, row in numbers.items()],
        "figures": draw_curves([run], [0], [""]),
        "strips": strips,
        "singles": ({"Real images, for comparison": real} if real else {}) | about["singles"],
        "notes": [(run, "")],
    }


def described(run: Run, n_bytes: int) -> dict[str, Any]:
    """What a page says of each run, be it one or several; its picture has about `n_bytes` at most."""
    last = max(run.interpolations, default=0)
    picture = picture_of(run, run.interpolations[last], n_bytes) if run.interpolations else None
    singles = {f"From each class to the next, epoch {last}": picture} if picture else {}
    return {"run": run, "facts": _facts(run), "verdict": judge(run), "matrices": _matrices(run), "singles": singles}


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """What was run, on what, when and where: a term, its value, and whether that is `code` or `warn`s."""
    about, data = run.about, run.about.data
    commit = about.commit.replace("+changes", " + uncommitted changes")
    steps = max((int(c.steps[-1]) + 1 for name, c in run.curves.items() if name.startswith("train/")), default=0)
    trained = [count(run.epochs, "epoch")] if run.epochs else []
    trained += [f"{steps:,} batches"] if steps else []
    took = duration(about.seconds)
    if not took and run.last_logged:
        took = f"at least {duration(run.last_logged)}, when it last logged"
    size = f"{data.img_size} by {data.img_size} pixels" if data.img_size else ""
    size += f", {count(data.channels, 'channel')}" if size and data.channels else ""
    sizes = {"train": data.train, "val": data.val, "test": data.test}
    of_data = [
        data.source,
        count(len(data.classes), "class", "classes") if data.classes else "",
        size,
        " / ".join(f"{n:,} {split}" for split, n in sizes.items() if n is not None),
    ]
    found = [
        ("Commit", commit, "warn" if commit != about.commit else "code"),
        ("Data", "; ".join(filter(None, of_data)), ""),
        ("Checksum of the data", about.data.sha256 and f"sha256 {about.data.sha256}", "code"),
        ("Seed", "" if run.seed is None else str(run.seed), ""),
        ("Trained", ", ".join(trained), ""),
        ("Wall-clock", took, ""),
        ("Machine", about.machine, ""),
        ("Started", about.started.replace("T", " ").replace("+00:00", " UTC"), ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in about.versions.items()), ""),
        ("Folder", str(run.folder), "code"),
    ]
    return [(term, value, kind) if value else (term, "not recorded", "") for term, value, kind in found]


def _matrices(run: Run) -> list[dict[str, Any]]:
    """The model's own confusion matrices and that of the labels of generated images, of the test, else validation."""
    found = []
    for kind, texts in [*run.about.tables.items(), ("label_confusion", LABELS)]:
        split = next((split for split in SPLITS if f"{split}/{kind}" in run.tables), None)
        if split is None:
            continue
        counts, epoch = run.tables[f"{split}/{kind}"]
        n = len(counts)
        names: Sequence[Any] = texts.names or run.about.data.classes
        if len(names) != n:
            names = range(n)
        shares = np.array(counts) / np.sum(counts, axis=1, keepdims=True).clip(min=1)
        right = shares.diagonal()
        wrong = shares - np.diag(right)
        worst = np.argsort(right, kind="stable")[:10] if n > 20 else np.array([], int)  # more would not fit
        found.append(
            {
                "title": f"{texts.title}, {'test' if split == 'test' else f'validation of epoch {epoch}'}",
                "texts": texts,
                "names": names,
                "counts": counts,
                "shares": shares.tolist(),
                # The class, the share that is right, what it is mostly taken for, with what share.
                "worst": [(names[i], right[i], names[wrong[i].argmax()], wrong[i].max()) for i in worst],
            }
        )
    return found
