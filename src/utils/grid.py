"""Many images as one picture. No torch is needed for it."""

import numpy as np

BORDER = 2  # black pixels around each image


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 [N, H, W, C], grey or in colour -> one picture uint8 [H', W', 3], row by row; N is at least 1."""
    n, height, width, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    picture = np.zeros((rows * (height + BORDER) + BORDER, columns * (width + BORDER) + BORDER, 3), np.uint8)
    for i, image in enumerate(images):
        top = BORDER + i // columns * (height + BORDER)
        left = BORDER + i % columns * (width + BORDER)
        picture[top : top + height, left : left + width] = image  # one channel becomes three
    return picture
