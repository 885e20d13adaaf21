"""MNIST: scikit-learn's digits stand in for it where there are no files and no network. See also the published sets."""

from pathlib import Path

import numpy as np
import pytest

from src.datamodules.mnist_datamodule import MNISTDataModule
from tests.datamodules.conftest import MNIST_SPLIT, loaded, write_idx


def test_the_digits_stand_in_and_say_so(tmp_path: Path, no_network: None, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a [b] :cat: c"
    datamodule = loaded(folder, train_val_test_split=MNIST_SPLIT)
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert "a [b] :cat: c" in shown
    assert "WARNING" in shown and "NOT MNIST" in shown and "1,797 digits" in shown
    assert "no route to host" in shown and "offline_fallback=false" in shown
    assert datamodule.source == "digits-fallback"
    assert datamodule.train_val_test_split == [1_412, 128, 257]
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == [1_412, 128, 257]
    datamodule.prepare_data()  # Lightning asks again
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "images", "batches"),
    [
        ({}, 1_412, 55_000 // 64),
        ({"train_val_test_split": [50_000, 10_000, 10_000], "batch_size": 48}, 1_412, 50_000 // 48),
        ({"batch_size": 2_000}, 1_412, 27),  # more than there are digits
        ({"subset": 5_000}, 1_412, 5_000 // 64),
        ({"subset": 1_000}, 1_000, 1_000 // 64),
        ({"subset_per_class": 100}, 1_000, 1_000 // 64),
        ({"subset_per_class": 500}, 1_412, 5_000 // 64),
    ],
)
def test_an_epoch_of_the_digits_is_as_long_as_one_of_mnist(
    tmp_path: Path, no_network: None, arguments: dict[str, object], images: int, batches: int
) -> None:
    datamodule = loaded(tmp_path, **{"train_val_test_split": MNIST_SPLIT, "batch_size": 64, "img_size": 8} | arguments)
    assert len(datamodule.sets["train"]) == images
    assert len(datamodule.references["train"]) == 1_412
    loader = datamodule.train_dataloader()
    assert len(loader) == batches
    counts = np.bincount(list(loader.sampler), minlength=images)
    assert counts.max() - counts.min() <= 1  # each image equally often
    assert [len(labels) for _, labels in datamodule.val_dataloader()] == [128]  # in batches of up to 256


def test_without_the_fallback_the_error_says_what_to_put_where(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loaded(tmp_path, train_val_test_split=MNIST_SPLIT, offline_fallback=False)
    assert str(tmp_path / "MNIST" / "raw") in str(error.value)
    assert all(f"{name}.gz" in str(error.value) for name in MNISTDataModule.files)


def test_one_missing_file_is_the_one_that_is_asked_for(tmp_path: Path, made: None, no_network: None) -> None:
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"put t10k-labels-idx1-ubyte\.gz there"):
        loaded(tmp_path, offline_fallback=False)
