"""MNIST from files, else from the network, else a smaller stand-in that says so; and data sets in the same format."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from torch import Tensor

from src.config.types import Count
from src.datamodules.digits_datamodule import DIGITS_SPLIT, load_digits
from src.datamodules.image_datamodule import Sizes, Split
from src.datamodules.published_datamodule import PublishedDataModule, check_md5


class IdxDataModule(PublishedDataModule):
    """Data in four idx files: 60,000 training and 10,000 test images in grey, 28x28 pixels.

    `data_dir` or its `folder` holds the files, as they are or as `.gz`.
    """

    channels = 1
    n_train = 60_000
    n_test = 10_000
    files: Mapping[str, tuple[str, str]]  # the md5 of each file, and of the .gz that is published

    def missing(self) -> dict[str, str]:
        return {f"{name}.gz": md5 for name, (_, md5) in self.files.items() if self._find(name) is None}

    def read(self) -> tuple[Split, Split]:
        images, labels, test_images, test_labels = map(self._content, self.files)
        return (
            (images[16:].view(-1, 1, 28, 28), labels[8:].long()),
            (test_images[16:].view(-1, 1, 28, 28), test_labels[8:].long()),
        )

    def _find(self, name: str) -> Path | None:
        paths = (path for f in (self.folder, self.data_dir) for path in (f / name, f / f"{name}.gz"))
        return next((path for path in paths if path.is_file()), None)

    def _content(self, name: str) -> Tensor:
        path = self._find(name)
        assert path is not None  # prepare_data has seen to it
        content = path.read_bytes()
        try:
            if path.suffix == ".gz":
                content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and it is downloaded again") from error
        check_md5(content, self.files[name][0], path)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class MNISTDataModule(IdxDataModule):
    """MNIST (LeCun, Cortes & Burges 1998): handwritten digits in grey, 28x28 pixels, resized to `img_size`.

    Args:
        data_dir: holds the four files or their `.gz`, directly or under `MNIST/raw/`; they are downloaded there.
        offline_fallback: without files and network, serve scikit-learn's 1,797 digits instead of raising. They are
            repeated, so that an epoch has as many batches as with MNIST.
        **kwargs: as in `PublishedDataModule`.
    """

    n_classes = 10
    title = "MNIST"
    folder_name = "MNIST/raw"
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    files = {
        "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    }

    def __init__(
        self,
        data_dir: str | Path = "data/",
        train_val_test_split: Sizes = (55_000, 5_000, 10_000),
        batch_size: Count = 64,
        offline_fallback: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, train_val_test_split, batch_size=batch_size, **kwargs)
        self.offline_fallback = offline_fallback
        self.source = "mnist"

    def prepare_data(self) -> None:
        if self.source == "mnist":
            super().prepare_data()

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        return super().load() if self.source == "mnist" else load_digits(DIGITS_SPLIT)

    def do_without(self, missing: str) -> None:
        if not self.offline_fallback:
            super().do_without(f"{missing}, or set datamodule.offline_fallback=true to train on scikit-learn's digits")
        self.source = "digits-fallback"
        # As much training as on MNIST: all that counts epochs or batches means the same.
        self.epoch_length = self.pass_length
        # As many of the digits as were asked for, or all where there are fewer.
        self.subset, self.subset_per_class = self.pass_length, None
        self.train_val_test_split = list(DIGITS_SPLIT)
        text = (
            f"NOT MNIST. {missing}, or set DATA_DIR in .env.\n"
            f"This run uses the 1,797 digits of scikit-learn instead: {DIGITS_SPLIT[0]:,} training images of 8x8"
            " pixels, enlarged, and repeated so that an epoch is as long as on MNIST. Its numbers do not compare with"
            " MNIST results.\n"
            "To stop here instead of falling back: datamodule.offline_fallback=false."
        )
        console = Console(stderr=True, quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
        console.print(Panel(Text(text), title="WARNING: embedded digits", style="bold yellow"))
