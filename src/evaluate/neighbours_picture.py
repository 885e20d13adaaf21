"""Images beside the training images that are most like them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.pictures.confusion import FONT, INK, PAPER, fitted

CELL, GAP, LEFT, TOP = 58, 12, 92, 84
GREY = (110, 110, 110)


class Row(NamedTuple):
    """An image uint8 [H, W, C], its class, its nearest training images [K, H, W, C], and its `closeness`."""

    image: np.ndarray
    name: str
    neighbours: np.ndarray
    closeness: float


def draw_neighbours(panels: Sequence[tuple[str, Sequence[Row]]]) -> np.ndarray:
    """Panels side by side, each with a title of up to four lines and its rows, as uint8 [H, W, 3]."""
    n_neighbours = max(len(row.neighbours) for _, rows in panels for row in rows)
    width = LEFT + CELL + GAP + n_neighbours * CELL + 2 * GAP
    height = TOP + max(len(rows) for _, rows in panels) * CELL + GAP
    picture = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT)
    for number, (title, rows) in enumerate(panels):
        left = GAP + width * number
        draw.multiline_text((left, 6), title, INK, font)
        for i, row in enumerate(rows):
            top = TOP + CELL * i
            draw.text((left, top + CELL // 2 - 9), fitted(row.name, LEFT - 12, draw, font), INK, font, anchor="lm")
            draw.text((left, top + CELL // 2 + 9), f"{row.closeness:.2f}", GREY, font, anchor="lm")
            picture.paste(enlarged(row.image), (left + LEFT, top))
            for k, neighbour in enumerate(row.neighbours):
                picture.paste(enlarged(neighbour), (left + LEFT + CELL + GAP + k * CELL, top))
    return np.asarray(picture)


def enlarged(image: np.ndarray) -> Image.Image:
    """An image uint8 [H, W, C] as large as its cell, pixel by pixel where it is smaller."""
    side = CELL - 2
    colour = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    return colour.resize((side, side), Image.Resampling.BOX if image.shape[0] < side else Image.Resampling.LANCZOS)
