"""Curves, drawn as SVG that takes its colours from the page."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import figure as mpl
from matplotlib import style
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from src.report.run_folder import Panel

# Points of a curve above which a figure's curves are drawn as the means of so many stretches.
MANY = 150
STRETCHES = 60
INK, GRID = "#0a0b01", "#0a0b02"  # stand for colours that the page sets
COLOURS = 5  # that can be told apart by people who do not see all colours; further ones repeat in another dash
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MAX_LABELS = 12
LABEL_HEIGHT = 11.0  # points
STYLE = {
    "text.parse_math": False,  # labels may be anybody's
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure is the same text
    "figure.figsize": (4.5, 2.8),  # inches
    "figure.facecolor": "none",  # the page's own paper shows
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0,
}


@dataclass(frozen=True)
class Line:
    """One curve; a NaN in `y` leaves a gap. The same style, a colour and a dash, is the same in all figures."""

    x: np.ndarray  # [N]
    y: np.ndarray  # [N]
    label: str  # a few letters at its end
    style: int


@dataclass(frozen=True)
class Figure:
    """A finished figure: what it shows, how to read it, and the drawing, which is safe to be part of a page."""

    title: str
    note: str
    svg: str


def draw(
    panel: Panel, x_label: str, lines: Sequence[Line], levels: Mapping[str, float], number: int, bands: bool
) -> Figure | None:
    """Lines over a common axis; None where none has a point.

    Args:
        panel: the texts around them, and the vertical axis.
        x_label: what is to the right, with its unit.
        lines: at most some tens.
        levels: horizontal lines by their labels.
        number: of the figure on the page, so that names in the drawing differ.
        bands: whether a curve of many points has a band from its lowest to its highest.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return None
    heights = np.concatenate([*(line.y[np.isfinite(line.y)] for line in lines), list(levels.values())])
    with style.context(["default", STYLE]):
        drawing = mpl.Figure()
        axes = drawing.add_axes((0.125, 0.165, 0.69, 0.72))
        axes.set_title(panel.unit, pad=7, x=-0.12)
        axes.set_xlabel(x_label)
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
        coarse = any(len(line.x) > MANY for line in lines)
        ends = [(height, label, {"color": INK}) for label, height in levels.items()]
        for line in lines:
            last = _draw_line(axes, line, coarse and len(line.x) > STRETCHES, bands)
            if len(lines) <= MAX_LABELS:
                ends.append((last, line.label, {"color": _colour(line.style), "weight": "bold"}))
        for height in levels.values():
            axes.axhline(height, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        _label_ends(axes, ends)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    words = _in_words(lines, levels, x_label)
    return Figure(panel.title, panel.note, _for_page(buffer.getvalue(), panel.title, words, number))


def dashes(line_style: int) -> str:
    """The dash of a line as CSS has it."""
    dash = DASHES[line_style // COLOURS % len(DASHES)]
    return "none" if dash == "solid" else " ".join(str(2 * length) for length in dash[1])


def _colour(line_style: int) -> str:
    return f"#0a0c{line_style % COLOURS:02x}"


def _draw_line(axes: Any, line: Line, coarse: bool, band: bool) -> float:
    """Draws a curve, and returns the height of its end."""
    colour, dash = _colour(line.style), DASHES[line.style // COLOURS % len(DASHES)]
    x, y = line.x, line.y
    if coarse:
        parts = zip(np.array_split(x, STRETCHES), np.array_split(y, STRETCHES), strict=True)
        known = [(px.mean(), py[np.isfinite(py)]) for px, py in parts]
        rows = [(at, part.mean(), part.min(), part.max()) if len(part) else (at, *[math.nan] * 3) for at, part in known]
        x, y, low, high = np.array(rows).T
        if band:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=colour, linestyle=dash, marker="o" if len(x) <= 30 else None)
    return float(y[np.isfinite(y)][-1])


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, dict[str, str]]]) -> None:
    """Writes labels beside the ends of lines, from the lowest up, each above the one before it and all within the axes.

    A legend would not do, as runs of a group share a colour and a dash.
    """
    axes.autoscale_view()  # else the limits are set only when it is drawn
    height = axes.bbox.height * 72 / axes.figure.dpi
    to_axes = axes.transData + axes.transAxes.inverted()
    lowest = 0.0
    for i, (y, text, look) in enumerate(sorted(ends, key=lambda end: end[0])):
        highest = height - LABEL_HEIGHT * (len(ends) - 1 - i)
        place = max(min(to_axes.transform((0, y))[1] * height, highest), lowest)
        lowest = place + LABEL_HEIGHT
        axes.text(1.015, place / height, text, transform=axes.transAxes, va="center", fontsize=9, **look)


def _in_words(lines: Sequence[Line], levels: Mapping[str, float], x_label: str) -> str:
    """The figure for those who cannot see it."""
    said = []
    for line in lines:
        kept = np.isfinite(line.y)
        x, y = line.x[kept], line.y[kept]
        said.append(f"{line.label}: from {y[0]:.3g} at {x[0]:,.0f} to {y[-1]:.3g} at {x[-1]:,.0f} ({x_label})")
    said += [f"{label}: {height:.3g}" for label, height in levels.items()]
    return "; ".join(said) + "."


def _for_page(svg: str, title: str, words: str, number: int) -> str:
    """Matplotlib's SVG as part of a page: its names its own, its colours the page's, nothing else's style touched."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>f{number}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    svg = svg.replace(INK, "var(--ink-2)").replace(GRID, "var(--rule)")
    for i in range(COLOURS):
        svg = svg.replace(_colour(i), f"var(--line-{i})")
    box, drawing = re.search(r'<svg[^>]* viewBox="([^"]+)"[^>]*>(.*)', svg, re.DOTALL).groups()  # type: ignore[union-attr]
    return (
        f'<svg class="chart" role="img" viewBox="{box}" aria-labelledby="f{number}-title f{number}-desc">'
        f'<title id="f{number}-title">{html.escape(title)}</title><desc id="f{number}-desc">{html.escape(words)}</desc>'
        f"{drawing}"
    )
