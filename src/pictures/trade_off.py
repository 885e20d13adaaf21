"""Quality against an option as a picture."""

from collections.abc import Mapping, Sequence

import numpy as np

SHARES = {"label_accuracy": "label accuracy", "precision": "precision", "recall": "recall"}


def draw_trade_off(option: str, rows: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Two panels side by side, uint8 [H, W, 3]: the Frechet distance, and shares of images; dashed: of real images.

    Args:
        option: what is on the horizontal axis; below each of its values stand the `seconds` of 64 images.
        rows: for each value, in rising order, the `option`, `seconds`, `fd`, `label_accuracy`, `precision` and
            `recall`, the last four also with `_floor`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, as it takes half a second
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, PercentFormatter

    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    x = range(len(rows))  # evenly spaced: values double, or nearly so
    distance, shares = figure.subplots(1, 2)
    for axes, lines in [(distance, {"fd": "FD"}), (shares, SHARES)]:
        for name, label in lines.items():
            (line,) = axes.plot(x, [row[name] for row in rows], marker="o", label=label)
            axes.axhline(rows[0][f"{name}_floor"], color=line.get_color(), linestyle="--", linewidth=1)
        axes.set_xticks(x, [f"{row[option]:g}\n{row['seconds']:.2g} s" for row in rows])
        axes.set_xlabel(f"{option}, and seconds for 64 images")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    distance.set_title("Fréchet distance, lower is better; dashed: real images", loc="left", fontsize=10)
    if min(row["fd"] for row in rows) > 0 and rows[0]["fd_floor"] > 0:
        distance.set_yscale("log")
        distance.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        distance.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    shares.set_title("Shares of images, higher is better", loc="left", fontsize=10)
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    shares.legend(frameon=False, fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
