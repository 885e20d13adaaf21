"""Images of NumPy as pixels, and many of them as one picture. It needs no torch."""

import numpy as np

BORDER = 2  # black pixels around each image


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images float32 [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C], rounded to the nearest of 256 levels."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(images: np.ndarray, columns: int, channels: int = 3) -> np.ndarray:
    """Images uint8 [N, H, W, C] -> one picture uint8 [H', W', channels], row by row; N is at least 1.

    Grey images are drawn in colour, or stay grey where one channel is asked for.
    """
    n, height, width, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    height, width = height + BORDER, width + BORDER
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:n, BORDER:, BORDER:] = images  # one channel becomes several
    picture = np.zeros((rows * height + BORDER, columns * width + BORDER, channels), np.uint8)
    side_by_side = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    picture[:-BORDER, :-BORDER] = side_by_side.reshape(rows * height, columns * width, channels)
    return picture
