"""Prompts stand beside their rows."""

import numpy as np
import pytest

from src.pictures.confusion import PAPER
from src.pictures.prompts import WIDTH, beside_rows


def inked(picture: np.ndarray, grid: np.ndarray) -> list[int]:
    """The rows of pixels that have text."""
    text = picture[:, : picture.shape[1] - grid.shape[1]]
    return (text != PAPER).any(axis=(1, 2)).nonzero()[0].tolist()


def test_a_prompt_stands_beside_its_row() -> None:
    grid = np.random.default_rng(0).integers(0, 255, (122, 70, 3), np.uint8)
    picture = beside_rows(grid, ["a", "", "b", ""])
    assert np.array_equal(picture[:, -70:], grid)
    rows = inked(picture, grid)
    assert {row // 30 for row in rows} == {0, 2}
    assert np.array_equal(beside_rows(grid, ["猫", "", "", ""]), beside_rows(grid, ["#0", "", "", ""]))


@pytest.mark.parametrize(("height", "lines"), [(20, 1), (40, 2), (100, 4)])
def test_a_long_prompt_has_lines_as_there_is_room_and_is_cut(height: int, lines: int) -> None:
    grid = np.zeros((height, 50, 3), np.uint8)
    picture = beside_rows(grid, ["many words " * 12])
    assert WIDTH - 80 < picture.shape[1] - 50 <= WIDTH + 16
    rows = inked(picture, grid)
    assert rows[-1] - rows[0] == pytest.approx(15 * (lines - 1) + 12, abs=3)
    assert picture.shape[0] == height


def test_rows_lower_than_a_line_make_the_picture_higher() -> None:
    grid = np.zeros((20, 10, 3), np.uint8)
    assert beside_rows(grid, ["a", "b", "c"]).shape[0] == 45
