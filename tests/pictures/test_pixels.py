"""Pixels are rounded, not cut off, and stand where the grid says."""

import numpy as np
import torch

from src.pictures.grid import to_uint8
from src.pictures.pixels import to_grid, to_pixels


def test_every_level_survives() -> None:
    levels = torch.arange(256)
    images = (levels / 127.5 - 1).view(256, 1, 1, 1)
    assert to_pixels(images).dtype == torch.uint8
    assert to_pixels(images).flatten().tolist() == to_uint8(images.numpy()).flatten().tolist() == levels.tolist()


def test_between_levels_the_nearest_wins_and_the_range_is_kept() -> None:
    images = torch.tensor([-1.0, 1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, -1.5, 7.0]).view(6, 1, 1, 1)
    for pixels in (to_pixels(images), to_uint8(images.numpy())):
        assert pixels.flatten().tolist() == [0, 255, 0, 1, 0, 255]


def test_channels_come_last() -> None:
    images = torch.full((2, 3, 4, 5), -1.0)
    images[1, 2, 3, 4] = 1
    pixels = to_uint8(images.numpy())
    assert pixels.dtype == np.uint8 and pixels.shape == (2, 4, 5, 3)
    assert np.argwhere(pixels).tolist() == [[1, 3, 4, 2]]


def test_a_grid_is_filled_row_by_row() -> None:
    images = (torch.arange(5) / 127.5 - 1 + 100 / 127.5).view(5, 1, 1, 1).expand(5, 1, 3, 4)  # levels 100 to 104
    grid = to_grid(images, columns=3)
    assert grid.dtype == np.uint8 and grid.shape == (2 * 3 + 3 * 2, 3 * 4 + 4 * 2, 3)
    rows = [grid[2:5], grid[7:10]]
    cells = [[row[:, x : x + 4] for x in (2, 8, 14)] for row in rows]
    assert [[np.unique(cell).tolist() for cell in row] for row in cells] == [[[100], [101], [102]], [[103], [104], [0]]]
    inside = sum(cell.astype(int).sum() for row in cells for cell in row)
    assert grid.astype(int).sum() == inside  # the border is black


def test_a_grid_keeps_colours() -> None:
    red_blue = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]).view(2, 3, 1, 1)
    grid = to_grid(red_blue, columns=2)
    assert [grid[2, 2].tolist(), grid[2, 5].tolist()] == [[255, 0, 0], [0, 0, 255]]
