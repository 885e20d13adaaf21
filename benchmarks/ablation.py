"""Writes a page that says what each change to a run is worth, from the files of runs that ended with a test.

    python benchmarks/ablation.py --out docs/cifar10_ablation.md BASE_RUN OTHER_RUN...

All runs are of one experiment. A row names what was typed for its run and not for the first one.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COLUMNS = {
    "FD": ("fd", "{:.2f}"),
    "label accuracy": ("label_accuracy", "{:.1%}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "variance": ("within_class_variance", "{:.2f}"),
}
ASIDE = ("logger", "hydra.", "callbacks.", "ckpt_path=", "name=", "test_after_training=")  # changes no image
HEAD = """# What each change is worth: {experiment}

Written by `benchmarks/ablation.py` from the runs' own files; [results.md](results.md) explains the columns. Brackets
hold the number for as many real images. Each row is a run with this change of:

`{base}`

"""


def read(folder: Path) -> dict:
    """A run's results, and what was typed for it that changes images: `typed`, values by key."""
    path = folder / "results.json"
    if not path.exists():
        sys.exit(f"error: {folder} has no results.json: name the folder of a run that has ended")
    run = json.loads(path.read_text(encoding="utf-8"))
    if "test/fd" not in run["metrics"]:
        sys.exit(f"error: {folder} has no test: repeat it with test_after_training=true")
    arguments = [each for each in shlex.split(run["command"])[2:] if not each.startswith(ASIDE)]
    run["typed"] = dict(each.split("=", 1) for each in arguments)
    return run


def change(typed: dict[str, str], base: dict[str, str]) -> str:
    """What differs from the first run, as it is typed."""
    differs = [f"`{key}={value}`" for key, value in typed.items() if base.get(key) != value]
    differs += [f"without `{key}={value}`" for key, value in base.items() if key not in typed]
    return ", ".join(differs) or "as it is"


def page(runs: list[dict]) -> str:
    base = runs[0]["typed"]
    command = shlex.join(["python", "run.py", *(f"{key}={value}" for key, value in base.items())])
    experiment = base.get("experiment", "").removesuffix(".yaml")
    lines = [HEAD.format(experiment=experiment, base=command)]
    lines[0] += "| change | " + " | ".join([*COLUMNS, "seconds"]) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|"
    for run in runs:
        cells = [change(run["typed"], base)]
        for name, pattern in COLUMNS.values():
            value, floor = run["metrics"][f"test/{name}"], run["metrics"][f"test/{name}_floor"]
            cells.append(f"{pattern.format(value)} ({pattern.format(floor)})")
        lines.append("| " + " | ".join([*cells, f"{run['seconds']:.0f}"]) + " |")
    made = sorted({f"commit {run['commit']}, {run['machine']}, {run['versions']}" for run in runs})
    return "\n".join([*lines, "", *(f"- {each}" for each in made)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(page([read(folder) for folder in args.runs]), encoding="utf-8")
    print(f"wrote {args.out} from {len(args.runs)} runs")


if __name__ == "__main__":
    main()
