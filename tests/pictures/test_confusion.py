"""Pictures that people read."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.pictures.confusion import CELL, FULL, MARGIN, PAPER, draw_confusion, drawable, fitted


def corner(picture: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    """The colour of a cell, beside its number."""
    return tuple(picture[MARGIN + CELL * row + 3, MARGIN + CELL * column + 3].tolist())


def test_a_cell_is_as_dark_as_its_share_of_the_row() -> None:
    picture = draw_confusion(np.array([[10, 0], [300, 100]]), ["real", "generated"], "a\nb")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert corner(picture, 0, 0) == FULL
    assert corner(picture, 0, 1) == PAPER
    assert sum(FULL) < sum(corner(picture, 1, 0)) < sum(corner(picture, 1, 1)) < sum(PAPER)
    empty = draw_confusion(np.array([[0, 0], [0, 5]]), ["a", "b"], "")  # a class without images
    assert corner(empty, 0, 0) == corner(empty, 0, 1) == PAPER


def test_a_long_name_is_cut_to_its_place() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(13)
    assert fitted("cat", 80, draw, font) == "cat"
    short = fitted("a very long name of a class", 80, draw, font)
    assert short.startswith("a very") and short.endswith("…") and draw.textlength(short, font) <= 80


def test_a_name_that_the_font_lacks_is_a_number() -> None:
    names = ["naïve", "猫", "a #1 & co", "😀 x", "été", ""]
    assert drawable(names) == ["#0 naive", "#1", "a #1 & co", "#3  x", "#4 ete", ""]
    counts = np.eye(2)
    assert np.array_equal(draw_confusion(counts, ["a", "猫"], "t"), draw_confusion(counts, ["a", "#1"], "t"))
