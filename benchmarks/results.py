"""Writes docs/results.md, README's table and the grids in images/ from run folders, one row a run.

    python benchmarks/results.py logs/runs/<date>/<time> ...   # add runs, replacing those of the same name
    python benchmarks/results.py                               # write the page again from the stored records

Runs of one experiment that differ in more than the seed need different names: `name=...-64px`. A run's record is its
`results.json`, plus the curve of its validations from `metrics.jsonl`. docs/results/ stores the records, and the page
shows nothing else.
"""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.callbacks.quality import FEATURES
from src.run.run_record import read_rows

RECORDS = ROOT / "docs" / "results"
CURVE = ("val/seconds", "val/label_accuracy", "val/worst_class_accuracy", "val/fd")
# Each column's title, metric and number format.
COLUMNS = [
    ("label accuracy", "label_accuracy", "{:.2%}"),
    ("worst class", "worst_class_accuracy", "{:.2%}"),
    ("FD", "fd", "{:.3f}"),
    ("KID", "kid", "{:.4f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("density", "density", "{:.3f}"),
    ("coverage", "coverage", "{:.3f}"),
    ("variance", "within_class_variance", "{:.2f}"),
    ("nearest", "nearest_train", "{:.2f}"),
    ("copies", "copied", "{:.1%}"),
    ("CAS", "cas", "{:.2%}"),
]
SPREAD = {"lowest": min, "median": statistics.median, "highest": max}
IN_README = ("label_accuracy", "worst_class_accuracy", "fd", "recall", "cas")
MARKERS = ("<!-- written by benchmarks/results.py -->\n", "<!-- end -->")
HEAD = """# Results

Written by `python benchmarks/results.py` from the runs' own files (docs/results/*.json). Each number comes from the
test that ends a run, on images that the checkpoint with the best `val/fd` draws. Its floor stands beside it in
brackets: the same number for as many real images, which neither the classifier nor the reference has seen. The test
draws other images than the validations that chose the checkpoint, and compares them with the same real images.

- Features and labels come from our own small classifier of each data set. So **FD and KID here are not the FID and KID
  of papers**: compare them only within a data set. The reference is the test split. Each run names its classifier's
  checksum: between classifiers of the same data, numbers [differ a little](feature_nets.md).
- *label accuracy*: share of images in which the classifier sees the class that was asked for. *worst class*: the same
  for the class that does worst.
- *variance*: within classes, divided by that of real images. *nearest*: mean distance to the nearest training image.
  *copies*: share of images that are nearer to one than 99 % of real images are.
- *CAS*: accuracy on real test images of a classifier trained on samples alone (Ravuri & Vinyals 2019). Its floor is the
  same classifier trained on the real training images.
- *seconds*: wall-clock time of the whole command, from composing the configuration to the last number, including
  validation, sample grids, checkpoints and the test. Runs with one thread shared their machine with other work.
"""


def record(run_dir: Path) -> dict:
    """A run's record: its results, and the curve of its validations."""
    path = run_dir / "results.json"
    if not path.exists():
        sys.exit(f"error: {run_dir} has no results.json: name the folder of a run that has ended")
    results = json.loads(path.read_text(encoding="utf-8"))
    results["curve"] = curve(run_dir)
    measured = [row[FEATURES] for row in read_rows(run_dir / "metrics.jsonl") if FEATURES in row]
    results["features"] = measured[-1] if measured else "not recorded"
    return results


def curve(run_dir: Path) -> list[dict[str, float]]:
    """The validations of a run, which may be going on."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return [{key.partition("/")[2]: row[key] for key in CURVE} for row in rows if row.keys() >= set(CURVE)]


def cell(metrics: dict[str, float], name: str, pattern: str) -> str:
    value, floor = metrics.get(f"test/{name}"), metrics.get(f"test/{name}_floor")
    if value is None:
        return ""
    return pattern.format(value) + ("" if floor is None else f" ({pattern.format(floor)})")


def reached(run: dict, accuracy: float) -> str:
    """Seconds of training until a validation found this label accuracy."""
    return next((f"{row['seconds']:.0f}" for row in run["curve"] if row["label_accuracy"] >= accuracy), "never")


def section(experiment: str, runs: list[dict]) -> str:
    first = runs[0]
    columns = [column for column in COLUMNS if any(f"test/{column[1]}" in run["metrics"] for run in runs)]
    titles = ["run", *(title for title, _, _ in columns), "95 % after s", "seconds"]
    lines = [f"## {experiment}", ""]
    lines += [f"![Samples of {experiment}, one row a class or a prompt](../images/{picture_of(experiment).name})", ""]
    lines += ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for run in runs:
        cells = [cell(run["metrics"], name, pattern) for _, name, pattern in columns]
        lines.append("| " + " | ".join([run["name"], *cells, reached(run, 0.95), f"{run['seconds']:.0f}"]) + " |")
    if len(runs) > 1:
        for kind, pick in SPREAD.items():
            cells = [cell(over_seeds(runs, pick), name, pattern).partition(" (")[0] for _, name, pattern in columns]
            lines.append("| " + " | ".join([f"{kind} of {len(runs)} seeds", *cells, "", ""]) + " |")
    kinds = {"seen": "known phrasings", "held_out": "phrasings that training never saw", "typo": "these with a typo"}
    shares = [(text, cell(first["metrics"], f"prompt_accuracy_{kind}", "{:.1%}")) for kind, text in kinds.items()]
    if all(share for _, share in shares):
        lines += ["", f"Images show what prompts say: {', '.join(f'{share} for {text}' for text, share in shares)}."]
    lines += [
        "",
        "The first run's validations:",
        "",
        "| training s | label accuracy | worst class | FD |",
        "|---|---|---|---|",
    ]
    for row in first["curve"]:
        numbers = [f"{row['label_accuracy']:.2%}", f"{row['worst_class_accuracy']:.2%}", f"{row['fd']:.3f}"]
        lines.append(f"| {row['seconds']:.0f} | " + " | ".join(numbers) + " |")
    lines += [""] + [
        f"- {run['name']}: `{run['command']}`, commit {run['commit']}, {run['machine']}, {run['versions']}, classifier"
        f" {run.get('features', 'not recorded')}"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def over_seeds(runs: list[dict], pick: Callable[[list[float]], float]) -> dict[str, float]:
    """One number of each metric that all these runs have."""
    shared = set.intersection(*(set(run["metrics"]) for run in runs))
    return {name: pick([run["metrics"][name] for run in runs]) for name in shared}


def readme_table(experiments: dict[str, list[dict]]) -> str:
    """The median over the seeds of each experiment as it is, one a row."""
    shown = [column for column in COLUMNS if column[1] in IN_README]
    titles = ["experiment", "seeds", *(title for title, _, _ in shown), "minutes"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in sorted(experiments):
        runs = experiments[name]
        if " " in name:  # with changes
            continue
        median = over_seeds(runs, statistics.median)
        minutes = statistics.median(run["seconds"] for run in runs) / 60
        cells = [str(len(runs)), *(cell(median, metric, pattern) for _, metric, pattern in shown), f"{minutes:.1f}"]
        lines.append("| " + " | ".join([f"`{name}`", *cells]) + " |")
    return "\n".join(lines) + "\n"


def main(run_dirs: list[Path]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    for run_dir in run_dirs:
        run = record(run_dir)
        drawn = [*(run_dir / "samples").glob("epoch_*.png"), *(run_dir / "pictures" / "prompt_imgs").glob("*.png")]
        if not drawn:
            sys.exit(f"error: {run_dir} has no sample grid: repeat it with callbacks.sample_grid.every_n_epochs=1")
        (RECORDS / f"{run['name']}.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        picture = picture_of(experiment_of(run))
        if not picture.exists() or run["name"].endswith("seed12345"):
            # What prompts drew says more, and has ten rows where there are a hundred classes.
            shutil.copy(max(drawn, key=lambda path: (path.parent.name == "prompt_imgs", path.name)), picture)
            print(f"wrote {picture}")
    experiments: dict[str, list[dict]] = {}
    # The default seed comes first.
    for path in sorted(RECORDS.glob("*.json"), key=lambda path: ("seed12345" not in path.name, path.name)):
        run = json.loads(path.read_text(encoding="utf-8"))
        experiments.setdefault(experiment_of(run), []).append(run)
    page = "\n".join([HEAD, *(section(name, experiments[name]) for name in sorted(experiments))])
    (ROOT / "docs" / "results.md").write_text(page, encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    readme.write_text(before + MARKERS[0] + readme_table(experiments) + MARKERS[1] + after, encoding="utf-8")
    print(f"wrote {readme} and {ROOT / 'docs' / 'results.md'} from {sum(map(len, experiments.values()))} runs")


def experiment_of(run: dict) -> str:
    """The experiment and its changes: a run's name without data and seed."""
    experiment, *others = run["name"].rpartition("-seed")[0].split("-")
    return " ".join([experiment, *(each for each in others if "=" in each)])


def picture_of(experiment: str) -> Path:
    """The file with its samples."""
    return ROOT / "images" / f"{re.sub(r'[^A-Za-z0-9_]+', '-', experiment)}.png"


if __name__ == "__main__":
    main([Path(argument).resolve() for argument in sys.argv[1:]])
