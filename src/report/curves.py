"""Which curves the page shows, of one run or of several laid over each other."""

from collections.abc import Iterable, Sequence

import numpy as np

from src.report.figures import Figure, Line, draw
from src.report.run_folder import Panel, Run

REAL = "Dashed: what as many real images get."
QUALITY = (
    Panel(
        title="Fréchet distance",
        note=f"Lower is better. {REAL}",
        unit="FD, no unit",
        lines={"val/fd": "FD"},
        log=True,
        compare=True,
    ),
    Panel(
        title="Label accuracy",
        note=f"Images of the class asked for: of all, and of the class that does worst. Higher is better. {REAL}",
        unit="share of images",
        lines={"val/label_accuracy": "all", "val/worst_class_accuracy": "worst"},
        percent=True,
        compare=True,
    ),
    Panel(
        title="Variety",
        note=f"Real images with a like among the generated. Higher is better. {REAL}",
        unit="share of real images",
        lines={"val/recall": "recall", "val/coverage": "coverage"},
        percent=True,
        compare=True,
    ),
    Panel(
        title="Variance within classes",
        note="1: images of a class differ as real ones do; 0: one image a class.",
        unit="share of that of real images",
        lines={"val/within_class_variance": "generated"},
        compare=True,
    ),
)
SPEED = Panel(
    title="Speed",
    note="In training, without validation.",
    unit="images per second",
    lines={"train/images_per_s": "training"},
    compare=True,
)


def curves_of_one(run: Run) -> list[Figure]:
    """A figure for each panel: quality first, then what the model says of itself."""
    return _draw([*QUALITY, *run.about.curves, SPEED], [run], [0], [""])


def curves_of_several(runs: Sequence[Run], styles: Sequence[int], letters: Sequence[str]) -> list[Figure]:
    """A figure for each metric that compares, all runs in it.

    Args:
        runs: what to show.
        styles: for each run, how its lines look.
        letters: for each run, what stands at the end of its lines.
    """
    panels = {}
    for panel in [*QUALITY, *(panel for run in runs for panel in run.about.curves), SPEED]:
        for metric, label in panel.lines.items() if panel.compare else ():
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}: {label}"
            panels[metric] = panel.model_copy(update={"title": title, "lines": {metric: label}, "levels": {}})
    return _draw(panels.values(), runs, styles, letters)


def _draw(panels: Iterable[Panel], runs: Sequence[Run], styles: Sequence[int], letters: Sequence[str]) -> list[Figure]:
    """Those figures that have anything to show, each with the floor of its first metric where that has one."""
    figures = []
    for number, panel in enumerate(panels):
        first = next(iter(panel.lines))
        by_epoch = first.startswith("val/")
        lines = []
        for run, style, letter in zip(runs, styles, letters, strict=True):
            for i, (metric, label) in enumerate(panel.lines.items()):
                if curve := run.curves.get(metric):
                    x = curve.epochs if by_epoch else curve.steps
                    kept = np.isfinite(x)
                    lines.append(Line(x[kept], curve.values[kept], letter or label, style + i))
        floors = [run.metrics[f"{first}_floor"] for run in runs if f"{first}_floor" in run.metrics]
        levels = panel.levels | ({"real": float(np.mean(floors))} if floors else {})
        x_label = "epoch, from 0" if by_epoch else "batches"
        figures.append(draw(panel, x_label, lines, levels, number, bands=len(runs) == 1))
    return [figure for figure in figures if figure]
