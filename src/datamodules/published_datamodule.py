"""What data sets that are published as files have in common: find, download, check, or say what is missing."""

import contextlib
import hashlib
import logging
import os
import socket
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from src.datamodules.image_datamodule import ImageDataModule, Sizes, Split, split_off

log = logging.getLogger(__name__)

NETWORK_TIMEOUT_S = 5.0


class PublishedDataModule(ImageDataModule):
    """Images with official training and test sets, in files with known checksums.

    The official test images are the test set. Training and validation images are drawn from the official training
    images, always in the same way. A new data set sets the attributes below and writes `missing` and `read`.

    Args:
        data_dir: holds the files; they are downloaded to its `folder`.
        train_val_test_split: training and validation images out of the official training images, and all test images.
        **kwargs: as in `ImageDataModule`.

    Raises:
        ValueError: the split does not add up, or a file is damaged.
        FileNotFoundError: there are neither files nor a network.
    """

    title: str  # the name that people know the data by
    folder_name: str  # in `data_dir`, for downloads
    mirrors: Sequence[str]  # addresses to append a file's name to
    n_train: int
    n_test: int
    by_class = False  # whether training and validation images have as many of each class

    def __init__(self, data_dir: str | Path, train_val_test_split: Sizes, **kwargs: Any) -> None:
        train, val, test = split = list(train_val_test_split)
        if train + val != self.n_train or test != self.n_test:
            raise ValueError(
                f"train_val_test_split is {split}, but train + val must make {self.n_train} and test {self.n_test}: try"
                f" [{self.n_train - 5_000},5000,{self.n_test}]"
            )
        super().__init__(split, **kwargs)
        self.data_dir = Path(data_dir).expanduser()
        self.folder = self.data_dir / self.folder_name
        if self.data_dir.is_file():
            raise ValueError(f"data_dir is {data_dir}, which is a file: name the folder that holds {self.title}")

    @abstractmethod
    def missing(self) -> dict[str, str]:
        """The files to download and their md5."""

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """The official training images and the official test images, from files that are all there."""

    def prepare_data(self) -> None:
        """Finds the files, downloads what is missing, or does without."""
        missing = self.missing()
        if not missing:
            return
        try:
            self._download(missing)
        except OSError as error:
            if error.errno is not None:  # not the network's fault: the folder cannot be written
                raise
            self.do_without(
                f"{self.title} is not in {self.folder} and could not be downloaded ({error}): put"
                f" {', '.join(missing)} there"
            )

    def do_without(self, missing: str) -> None:
        """What to do when no mirror answers; `missing` says what is missing and where to put it."""
        raise FileNotFoundError(missing)

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        (images, labels), test = self.read()
        train, val = split_off(images, labels, self.train_val_test_split[:2], self.by_class)
        return {"train": train, "val": val, "test": test}

    def _download(self, md5s: dict[str, str]) -> None:
        """Each file appears under its name only when it is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", self.title, self.folder)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        try:
            with tempfile.TemporaryDirectory(dir=self.folder) as partial:
                for name, md5 in md5s.items():
                    self._fetch(name, md5, partial)
                    os.replace(Path(partial) / name, self.folder / name)
        finally:
            socket.setdefaulttimeout(timeout)

    def _fetch(self, name: str, md5: str, folder: str) -> None:
        from torchvision.datasets.utils import download_url  # imported late, as only a download needs it

        for mirror in self.mirrors:
            try:
                check_answers(mirror)
                return download_url(f"{mirror}{name}", folder, md5=md5)
            # RuntimeError: the checksum does not fit; HTTPException: the answer is not HTTP.
            except (OSError, RuntimeError, HTTPException) as error:
                last = error
        raise OSError(f"{name} could not be downloaded: {last}")


def check_answers(url: str) -> None:
    """Raises OSError unless one of a server's addresses takes a connection within `NETWORK_TIMEOUT_S`.

    Without this, each of many addresses would be waited for in turn: a long wait where there is no network.
    """
    parts = urlsplit(url)
    if parts.scheme in getproxies() and not proxy_bypass(parts.netloc):
        return  # the proxy is asked instead
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        # OSError: this address does not answer, or this machine does not have its kind.
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as connection:
            connection.settimeout(NETWORK_TIMEOUT_S / len(found))
            connection.connect(address)
            return
    raise OSError(f"{parts.hostname} does not answer")


def check_md5(content: bytes, md5: str, path: Path) -> None:
    """Raises ValueError where the content of a file is not what was published."""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is damaged (its md5 should be {md5}): delete it, and it is downloaded again")
