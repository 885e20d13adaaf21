"""Images as the files that a request can ask for."""

import io
import math
import zipfile
import zlib

import numpy as np
from PIL import Image

from src.utils.grid import grid

# What the files are called, and their media types.
FORMATS = {
    "png": ("samples.png", "image/png"),
    "zip": ("samples.zip", "application/zip"),
    "npz": ("samples.npz", "application/x-npz"),
}


def encode(form: str, images: np.ndarray, labels: np.ndarray, n: int, n_classes: int) -> bytes:
    """The images as one file.

    Args:
        form: `png`: one picture, a row a label; `zip`: a PNG an image; `npz`: `images` and `labels` as arrays.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        n: how many are of one label.
        n_classes: that the model knows.
    """
    if form == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=images, labels=labels)  # not compressed: that would take longer than to draw them
        return buffer.getvalue()
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                # Named as task=sample does. A date of their own would make other bytes of the same images.
                name = f"{label:0{len(str(n_classes - 1))}}/{i:05}.png"
                file.writestr(zipfile.ZipInfo(name), png(image))
        return buffer.getvalue()
    if len(images) == 1:
        return png(images[0])
    columns = math.ceil(math.sqrt(n)) if len(images) == n else n
    return png(grid(images, columns, channels=images.shape[3]))


def png(image: np.ndarray) -> bytes:
    """One image uint8 [H, W, C], grey or in colour, as PNG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    # Runs are all that it looks for: twice as fast as the default, and no larger.
    picture.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
