"""Many images as one picture. No torch is needed for it."""

import numpy as np

BORDER = 2  # black pixels around each image


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
