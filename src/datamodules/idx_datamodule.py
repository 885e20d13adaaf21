"""Data sets in MNIST's format: four idx files of grey images and their labels."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from src.datamodules.image_datamodule import Split, split_off
from src.datamodules.published_datamodule import PublishedDataModule, check_md5


class IdxDataModule(PublishedDataModule):
    """60,000 training and 10,000 test images of 28x28 pixels, in idx files directly in `data_dir` or in its `folder`.

    Either may hold the files as they are or as `.gz`. Arguments as in `PublishedDataModule`.
    """

    channels = 1
    n_train = 60_000
    n_test = 10_000
    files: Mapping[str, tuple[str, str]]  # the md5 of each file, and that of the .gz which is published

    def missing(self) -> dict[str, str]:
        return {f"{name}.gz": md5 for name, (_, md5) in self.files.items() if self._find(name) is None}

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        images, labels = self._read("train", self.n_train)
        train, val = split_off(images, labels, self.train_val_test_split[:2])
        return {"train": train, "val": val, "test": self._read("t10k", self.n_test)}

    def _find(self, name: str) -> Path | None:
        paths = (path for f in (self.folder, self.data_dir) for path in (f / name, f / f"{name}.gz"))
        return next((path for path in paths if path.is_file()), None)

    def _read(self, part: str, n: int) -> Split:
        arrays = []
        for name, shape in [(f"{part}-images-idx3-ubyte", (n, 28, 28)), (f"{part}-labels-idx1-ubyte", (n,))]:
            path = self._find(name)
            assert path is not None  # prepare_data has seen to it
            arrays.append(read_idx(path, shape, self.files[name][0]))
        return arrays[0].unsqueeze(1), arrays[1].long()


def read_idx(path: Path, shape: tuple[int, ...], md5: str) -> Tensor:
    """The contents of an idx file, which may be gzipped, as uint8 of `shape`.

    Raises:
        ValueError: the file is truncated, damaged or something else.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is downloaded again") from error
    header = 4 + 4 * len(shape)
    size = header + torch.Size(shape).numel()
    if len(content) != size:
        raise ValueError(f"{path} has {len(content)} bytes instead of {size}: delete it, and it is downloaded again")
    check_md5(content, md5, path)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
