"""What data sets that are published as files have in common: find, download, check, or say what is missing."""

import contextlib
import errno
import hashlib
import logging
import os
import selectors
import socket
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from src.datamodules.image_datamodule import ImageDataModule

log = logging.getLogger(__name__)

NETWORK_TIMEOUT_S = 5.0


class PublishedDataModule(ImageDataModule):
    """Images with official training and test sets, in files with known checksums.

    The official test images are the test set. Training and validation images are drawn from the official training
    images, once and for all, by a fixed seed. A new data set sets the attributes below and writes `missing` and `load`.

    Args:
        data_dir: holds the files; they are downloaded to the `folder` in it.
        train_val_test_split: training and validation images out of the official training images, and all test images.

    Further arguments are those of `ImageDataModule`.

    Raises:
        ValueError: an argument is not a number of the right kind, the split does not add up, or a file is damaged.
        FileNotFoundError: there are neither files nor a network.
    """

    title: str  # the name that people know the data by
    folder_name: str  # of the folder in `data_dir` that downloads go to
    mirrors: Sequence[str]  # addresses that a file's name is appended to
    n_train: int
    n_test: int

    def __init__(
        self,
        data_dir: str | Path,
        train_val_test_split: Sequence[int],
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
        flip: bool = False,
    ) -> None:
        super().__init__(
            train_val_test_split, batch_size, num_workers, pin_memory, img_size, seed, subset, subset_per_class, flip
        )
        self.data_dir = Path(data_dir).expanduser()
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise ValueError(f"data_dir is {data_dir}, which is a file: name the folder that holds {self.title}")

    @property
    def folder(self) -> Path:
        return self.data_dir / self.folder_name

    @abstractmethod
    def missing(self) -> dict[str, str]:
        """The files to download and their md5."""

    def check_split(self, split: list[int]) -> None:
        """Training and validation images are the official training images."""
        train, val, test = split
        if train + val != self.n_train or test != self.n_test:
            example = [self.n_train - 5_000, 5_000, self.n_test]
            raise ValueError(
                f"train_val_test_split is {split}, but train + val must make {self.n_train} and test {self.n_test}: try"
                f" [{','.join(map(str, example))}]"
            )

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
            self.do_without(", ".join(missing), error)

    def do_without(self, files: str, error: OSError, or_else: str = "") -> None:
        """Says what to put where, because no mirror answered."""
        raise FileNotFoundError(
            f"{self.title} is not in {self.folder} and could not be downloaded ({error}): put {files} there{or_else}"
        ) from error

    def _download(self, md5s: dict[str, str]) -> None:
        """Fetches files; each appears under its name only when it is whole.

        Raises:
            OSError: no mirror answers, or the folder cannot be written.
        """
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
            # RuntimeError: the checksum does not fit; HTTPException: what answers does not speak HTTP.
            except (OSError, RuntimeError, HTTPException) as error:
                last = error
        raise OSError(f"{name} could not be downloaded: {last}")


def check_answers(url: str) -> None:
    """Raises OSError unless one of a server's addresses takes a connection within `NETWORK_TIMEOUT_S`.

    A socket's timeout is for each address in turn, and there may be many: without a network that is a long wait.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    if parts.scheme in getproxies() and not proxy_bypass(parts.netloc):
        return  # which is asked instead
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for family, kind, protocol, _, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError):  # an address of a kind that this machine does not have
                connection = stack.enter_context(socket.socket(family, kind, protocol))
                connection.setblocking(False)
                if connection.connect_ex(address) in (0, errno.EINPROGRESS):
                    selector.register(connection, selectors.EVENT_WRITE)
        end = time.monotonic() + NETWORK_TIMEOUT_S
        while selector.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:  # type: ignore[union-attr]
                    return
                selector.unregister(key.fileobj)
    raise OSError(f"{parts.hostname} does not answer")


def check_md5(content: bytes, md5: str, path: Path) -> None:
    """Raises ValueError where the content of a file is not what was published."""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is damaged (its md5 should be {md5}): delete it, and it is downloaded again")
