"""Confusion matrices as pictures."""

from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, FONT = 44, 96, 13
INK, PAPER, FULL = (32, 32, 32), (255, 255, 255), (8, 81, 156)
OF_LABELS = "% of images asked for (rows)\nthat the classifier takes for (columns)"


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str = OF_LABELS) -> np.ndarray:
    """How often a row's cases came out as each column [N, N], as a heat map uint8 [H, W, 3] in percent of the row.

    Rows and columns have the same names; `title` has two lines.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = MARGIN + CELL * len(names) + 12
    picture = Image.new("RGB", (max(side, 260), side), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT)
    names = drawable(names)
    draw.multiline_text((8, 6), title, INK, font)
    for j, name in enumerate(names):
        place = MARGIN + CELL * j + CELL // 2, MARGIN - 8 - 15 * (j % 2)
        draw.text(place, fitted(name, 2 * CELL, draw, font), INK, font, anchor="ms")
    for i, name in enumerate(names):
        top = MARGIN + CELL * i
        draw.text((MARGIN - 8, top + CELL // 2), fitted(name, MARGIN - 12, draw, font), INK, font, anchor="rm")
        for j in range(len(names)):
            left, share = MARGIN + CELL * j, float(shares[i, j])
            colour = tuple(round(p + (f - p) * share**0.5) for p, f in zip(PAPER, FULL, strict=True))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=colour)
            if counts[i, j]:
                text = f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"
                centre, ink = (left + CELL // 2 - 1, top + CELL // 2 - 1), PAPER if share > 0.3 else INK
                draw.text(centre, text, ink, font, anchor="mm")
    return np.asarray(picture)


def drawable(names: Sequence[str]) -> list[str]:
    """The names of classes; those with characters beyond Pillow's font as `#NUMBER` and what is left of them."""
    plain = [normalize("NFKD", name).encode("ascii", "ignore").decode() for name in names]
    return [name if name.isascii() else f"#{i} {plain[i]}".strip() for i, name in enumerate(names)]


def fitted(name: str, width: float, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """`name`, cut where it is wider than `width` pixels."""
    shown = name
    while name and draw.textlength(shown, font) > width:
        name = name[:-1]
        shown = f"{name}…"
    return shown
