"""Fashion-MNIST: in MNIST's format, in a folder and with checksums of its own. See MNIST's tests for the format."""

import os
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from src.datamodules.fashion_mnist_datamodule import FashionMNISTDataModule
from tests.datamodules.test_mnist_datamodule import MADE, MADE_SPLIT, SPLIT, contents, md5, write

DATA_DIR = Path(os.environ.get("DATA_DIR") or "data")
FILES = FashionMNISTDataModule.files
HAS_FASHION = all((DATA_DIR / "FashionMNIST" / "raw" / name).is_file() for name in FILES)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FashionMNISTDataModule:
    """Of the real files where there are some, else of made ones."""
    if HAS_FASHION:
        return FashionMNISTDataModule(DATA_DIR, SPLIT)
    monkeypatch.setattr(FashionMNISTDataModule, "files", {name: (md5(MADE[name]), "") for name in FILES})
    monkeypatch.setattr(FashionMNISTDataModule, "n_train", sum(MADE_SPLIT[:2]))
    monkeypatch.setattr(FashionMNISTDataModule, "n_test", MADE_SPLIT[2])
    write(tmp_path / "FashionMNIST" / "raw")
    return FashionMNISTDataModule(tmp_path, MADE_SPLIT, batch_size=10)


def test_no_image_is_in_two_sets_and_the_test_set_is_the_official_one(fashion: FashionMNISTDataModule) -> None:
    fashion.setup()
    official = {
        name: np.frombuffer((fashion.folder / f"{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        for name in ("train", "t10k")
    }
    images = {name: data.images.flatten(1).numpy() for name, data in fashion.sets.items()}
    assert np.array_equal(images["test"].ravel(), official["t10k"])
    # Each official training image is used once. (Fashion-MNIST holds copies, so sets of images may overlap.)
    together = sorted(row.tobytes() for row in np.concatenate([images["train"], images["val"]]))
    assert together == sorted(row.tobytes() for row in official["train"].reshape(-1, 784))
    assert [len(images[name]) for name in ("train", "val", "test")] == fashion.train_val_test_split
    assert fashion.sets["train"].labels.unique().tolist() == list(range(10))


def test_its_checksums_are_those_that_torchvision_knows() -> None:
    published = {f"{name}.gz": md5 for name, (_, md5) in FILES.items()}
    assert published == dict(FashionMNIST.resources)
    assert list(FashionMNISTDataModule.class_names) == FashionMNIST.classes
    assert FashionMNISTDataModule("data", SPLIT).folder == Path("data/FashionMNIST/raw")


def test_mnists_files_are_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path)  # directly in data_dir, where both may lie
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged"):
        FashionMNISTDataModule(tmp_path, SPLIT).setup()


def test_without_files_and_network_it_says_what_to_put_where(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(FileNotFoundError) as error:
        FashionMNISTDataModule(tmp_path, SPLIT).prepare_data()
    message = str(error.value)
    assert message.startswith(f"Fashion-MNIST is not in {tmp_path / 'FashionMNIST' / 'raw'} and could not")
    assert "no route to host" in message and all(f"{name}.gz" in message for name in FILES)
    assert "fallback" not in message and "\n" not in message
    assert contents(tmp_path) == {}
