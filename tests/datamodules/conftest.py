"""Small data sets in the files of the published ones, and no network."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from src.datamodules import published_datamodule
from src.datamodules.cifar10_datamodule import ARCHIVE, PICKLES, CIFAR10DataModule
from src.datamodules.fashion_mnist_datamodule import FashionMNISTDataModule
from src.datamodules.flowers_datamodule import PACKED
from src.datamodules.mnist_datamodule import MNISTDataModule
from src.datamodules.published_datamodule import PublishedDataModule

DATA_DIR = Path(os.environ.get("DATA_DIR") or "data")
MNIST_SPLIT, CIFAR10_SPLIT = [55_000, 5_000, 10_000], [45_000, 5_000, 10_000]
MADE_SPLIT = [80, 20, 40]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_idx_files() -> dict[str, bytes]:
    """Random images, whose labels are 0, 1, ..., 9, 0, 1, ..."""
    files = {}
    for name, n in [("train", sum(MADE_SPLIT[:2])), ("t10k", MADE_SPLIT[2])]:
        images, labels = np.random.default_rng(n).bytes(n * 784), bytes(i % 10 for i in range(n))
        files[f"{name}-images-idx3-ubyte"] = b"\0\0\x08\3" + np.array([n, 28, 28], ">u4").tobytes() + images
        files[f"{name}-labels-idx1-ubyte"] = b"\0\0\x08\1" + np.array([n], ">u4").tobytes() + labels
    return files


def make_pickles() -> dict[str, bytes]:
    """The same, as NumPy 1 and Python 2 wrote it: numpy.core.multiarray builds arrays, and texts are bytes."""
    files = {}
    for i, name in enumerate(CIFAR10DataModule.files):
        n = MADE_SPLIT[2] if name == "test_batch" else sum(MADE_SPLIT[:2]) // 5
        data = np.random.default_rng(i).integers(256, size=(n, 3072), dtype=np.uint8)
        content = pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(n)]}, protocol=3)
        files[name] = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    return files


IDX, PICKLED = make_idx_files(), make_pickles()
GZIPPED = {name: gzip.compress(content, mtime=0) for name, content in IDX.items()}


def archived(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in [("readme.html", b"hello"), *reversed(files.items())]:
            member = tarfile.TarInfo(f"{PICKLES}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def write_idx(folder: Path, gzipped: bool = False, **instead: bytes) -> Path:
    """Writes the idx files; `instead` replaces the contents of those that begin so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (GZIPPED if gzipped else IDX).items():
        content = next((value for start, value in instead.items() if name.startswith(start)), content)
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(content)
    return folder


def write_cifar10(data_dir: Path, packed: bool = False, **instead: bytes) -> Path:
    """Writes the pickles, or their archive; `instead` replaces the contents of some."""
    files = PICKLED | instead
    data_dir.mkdir(exist_ok=True)
    if packed:
        (data_dir / ARCHIVE).write_bytes(archived(files))
        return data_dir
    (data_dir / PICKLES).mkdir()
    for name, content in files.items():
        (data_dir / PICKLES / name).write_bytes(content)
    return data_dir


def loaded(data_dir: Path, kind: type[PublishedDataModule] = MNISTDataModule, **kwargs) -> PublishedDataModule:
    datamodule = kind(data_dir, **{"train_val_test_split": MADE_SPLIT, "batch_size": 10} | kwargs)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def changed(content: bytes) -> bytes:
    """The same with another byte in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def folder_of(kind: type[PublishedDataModule]) -> str:
    return PICKLES if kind is CIFAR10DataModule else kind.folder_name


def is_there(kind: type[PublishedDataModule]) -> bool:
    return all((DATA_DIR / folder_of(kind) / name).is_file() for name in kind.files)  # type: ignore[attr-defined]


HAS_FLOWERS = (DATA_DIR / PACKED).is_file()
HAS_MNIST, HAS_FASHION, HAS_CIFAR10 = map(is_there, (MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data modules take the made files for the published ones."""
    idx_md5s = {name: (md5(IDX[name]), md5(GZIPPED[name])) for name in IDX}
    pickle_md5s = {name: md5(content) for name, content in PICKLED.items()}
    for kind in (MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule):
        monkeypatch.setattr(kind, "files", pickle_md5s if kind is CIFAR10DataModule else idx_md5s)
        monkeypatch.setattr(kind, "n_train", sum(MADE_SPLIT[:2]))
        monkeypatch.setattr(kind, "n_test", MADE_SPLIT[2])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(published_datamodule, "check_answers", refuse)
