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
    """60,000 training and 10,000 test images of 28x28 pixels, in files directly in `data_dir` or in its `folder`.

    Either may hold the files as they are or as `.gz`.
    """

    channels = 1
    n_train = 60_000
    n_test = 10_000
    files: Mapping[str, tuple[str, str]]  # the md5 of each file, and of the .gz that is published

    def missing(self) -> dict[str, str]:
        return {f"{name}.gz": md5 for name, (_, md5) in self.files.items() if self._find(name) is None}

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        official, test = (
            (
                self._read(f"{part}-images-idx3-ubyte", 16).view(-1, 1, 28, 28),
                self._read(f"{part}-labels-idx1-ubyte", 8).long(),
            )
            for part in ("train", "t10k")
        )
        train, val = split_off(*official, self.train_val_test_split[:2])
        return {"train": train, "val": val, "test": test}

    def _find(self, name: str) -> Path | None:
        paths = (path for f in (self.folder, self.data_dir) for path in (f / name, f / f"{name}.gz"))
        return next((path for path in paths if path.is_file()), None)

    def _read(self, name: str, header: int) -> Tensor:
        """The bytes of a file after its header, as uint8 [N].

        Raises:
            ValueError: the file is not the one that was published.
        """
        path = self._find(name)
        assert path is not None  # prepare_data has seen to it
        content = path.read_bytes()
        try:
            if path.suffix == ".gz":
                content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and it is downloaded again") from error
        check_md5(content, self.files[name][0], path)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)
