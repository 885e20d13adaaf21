"""Curves, drawn as SVG that takes its colours from the page."""

import html
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Points of a curve above which a figure's curves are drawn as the means of so many stretches.
MANY = 150
STRETCHES = 60
SIZE = (4.5, 2.8)  # inches
INK, GRID = "#0a0b01", "#0a0b02"  # stand for colours that the page sets
COLOURS = 5  # that can be told apart by people who do not see all colours; further ones repeat in another dash
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MAX_LABELS = 12


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        x: [N].
        y: [N]; NaN leaves a gap.
        label: a few letters at its end.
        style: which colour and dash; the same number looks the same in all figures.
    """

    x: np.ndarray
    y: np.ndarray
    label: str
    style: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as a floor."""

    y: float
    label: str


@dataclass(frozen=True)
class Figure:
    """A finished figure.

    Attributes:
        title: what it shows.
        note: how to read it; direction, floor.
        svg: the drawing, safe to be part of a page.
    """

    title: str
    note: str
    svg: str


def draw(
    title: str,
    note: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    log: bool = False,
    percent: bool = False,
    bands: bool = True,
    number: int = 0,
) -> Figure | None:
    """Lines over a common axis; None where none has a point.

    Args:
        title: what it shows.
        note: how to read it.
        lines: at most some tens.
        x_label: what is to the right, with its unit.
        y_label: what is upwards, with its unit.
        levels: horizontal lines.
        log: whether the vertical axis is logarithmic, if all values are positive.
        percent: whether values are shares, to be written as percentages.
        bands: whether a curve of many points has a band from its lowest to its highest.
        number: of the figure on the page, so that names in the drawing differ.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    log = log and bool((finite > 0).all()) and finite.max() > 5 * finite.min()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's own settings are
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10})
        drawing = Drawing(figsize=SIZE)
        FigureCanvasSVG(drawing)
        axes = drawing.add_axes((0.125, 0.165, 0.69, 0.72))
        drawing.patch.set_visible(False)  # the page's own paper shows
        axes.patch.set_visible(False)
        # All alike: a shorter curve would otherwise look rougher than a longer one.
        coarse = any(len(line.x) > MANY for line in lines)
        for line in lines:
            _draw_line(axes, line, coarse and len(line.x) > STRETCHES, bands)
        for level in levels:
            axes.axhline(level.y, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        if log:
            axes.set_yscale("log")
            _log_ticks(axes, [*finite, *(level.y for level in levels if level.y > 0)])
        elif percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        _axes_style(axes, MaxNLocator, FuncFormatter)
        axes.set_xlabel(x_label, color=INK)
        axes.set_title(y_label, loc="left", fontsize=10, color=INK, pad=7, x=-0.12)
        axes.get_ylim()  # sets the limits, which labels are placed by
        _label_ends(axes, lines, levels)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Figure(title, note, _for_page(buffer.getvalue(), title, _in_words(lines, levels, x_label), number))


def swatch(style: int) -> str:
    """A piece of a line of this style, for a legend."""
    dash = DASHES[style // COLOURS % len(DASHES)]
    pattern = "" if dash == "solid" else " ".join(str(2 * length) for length in dash[1])
    return (
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4"'
        f' style="stroke: var(--line-{style % COLOURS}); stroke-dasharray: {pattern or "none"}"/></svg>'
    )


def _draw_line(axes: Any, line: Line, coarse: bool, band: bool) -> None:
    colour = _colour(line.style)
    dash = DASHES[line.style // COLOURS % len(DASHES)]
    x, y = line.x, line.y
    if coarse:
        x, y, low, high = _in_stretches(x, y)
    if coarse and band:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    marker = "o" if len(x) <= 30 else None
    axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, marker=marker, markersize=3.2, markeredgewidth=0)


def _in_stretches(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of `STRETCHES` stretches of a curve, their lowest and their highest."""
    parts = [
        (px.mean(), py[np.isfinite(py)])
        for px, py in zip(np.array_split(x, STRETCHES), np.array_split(y, STRETCHES), strict=True)
    ]
    rows = [(at, some.mean(), some.min(), some.max()) if len(some) else (at, *[math.nan] * 3) for at, some in parts]
    return tuple(np.array(rows).T)


