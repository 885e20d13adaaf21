"""`samples.npz`: written as it is drawn, and read without trusting it."""

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from src.errors import UserError
from src.run.files import atomic_write

LARGEST_SIDE = 256  # pixels
MOST_IMAGES = 10_000_000
MOST_BYTES = 2**36
AT_ONCE = 2**24  # bytes that are decompressed at a time
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy writes
TO_UINT8 = "save ((images + 1) * 127.5).round().astype('uint8') where they are in [-1, 1], or images * 255 of [0, 1]"


def write_samples(
    path: Path, shape: tuple[int, ...], parts: Iterable[tuple[np.ndarray, np.ndarray]], prompts: bool = False
) -> None:
    """Writes `images` uint8 [N, H, W, C] and `labels` int64 [N] to a `.npz` part by part, in bounded memory.

    The same images and labels are the same bytes, whatever the parts. The file appears under its name when it is whole.
    With `prompts`, what belongs to the images is text, all of one dtype, and is called `prompts`.

    Args:
        path: the file.
        shape: shape of all images, [N, H, W, C].
        parts: images and labels, N in all.

    Raises:
        UserError: they cannot be written; what was there before stays.
    """
    texts = []
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(member, header)
            for images, its_texts in parts:
                member.write(images.tobytes())
                texts.append(its_texts if prompts else its_texts.astype(np.int64))
        with archive.open("prompts.npy" if prompts else "labels.npy", "w", force_zip64=True) as member:
            header = {"descr": texts[0].dtype.str, "fortran_order": False, "shape": shape[:1]}
            npy.write_array_header_1_0(member, header)
            for each in texts:
                member.write(each.tobytes())


class SamplesFile:
    """Images uint8 [N, H, W, C] and labels int64 [N], as `task=sample` writes them.

    No size is believed before it is checked, nothing is unpickled, and images are read a part at a time.

    Args:
        path: the file.

    Raises:
        UserError: it is damaged, or holds something else.

    Attributes:
        labels: int64 [N].
        shape: (N, H, W, C); H and W are the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as archive:
            with self._array(archive, "images") as (_, shape, dtype):
                self.shape = self._checked_shape(shape, dtype)
            with self._array(archive, "labels") as (file, shape, dtype):
                if dtype.kind not in "iu":
                    raise self._refused(f"has labels of {dtype}", "save them as int64, one whole number an image")
                if shape != self.shape[:1]:
                    raise self._refused(
                        f"has {self.shape[0]} images, but labels of shape {list(shape)}", "save one label an image"
                    )
                labels = np.frombuffer(read_fully(file, self.shape[0] * dtype.itemsize), dtype)
        if labels.min() < 0 or labels.max() >= 2**31:
            raise self._refused("has labels that are not classes", "save them as numbers from 0")
        self.labels = labels.astype(np.int64)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The images at these indices, int64 [M], as uint8 [M, H, W, C].

        Raises:
            UserError: the file is damaged.
        """
        n, *rest = self.shape
        size = math.prod(rest)
        step = max(1, AT_ONCE // size)
        images = np.empty((len(index), *rest), np.uint8)
        order = np.argsort(index, kind="stable")
        ascending = index[order]
        with self._opened() as archive, self._array(archive, "images") as (file, _, _):
            for start in range(0, n, step):  # to the end, where the checksum is
                part = np.frombuffer(read_fully(file, min(step, n - start) * size), np.uint8).reshape(-1, *rest)
                first, last = np.searchsorted(ascending, (start, start + step))
                images[order[first:last]] = part[ascending[first:last] - start]
        return images

    def _checked_shape(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
        if dtype.kind == "f":
            raise self._refused(f"has images of {dtype}", TO_UINT8)
        if dtype != np.uint8:
            raise self._refused(f"has images of {dtype}", "save them as uint8, from 0 to 255")
        if len(shape) == 3:
            raise self._refused("has images without channels", "save images[..., None]")
        if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
            raise self._refused("has the channels of its images first", "save images.transpose(0, 2, 3, 1)")
        if len(shape) != 4 or shape[3] not in (1, 3):
            raise self._refused(
                f"has images of shape {list(shape)}", "save uint8 [N, H, W, C] with 1 channel, or 3 of colour"
            )
        n, height, width, _ = shape
        if height != width or height > LARGEST_SIDE:
            raise self._refused(
                f"has images of {height} x {width} pixels",
                f"save squares of at most {LARGEST_SIDE} pixels, as the data set has them",
            )
        if n > MOST_IMAGES or math.prod(shape) > MOST_BYTES:
            raise self._refused(f"has {n} images", "save fewer of them: 10,000 are plenty")
        return shape

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except UserError:
            raise
        except OSError as error:
            raise UserError(
                f"ckpt_path={self.path} cannot be read ({error.strerror or error}): choose another file"
            ) from error
        except Exception as error:  # zipfile, zlib and NumPy fail on what is cut or garbled in many ways
            raise self._refused("is damaged or not an npz file", "save it with numpy.savez_compressed") from error

    @contextmanager
    def _array(self, archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """An array's content to read, its shape and its dtype; its size is as the last two say."""
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError as error:
            raise self._refused(f"has no {name}", "save it with numpy.savez(FILE, images=..., labels=...)") from error
        if info.compress_type not in METHODS:
            raise ValueError("a compression that NumPy never uses")
        with archive.open(info) as file:
            if npy.read_magic(file) != (1, 0):  # later versions are for tables, and their headers have no bound
                raise ValueError("a version that NumPy does not write images in")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            if dtype.hasobject or dtype.kind not in "uifb":
                raise self._refused(f"has {name} that are not numbers, which were not loaded", "save whole numbers")
            if 0 in shape or not shape:
                raise self._refused(f"has no {name}", "save at least 10")
            if any(length < 0 for length in shape) or info.file_size - file.tell() != math.prod(shape) * dtype.itemsize:
                raise ValueError("the size is not that of the array")
            if fortran and len(shape) > 1:
                raise self._refused(f"has {name} in Fortran's order", f"save numpy.ascontiguousarray({name})")
            yield file, shape, dtype

    def _refused(self, what: str, remedy: str) -> UserError:
        return UserError(f"ckpt_path={self.path} {what}: {remedy}")


def read_fully(file: IO[bytes], n: int) -> bytes:
    """The next n bytes.

    Raises:
        EOFError: there are fewer.
    """
    content = file.read(n)
    if len(content) < n:
        raise EOFError
    return content
