"""From a model's output to pixels."""

import numpy as np
from torch import Tensor

from src.pictures.grid import grid


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 of the same shape, rounded to the nearest of 256 levels."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).byte()


def to_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> one picture uint8 [H', W', 3], row by row."""
    return grid(to_pixels(images).permute(0, 2, 3, 1).cpu().numpy(), columns)
