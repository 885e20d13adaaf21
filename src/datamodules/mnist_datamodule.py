"""MNIST from files, else from the network, else a smaller stand-in that says so."""

import gzip
import hashlib
import logging
import os
import socket
import tempfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from src.datamodules.digits_datamodule import DIGITS_SPLIT, load_digits
from src.datamodules.image_datamodule import ImageDataModule, Split, split_off

log = logging.getLogger(__name__)

N_TRAIN, N_TEST = 60_000, 10_000
NETWORK_TIMEOUT_S = 5.0
# Each file's shape without its header, the md5 of the file, and the md5 of the .gz that is published.
FILES: dict[str, tuple[tuple[int, ...], str, str]] = {
    "train-images-idx3-ubyte": (
        (N_TRAIN, 28, 28),
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "train-labels-idx1-ubyte": (
        (N_TRAIN,),
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "t10k-images-idx3-ubyte": (
        (N_TEST, 28, 28),
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "t10k-labels-idx1-ubyte": (
        (N_TEST,),
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}


class MNISTDataModule(ImageDataModule):
    """MNIST (LeCun, Cortes & Burges), 28x28 pixels, resized to `img_size`.

    The official test images are the test set. Training and validation images are drawn from the official training
    images, once and for all, by a fixed seed.

    Args:
        data_dir: holds the four idx files or their `.gz`, directly or under `MNIST/raw/`; they are downloaded there.
        train_val_test_split: training and validation images out of 60,000, and the 10,000 test images.
        batch_size: images a batch (and process, where there are several).
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory.
        pin_memory: page-locked batches, which reach a GPU faster.
        img_size: height and width of the images served, in pixels.
        offline_fallback: without files and network, serve scikit-learn's 1,797 digits instead of raising.
        seed: of the order of the training images.

    Raises:
        ValueError: an argument is not a number of the right kind, the split does not add up, or a file is damaged.
        FileNotFoundError: there are neither files nor a network, and `offline_fallback` is off.
    """

    channels = 1
    n_classes = 10

    def __init__(
        self,
        data_dir: str | Path = "data/",
        train_val_test_split: Sequence[int] = (55_000, 5_000, 10_000),
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        offline_fallback: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(train_val_test_split, batch_size, num_workers, pin_memory, img_size, seed)
        self.data_dir = Path(data_dir).expanduser()
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise ValueError(f"data_dir is {data_dir}, which is a file: name the folder that holds MNIST")
        self.offline_fallback = offline_fallback
        self.source = "mnist"
        self._found: dict[str, Path] | None = None

    def check_split(self, split: list[int]) -> None:
        """Training and validation images are the official training images."""
        train, val, test = split
        if train + val != N_TRAIN or test != N_TEST:
            raise ValueError(
                f"train_val_test_split is {split}, but train + val must make {N_TRAIN} and test {N_TEST}: try"
                " [55000,5000,10000]"
            )

    @property
    def raw_folder(self) -> Path:
        return self.data_dir / "MNIST" / "raw"

    def prepare_data(self) -> None:
        """Finds the files, downloads what is missing, or falls back to the digits."""
        if self._found is not None or self.source != "mnist":
            return
        found, missing = self._find()
        if missing:
            try:
                self._download(missing)
            except OSError as error:
                if error.errno is not None:  # not the network's fault: the folder cannot be written
                    raise
                self._do_without(missing, error)
                return
            found, missing = self._find()
        self._found = found

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        if self._found is None:
            return load_digits(DIGITS_SPLIT)
        arrays = {name: read_idx(self._found[name], shape, md5) for name, (shape, md5, _) in FILES.items()}
        images, labels = arrays["train-images-idx3-ubyte"].unsqueeze(1), arrays["train-labels-idx1-ubyte"].long()
        train, val = split_off(images, labels, self.train_val_test_split[:2])
        test = arrays["t10k-images-idx3-ubyte"].unsqueeze(1), arrays["t10k-labels-idx1-ubyte"].long()
        return {"train": train, "val": val, "test": test}

    def _find(self) -> tuple[dict[str, Path], list[str]]:
        folders = [self.raw_folder, self.data_dir]
        paths = {
            name: next((p for f in folders for p in (f / name, f / f"{name}.gz") if p.is_file()), None)
            for name in FILES
        }
        return {name: path for name, path in paths.items() if path}, [name for name, path in paths.items() if not path]

    def _download(self, names: list[str]) -> None:
        """Fetches the `.gz` of each file; a file appears under its name only when it is whole.

        Raises:
            OSError: no mirror answers, or the folder cannot be written.
        """
        self.raw_folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading MNIST to %s", self.raw_folder)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        try:
            with tempfile.TemporaryDirectory(dir=self.raw_folder) as partial:
                for name in names:
                    self._fetch(name, partial)
                    os.replace(Path(partial) / f"{name}.gz", self.raw_folder / f"{name}.gz")
        finally:
            socket.setdefaulttimeout(timeout)

    @staticmethod
    def _fetch(name: str, folder: str) -> None:
        from torchvision.datasets import MNIST  # imported late, as only a download needs it
        from torchvision.datasets.utils import download_url

        for mirror in MNIST.mirrors:
            try:
                return download_url(f"{mirror}{name}.gz", folder, md5=FILES[name][2])
            # RuntimeError: the checksum does not fit; HTTPException: what answers does not speak HTTP.
            except (OSError, RuntimeError, HTTPException) as error:
                last = error
        raise OSError(f"{name}.gz could not be downloaded: {last}")

    def _do_without(self, missing: list[str], error: OSError) -> None:
        files = ", ".join(f"{name}.gz" for name in missing)
        if not self.offline_fallback:
            raise FileNotFoundError(
                f"MNIST is not in {self.raw_folder} and could not be downloaded ({error}): put {files} there, or set"
                " datamodule.offline_fallback=true to train on scikit-learn's digits"
            ) from error
        self.source = "digits-fallback"
        self.train_val_test_split = list(DIGITS_SPLIT)
        if self.batch_size > DIGITS_SPLIT[0]:
            raise ValueError(f"batch_size is {self.batch_size}, but the digits only have {DIGITS_SPLIT[0]} images")
        warn_of_fallback(
            f"NOT MNIST. It is not in {self.raw_folder} and could not be downloaded ({error}).\n"
            f"This run uses the 1,797 digits of scikit-learn instead: {DIGITS_SPLIT[0]} training images of 8x8 pixels,"
            " enlarged. Its numbers compare with no MNIST result.\n"
            f"For MNIST put {files} into that folder, or set DATA_DIR in .env.\n"
            "To stop here instead of falling back: datamodule.offline_fallback=false."
        )


@rank_zero_only
def warn_of_fallback(text: str) -> None:
    from rich.console import Console
    from rich.panel import Panel

    Console(stderr=True).print(Panel(text, title="WARNING: embedded digits", style="bold yellow"))


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
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is damaged (its md5 should be {md5}): delete it, and it is downloaded again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
