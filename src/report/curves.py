"""Curves of one run, or of several laid over each other, as SVG that takes its colours from the page."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure as mpl
from matplotlib import style as mpl_style
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

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


class AgainstOption(Panel, strict=True):
    """Curves over the values of an option of how a model draws: of `Run.against`."""

    option: str


AGAINST = [
    panel
    for option, meaning in [("guidance", "More: more typical, and less varied."), ("steps", "More cost more time.")]
    for panel in (
        AgainstOption(
            title=f"Distance against {option}",
            note=f"After the test. {meaning} Lower is better. {REAL}",
            unit="FD, no unit",
            lines={f"{option}/fd": "FD"},
            log=True,
            compare=True,
            option=option,
        ),
        AgainstOption(
            title=f"Labels and variety against {option}",
            note=f"After the test. Higher is better. {REAL}",
            unit="share of images",
            lines={
                f"{option}/recall": "recall",
                f"{option}/precision": "precision",
                f"{option}/label_accuracy": "labels",
            },
            percent=True,
            option=option,
        ),
    )
]
AGAINST.append(
    AgainstOption(
        title="Time against steps",
        note="For 64 images in one request, on the machine of the run.",
        unit="seconds",
        lines={"steps/seconds": "seconds"},
        compare=True,
        option="steps",
    )
)
STRETCHES = 60  # a curve of many points is drawn as the means of so many stretches
INK, GRID = "#0a0b01", "#0a0b02"  # stand for colours that the page sets
COLOURS = [f"#0a0c{i:02x}" for i in range(5)]  # people who do not see all colours can tell five apart
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
LABEL_HEIGHT = 11.0  # points
STYLE = {
    "text.parse_math": False,  # labels may be anybody's
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure is the same text
    "figure.figsize": (4.5, 2.8),  # inches
    "figure.facecolor": "none",  # the page's own paper shows
    "axes.facecolor": "none",
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
}
# x [N]; y [N], where NaN leaves a gap; a few letters at its end; the number of its colour and dash.
Line = tuple[np.ndarray, np.ndarray, str, int]


def draw_curves(runs: Sequence[Run], styles: Sequence[int], letters: Sequence[str]) -> list[tuple[Panel, str]]:
    """All panels of one run; of several runs one for each metric that compares; each with an `<svg>` that is safe.

    `styles` are the numbers of the runs' colours and dashes. `letters` stand at the ends of their lines; "": the names
    of the lines do. A panel for which there are no values is left out.
    """
    panels = [*QUALITY, *(panel for run in runs for panel in run.about.curves), SPEED, *AGAINST]
    if len(runs) > 1:
        by_metric = {}
        for panel in panels:
            for metric, label in panel.lines.items() if panel.compare else ():
                title = panel.title if len(panel.lines) == 1 else f"{panel.title}: {label}"
                by_metric[metric] = panel.model_copy(update={"title": title, "lines": {metric: label}, "levels": {}})
        panels = [*by_metric.values()]
    figures = []
    for number, panel in enumerate(panels):
        first = next(iter(panel.lines))
        by_epoch = first.startswith("val/")
        option = panel.option if isinstance(panel, AgainstOption) else ""
        lines: list[Line] = []
        for run, style, letter in zip(runs, styles, letters, strict=True):
            for i, (metric, label) in enumerate(panel.lines.items()):
                if option and metric in run.against:
                    lines.append((*run.against[metric], letter or label, style + i))
                elif not option and (curve := run.curves.get(metric)):
                    x = curve.epochs if by_epoch else curve.steps
                    kept = np.isfinite(x)
                    if np.isfinite(curve.values[kept]).any():
                        lines.append((x[kept], curve.values[kept], letter or label, style + i))
        floor = f"{first}_floor"
        floors = [run.metrics[floor] for run in runs if floor in run.metrics]
        floors += [float(run.against[floor][1][-1]) for run in runs if floor in run.against]
        levels = panel.levels | ({"real": float(np.mean(floors))} if floors else {})
        if lines:
            x_label = option or ("epoch, from 0" if by_epoch else "batches")
            figures.append((panel, _draw(panel, x_label, lines, levels, number, bands=len(runs) == 1)))
    return figures


def dashes(style: int) -> str:
    """The dash of a line as CSS has it."""
    dash = DASHES[style // len(COLOURS) % len(DASHES)]
    return "none" if dash == "solid" else " ".join(str(2 * length) for length in dash[1])


def _draw(
    panel: Panel, x_label: str, lines: Sequence[Line], levels: Mapping[str, float], number: int, bands: bool
) -> str:
    """Lines, and horizontal lines at `levels`; `bands`: those of many points from their lowest to their highest."""
    heights = np.concatenate([*(y[np.isfinite(y)] for _, y, _, _ in lines), list(levels.values())])
    ends = [(height, label, {"color": INK}) for label, height in levels.items()]
    words = []
    with mpl_style.context(["default", STYLE]):
        drawing = mpl.Figure()
        axes = drawing.add_axes((0.125, 0.165, 0.69, 0.72))
        axes.set_title(panel.unit, pad=7, x=-0.12)
        axes.set_xlabel(x_label)
        if isinstance(panel, AgainstOption):  # its values double, or nearly so
            measured = sorted({float(each) for x, _, _, _ in lines for each in x})
            axes.set_xscale("symlog", base=2, linthresh=1)
            axes.set_xticks(measured[:20], [f"{each:g}" for each in measured[:20]])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.log and heights.min() > 0 and heights.max() > 5 * heights.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if heights.max() < 500 * heights.min() else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        elif panel.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        # All alike: a shorter curve would otherwise look rougher than a longer one.
        coarse = any(len(x) > 150 for x, _, _, _ in lines)
        for x, y, label, style in lines:
            known = np.isfinite(y)
            start, end = (f"{y[known][i]:.3g} at {x[known][i]:,.10g}" for i in (0, -1))
            words.append(f"{label}: from {start} to {end} ({x_label})")
            colour, dash = COLOURS[style % len(COLOURS)], DASHES[style // len(COLOURS) % len(DASHES)]
            if coarse and len(x) > STRETCHES:
                rows = []
                for some_x, some_y in zip(np.array_split(x, STRETCHES), np.array_split(y, STRETCHES), strict=True):
                    part = some_y[np.isfinite(some_y)]
                    of_y = (part.mean(), part.min(), part.max()) if len(part) else [math.nan] * 3
                    rows.append((some_x.mean(), *of_y))
                x, y, low, high = np.array(rows).T
                if bands:
                    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, y, color=colour, linestyle=dash, marker="o" if len(x) <= 30 else None)
            if len(lines) <= 12:  # more labels would not fit
                ends.append((float(y[np.isfinite(y)][-1]), label, {"color": colour, "weight": "bold"}))
        for label, height in levels.items():
            words.append(f"{label}: {height:.3g}")
            axes.axhline(height, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        _label_ends(axes, ends)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue(), panel.title, "; ".join(words) + ".", number)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, dict[str, str]]]) -> None:
    """Writes labels beside the ends of lines, none over another: in a legend, runs of a group would look the same."""
    axes.autoscale_view()  # else the limits are set only when it is drawn
    height = axes.bbox.height * 72 / axes.figure.dpi
    to_axes = axes.transData + axes.transAxes.inverted()
    lowest = 0.0
    for i, (y, text, look) in enumerate(sorted(ends, key=lambda end: end[0])):
        highest = height - LABEL_HEIGHT * (len(ends) - 1 - i)
        place = max(min(to_axes.transform((0, y))[1] * height, highest), lowest)
        lowest = place + LABEL_HEIGHT
        axes.text(1.015, place / height, text, transform=axes.transAxes, va="center", fontsize=9, **look)


def _for_page(svg: str, title: str, words: str, number: int) -> str:
    """Matplotlib's SVG as part of a page: its names its own, its colours the page's, nothing else's style touched."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>f{number}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    svg = svg.replace(INK, "var(--ink-2)").replace(GRID, "var(--rule)")
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--line-{i})")
    box, drawing = re.search(r'<svg[^>]* viewBox="([^"]+)"[^>]*>(.*)', svg, re.DOTALL).groups()  # type: ignore[union-attr]
    return (
        f'<svg class="chart" role="img" viewBox="{box}" aria-labelledby="f{number}-title f{number}-desc">'
        f'<title id="f{number}-title">{html.escape(title)}</title><desc id="f{number}-desc">{html.escape(words)}</desc>'
        f"{drawing}"
    )
