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


def encode(
    form: str,
    images: np.ndarray,
    labels: np.ndarray,
    n: int,
    class_names: Sequence[str],
    prompts: Sequence[str] | None = None,
) -> bytes:
    """The images as one file, with the names of their classes, or the prompts that they were drawn from.

    Args:
        form: `png`: one picture with a row for each label or prompt, which are in its text `classes` or `prompts`, from
            top to bottom as JSON; `zip`: a PNG for each image in a folder for each class or prompt, and
            `metadata.jsonl` with these; `npz`: `images`, and `prompts` for each of them, or `labels` and the names of
            all classes in `class_names`.
        images: uint8 [N, H, W, C].
        labels: int64 [N]; not used where there are prompts.
        n: images of each label or prompt.
        prompts: as they were typed; None: classes were drawn.
    """
    rows, names = (labels, class_names) if prompts is None else (np.arange(len(images)) // n, prompts)
    kind = "classes" if prompts is None else "prompts"
    if form == "png":
        shown = [names[row] for row in rows[::n].tolist()]
        if len(images) == 1:
            return png(images[0], kind, shown)
        columns = math.ceil(math.sqrt(n)) if len(images) == n else n
        return png(grid(images, columns, channels=images.shape[3]), kind, shown)
    buffer = io.BytesIO()
    if form == "npz":
        # Text of one width needs no pickle.
        texts = np.array(names, np.str_)
        told = {"labels": labels, "class_names": texts} if prompts is None else {"prompts": texts[rows]}
        np.savez(buffer, images=images, **told)  # not compressed: that would take longer than drawing
        return buffer.getvalue()
    folders = folder_names(names)
    table = []
    with zipfile.ZipFile(buffer, "w") as file:
        for i, (image, row) in enumerate(zip(images, rows.tolist(), strict=True)):
            name = f"{folders[row]}/{i:05}.png"
            table.append(metadata_row(name, names[row], is_prompt=prompts is not None))
            # A date of their own would make other bytes of the same images.
            file.writestr(zipfile.ZipInfo(name), png(image, kind, [names[row]]))
        file.writestr(zipfile.ZipInfo("metadata.jsonl"), "".join(table))
    return buffer.getvalue()


def png(image: np.ndarray, kind: str, shown: list[str]) -> bytes:
    """One image uint8 [H, W, C], grey or in colour, as PNG that says in its text `kind` what it shows."""
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text(kind, json.dumps(shown))  # ASCII, which every reader of PNG can read
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    # Runs are all that it looks for: twice as fast as the default, and no larger.
    picture.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
    return buffer.getvalue()
