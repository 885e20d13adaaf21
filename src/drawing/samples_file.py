"""`samples.npz`, written as it is drawn."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write_samples(path: Path, shape: tuple[int, ...], parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes `images` uint8 [N, H, W, C] and `labels` int64 [N] to a `.npz` part by part, in bounded memory.

    The same images and labels are the same bytes, whatever the parts. The file appears under its name when it is whole.

    Args:
        path: of the file.
        shape: of all images, [N, H, W, C].
        parts: images and labels, N in all.

    Raises:
        OSError: they cannot be written; what was there before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    labels = []
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("images.npy", "w", force_zip64=True) as member:
                write_header(member, np.uint8, shape)
                for images, its_labels in parts:
                    member.write(images.tobytes())
                    labels.append(its_labels.astype(np.int64))
            with archive.open("labels.npy", "w", force_zip64=True) as member:
                write_header(member, np.int64, shape[:1])
                for each in labels:
                    member.write(each.tobytes())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_header(member: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Begins an array of NumPy's format."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