def _colour(style: int) -> str:
    return f"#0a0c{style % COLOURS:02x}"


def _axes_style(axes: Any, locator: Any, formatter: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, colors=INK, labelcolor=INK)
    axes.tick_params(axis="x", colors=INK, labelcolor=INK)
    axes.minorticks_off()
    axes.xaxis.set_major_locator(locator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(formatter(lambda x, _: f"{x / 1000:g}k" if x >= 10_000 else f"{x:g}"))
    axes.margins(x=0.02)


def _log_ticks(axes: Any, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 of each power of ten, or at the powers alone where those are many, in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    if len(ticks) > 9:
        ticks = ticks[:: math.ceil(len(ticks) / 7)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(low / 1.2, high * 1.2)


def _label_ends(axes: Any, lines: Sequence[Line], levels: Sequence[Level]) -> None:
    """Writes each line's label at its right end, moved apart where they would touch."""
    ends = []
    for line in lines if len(lines) <= MAX_LABELS else ():
        y = line.y if len(line.y) <= MANY else _in_stretches(line.x, line.y)[1]
        last = y[np.isfinite(y)][-1]
        ends.append((last, line.label, _colour(line.style), "bold"))
    ends += [(level.y, level.label, INK, "normal") for level in levels]
    height = axes.bbox.height * 72 / axes.figure.dpi
    places = [axes.transAxes.inverted().transform(axes.transData.transform((0, end[0])))[1] * height for end in ends]
    gap = 11.0 if len(ends) <= height / 11 else height / len(ends)
    order = sorted(range(len(ends)), key=lambda i: places[i])
    moved = _apart([min(max(places[i], 0), height) for i in order], gap, height)
    crowded = any(abs(place - places[i]) > gap / 2 for i, place in zip(order, moved, strict=True))
    for i, place in zip(order, moved, strict=True):
        _, text, colour, weight = ends[i]
        if crowded:  # from the line's end to its label
            path = [min(max(places[i], 0), height) / height, place / height]
            axes.plot([1.005, 1.04], path, color=colour, linewidth=0.7, transform=axes.transAxes, clip_on=False)
        axes.annotate(
            text,
            (1, place / height),
            xycoords="axes fraction",
            xytext=(12 if crowded else 3, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            fontweight=weight,
            annotation_clip=False,
        )


def _apart(places: Sequence[float], gap: float, height: float) -> list[float]:
    """Ascending places, moved as little as possible so that neighbours are `gap` apart and all are within `height`."""
    # Each place less its share of the gaps must not fall: pool neighbours that do (isotonic regression).
    blocks: list[tuple[float, int]] = []
    for i, place in enumerate(places):
        block = (place - i * gap, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, n = blocks.pop()
            block = ((mean * n + block[0] * block[1]) / (n + block[1]), n + block[1])
        blocks.append(block)
    flat = list(itertools.chain.from_iterable([mean] * n for mean, n in blocks))
    top = height - (len(places) - 1) * gap
    return [min(max(at, 0), max(top, 0)) + i * gap for i, at in enumerate(flat)]


def _in_words(lines: Sequence[Line], levels: Sequence[Level], x_label: str) -> str:
    """The figure for those who cannot see it."""
    said = []
    for line in lines:
        kept = np.isfinite(line.y)
        x, y = line.x[kept], line.y[kept]
        said.append(f"{line.label}: from {y[0]:.3g} at {x[0]:,.0f} to {y[-1]:.3g} at {x[-1]:,.0f} ({x_label})")
    said += [f"{level.label}: {level.y:.3g}" for level in levels]
    return "; ".join(said) + "."


def _for_page(svg: str, title: str, words: str, number: int) -> str:
    """Matplotlib's SVG as part of a page: its names its own, its colours the page's, nothing else's style touched."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>f{number}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    svg = svg.replace(INK, "var(--ink-2)").replace(GRID, "var(--rule)")
    for i in range(COLOURS):
        svg = svg.replace(_colour(i), f"var(--line-{i})")
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    return (
        f'<svg class="chart" role="img" viewBox="{box[1]}" aria-labelledby="f{number}-title f{number}-desc">'
        f'<title id="f{number}-title">{html.escape(title)}</title><desc id="f{number}-desc">{html.escape(words)}</desc>'
        + svg[svg.index(">") + 1 :]
    )
