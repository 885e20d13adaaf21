"""Images as the files that a request can ask for."""

import io
import math
import zipfile

import numpy as np
from PIL import Image

from src.utils.grid import grid

# What the files are called, and their media types.
FORMATS = {
    "png": ("samples.png", "image/png"),
    "zip": ("samples.zip", "application/zip"),
    "npz": ("samples.npz", "application/x-npz"),
}


def encode(form: str, images: np.ndarray, labels: np.ndarray, n: int) -> bytes:
    """The images as one file.

    Args:
        form: `png`: one picture, a row a label; `zip`: a PNG an image; `npz`: `images` and `labels` as arrays.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        n: how many are of one label.
    """
    if form == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=images, labels=labels)  # not compressed: that would take longer than to draw them
        return buffer.getvalue()
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                # A date of their own would make other bytes of the same images.
                file.writestr(zipfile.ZipInfo(f"{i:05d}_{label}.png"), png(image))
        return buffer.getvalue()
    if len(images) == 1:
        return png(images[0])
    columns = math.ceil(math.sqrt(n)) if len(images) == n else n
    return png(grid(images, columns)[..., : images.shape[3]])  # one channel where it has but one


def png(image: np.ndarray) -> bytes:
    """One image uint8 [H, W, C], grey or in colour, as PNG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(buffer, "PNG", compress_level=1)  # three times as fast as the default, a tenth larger
    return buffer.getvalue()
