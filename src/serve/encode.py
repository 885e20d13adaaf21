"""Images as files of the formats that a request can ask for."""

import io
import json
import math
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from src.pictures.grid import grid
from src.sampling.labels import folder_names, metadata_row

# What the files are called, and their media types.
FORMATS = {
    "png": ("samples.png", "image/png"),
    "zip": ("samples.zip", "application/zip"),
    "npz": ("samples.npz", "application/x-npz"),
}


def encode(form: str, images: np.ndarray, labels: np.ndarray, n: int, class_names: Sequence[str]) -> bytes:
    """The images as one file, with the names of their classes.

    Args:
        form: `png`: one picture with a row for each label, and their names from top to bottom as JSON in its text
            `classes`; `zip`: a PNG for each image in a folder for each class, and `metadata.jsonl` with the labels;
            `npz`: `images`, `labels` and the names of all classes in `class_names`.
        images: uint8 [N, H, W, C].
        n: images of each label.
    """
    if form == "png":
        shown = [class_names[label] for label in labels[::n]]
        if len(images) == 1:
            return png(images[0], shown)
        columns = math.ceil(math.sqrt(n)) if len(images) == n else n
        return png(grid(images, columns, channels=images.shape[3]), shown)
    buffer = io.BytesIO()
    if form == "npz":
        # Not compressed: that would take longer than drawing. Names are text of one width, which needs no pickle.
        np.savez(buffer, images=images, labels=labels, class_names=np.array(class_names, np.str_))
        return buffer.getvalue()
    folders = folder_names(class_names)
    rows = []
    with zipfile.ZipFile(buffer, "w") as file:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name, class_name = f"{folders[label]}/{i:05}.png", class_names[label]
            rows.append(metadata_row(name, class_name))
            # A date of their own would make other bytes of the same images.
            file.writestr(zipfile.ZipInfo(name), png(image, [class_name]))
        file.writestr(zipfile.ZipInfo("metadata.jsonl"), "".join(rows))
    return buffer.getvalue()


def png(image: np.ndarray, classes: list[str]) -> bytes:
    """One image uint8 [H, W, C], grey or in colour, as PNG that says which classes it shows."""
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text("classes", json.dumps(classes))  # ASCII, which every reader of PNG can read
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    # Runs are all that it looks for: twice as fast as the default, and no larger.
    picture.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
    return buffer.getvalue()
