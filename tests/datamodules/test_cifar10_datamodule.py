"""CIFAR-10: batches in colour, from pickles or their archive, and nothing is unpickled but the published files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, utils

from src.datamodules import published_datamodule
from src.datamodules.cifar10_datamodule import ARCHIVE, PICKLES, CIFAR10DataModule
from tests.datamodules.conftest import PICKLED, archived, changed, contents, loaded, write_cifar10


@pytest.mark.parametrize("img_size", [32, 64])
def test_batches_are_in_colour(tmp_path: Path, made: None, img_size: int) -> None:
    datamodule = loaded(write_cifar10(tmp_path), CIFAR10DataModule, img_size=img_size, flip=False)
    images, labels = next(iter(datamodule.val_dataloader()))
    assert images.shape == (len(datamodule.sets["val"]), 3, img_size, img_size) and labels.dtype == torch.int64
    if img_size == 32:  # red, green and blue planes, row by row
        row = datamodule.sets["val"].images[0].flatten()
        stored = [pickle.loads(content, encoding="bytes")[b"data"] for content in PICKLED.values()]
        assert (np.concatenate(stored) == row.numpy()).all(1).any()
        torch.testing.assert_close(images[0].flatten(), row / 127.5 - 1)


def test_the_archive_gives_the_same_sets_as_its_contents(tmp_path: Path, made: None, no_network: None) -> None:
    packed = loaded(write_cifar10(tmp_path / "packed", packed=True), CIFAR10DataModule)
    unpacked = loaded(write_cifar10(tmp_path / "unpacked"), CIFAR10DataModule)
    for name, data in unpacked.sets.items():
        assert torch.equal(packed.sets[name].images, data.images)
        assert torch.equal(packed.sets[name].labels, data.labels)
    assert list(contents(tmp_path / "packed")) == [ARCHIVE]  # nothing unpacked, nothing added


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "changed", "text", "hostile"])
def test_another_pickle_is_named_and_not_unpickled(tmp_path: Path, made: None, packed: bool, damage: str) -> None:
    content = PICKLED["data_batch_3"]
    bad = {
        "truncated": content[:5000],
        "changed": changed(content),
        "text": b"404 not found",
        "hostile": f"cos\nmkdir\n(V{tmp_path / 'touched'}\ntR.".encode(),  # makes a folder when it is unpickled
    }[damage]
    write_cifar10(tmp_path, packed, data_batch_3=bad)
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged \(its md5 should be \w+\): delete it") as error:
        loaded(tmp_path, CIFAR10DataModule)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "incomplete"])
def test_a_damaged_archive_is_named(tmp_path: Path, made: None, damage: str) -> None:
    whole = archived(PICKLED)
    less = archived({name: PICKLED[name] for name in list(PICKLED)[1:]})
    bad = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"404 not found", "incomplete": less}[damage]
    (tmp_path / ARCHIVE).write_bytes(bad)
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged \(.*\): delete it, and it is downloaded again"):
        loaded(tmp_path, CIFAR10DataModule)


def test_a_part_of_the_pickles_is_not_enough(tmp_path: Path, made: None, no_network: None) -> None:
    (write_cifar10(tmp_path) / PICKLES / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match=f"CIFAR-10 is not in {tmp_path} .* put {ARCHIVE} there"):
        loaded(tmp_path, CIFAR10DataModule)


def test_a_missing_archive_is_downloaded(tmp_path: Path, made: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def serve(url: str, folder: str, md5: str) -> None:
        asked.append((url, md5))
        (Path(folder) / ARCHIVE).write_bytes(archived(PICKLED))

    monkeypatch.setattr(published_datamodule, "check_answers", lambda _: None)
    monkeypatch.setattr(utils, "download_url", serve)
    loaded(tmp_path / "new", CIFAR10DataModule)
    loaded(tmp_path / "new", CIFAR10DataModule)
    assert asked == [(CIFAR10.url, CIFAR10.tgz_md5)]
    assert list(contents(tmp_path / "new")) == [ARCHIVE]
