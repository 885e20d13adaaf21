"""What the page about one run says."""

from typing import Any

from src.report.curves import curves_of_one
from src.report.groups import n_measured
from src.report.measures import MEASURES, split_of
from src.report.parts import (
    Single,
    Strip,
    as_yaml,
    facts,
    frames_of,
    interpolation_of,
    matrices_of,
    picture_of,
    stops_of,
)
from src.report.pictures import spread_evenly
from src.report.run_folder import Run, flatten
from src.report.verdict import headline, judge

# Of pictures, before they are written as text, which makes them a third larger.
N_BYTES = 3_200_000
FRAMES = 24  # sample grids of each kind


def about_one(run: Run) -> dict[str, Any]:
    """What `report.html` needs to know of a run. Damaged pictures are added to `run.damaged`."""
    strips, singles = _pictures(run)
    split = split_of(run.metrics)
    mark, line = headline(run)
    return {
        "title": run.name,
        "several": False,
        "run": run,
        "facts": facts(run),
        "mark": mark,
        "headline": line,
        "sentences": judge(run),
        "split": split,
        "n_images": n_measured(run, split) if split else None,
        "quality": _quality(run, split) if split else [],
        "numbers": _numbers(run),
        "figures": curves_of_one(run),
        "strips": strips,
        "stops": stops_of(strips),
        "n_grids": len(run.grids),
        "singles": singles,
        "matrices": matrices_of(run),
        "configuration": as_yaml(run.config),
        "notes": [(run, "")],
    }


def _quality(run: Run, split: str) -> list[dict[str, Any]]:
    rows = []
    for measure in MEASURES:
        value, floor = (run.metrics.get(f"{split}/{measure.name}{suffix}") for suffix in ("", "_floor"))
        if value is not None:
            rows.append({"measure": measure, "value": measure.show(value), "floor": measure.show(floor)})
    return rows


def _numbers(run: Run) -> list[tuple[str, list[str]]]:
    """Each final number's name, with its values in training, validation and test."""
    names = dict.fromkeys(name.partition("/")[2] for name in run.metrics)
    rows = []
    for name in names:
        values = [run.metrics.get(f"{split}/{name}") for split in ("train", "val", "test")]
        rows.append((name, ["" if value is None else f"{value:,.5g}" for value in values]))
    return [row for row in rows if any(row[1])]


def _pictures(run: Run) -> tuple[list[Strip], list[Single]]:
    """The grids over epochs; real images and the interpolation."""
    averaged = bool(run.raw_grids) or flatten(run.config).get("model.ema_half_life") is not None
    title = "Samples of the averaged generator" if averaged else "Samples"
    kinds = [(title, run.grids), ("The same noise without the average", run.raw_grids)]
    chosen = [(title, spread_evenly(list(grids), FRAMES), grids) for title, grids in kinds]
    n_bytes = N_BYTES // max(1, sum(len(epochs) for _, epochs, _ in chosen) + 2)
    strips = [
        Strip(title, "Generated images, one row a class", frames_of(run, grids, epochs, n_bytes))
        for title, epochs, grids in chosen
    ]
    singles = []
    if run.real and (picture := picture_of(run, run.real, n_bytes)):
        singles.append(Single("Real images, for comparison", "Real images, one row a class", picture))
    return [strip for strip in strips if strip.frames], singles + interpolation_of(run, n_bytes)
