"""A grid of images with the prompt of each row beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.pictures.confusion import FONT, INK, PAPER, drawable, fitted

WIDTH = 260  # pixels of text, at most
GAP, LINE = 8, 15  # pixels: around the text, and from one line to the next


def beside_rows(picture: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """A grid uint8 [H, W, 3] of one row a prompt, with the prompts at its left: uint8 [H', W', 3].

    A prompt has as many lines as fit beside its row. What does not fit is cut.
    """
    font = ImageFont.load_default(FONT)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    n_lines = max(1, len(picture) // len(prompts) // LINE)
    texts = [_in_lines(prompt, n_lines, pen, font) for prompt in drawable(prompts)]
    width = 2 * GAP + round(max(pen.textlength(line, font) for lines in texts for line in lines))
    height = max(len(picture), LINE * len(prompts))
    drawn = Image.new("RGB", (width + picture.shape[1], height), PAPER)
    drawn.paste(Image.fromarray(picture), (width, 0))
    pen = ImageDraw.Draw(drawn)
    for row, lines in enumerate(texts):
        middle = len(picture) * (row + 0.5) / len(prompts) - LINE * (len(lines) - 1) / 2
        for i, line in enumerate(lines):
            pen.text((width - GAP, middle + LINE * i), line, INK, font, anchor="rm")
    return np.asarray(drawn)


def _in_lines(text: str, n: int, pen: ImageDraw.ImageDraw, font: Any) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(lines) == n or not lines[-1] or pen.textlength(longer, font) <= WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fitted(line, WIDTH, pen, font) for line in lines]
