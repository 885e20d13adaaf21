"""CIFAR-10: real splits, and nothing is unpickled but the published files.

Where `DATA_DIR` holds CIFAR-10 the sets are those of the real files, else of smaller made ones.
"""

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, utils

from src.datamodules import published_datamodule
from src.datamodules.cifar10_datamodule import ARCHIVE, PICKLES, CIFAR10DataModule
from tests.datamodules.test_mnist_datamodule import contents, md5

DATA_DIR = Path(os.environ.get("DATA_DIR") or "data")
NAMES = list(CIFAR10DataModule.files)
HAS_CIFAR10 = all((DATA_DIR / PICKLES / name).is_file() for name in NAMES)
SPLIT, MADE_SPLIT = [45_000, 5_000, 10_000], [80, 20, 30]  # 20 training images a file


def old_pickle(batch: dict[str, object]) -> bytes:
    """As NumPy 1 and Python 2 wrote it: an array is rebuilt by numpy.core.multiarray, and texts are bytes."""
    content = pickle.dumps({name.encode(): value for name, value in batch.items()}, protocol=3)
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def unpickled(content: bytes) -> dict[bytes, Any]:
    return pickle.loads(content, encoding="bytes")


def make_files() -> dict[str, bytes]:
    """Random images, whose labels are 0, 1, ..., 9, 0, 1, ..."""
    files = {}
    for i, name in enumerate(NAMES):
        n = MADE_SPLIT[2] if name == "test_batch" else sum(MADE_SPLIT[:2]) // 5
        data = np.random.default_rng(i).integers(256, size=(n, 3072), dtype=np.uint8)
        files[name] = old_pickle({"data": data, "labels": [i % 10 for i in range(n)]})
    return files


MADE = make_files()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data module takes the made files for CIFAR-10."""
    monkeypatch.setattr(CIFAR10DataModule, "files", {name: md5(MADE[name]) for name in NAMES})
    monkeypatch.setattr(CIFAR10DataModule, "n_train", sum(MADE_SPLIT[:2]))
    monkeypatch.setattr(CIFAR10DataModule, "n_test", MADE_SPLIT[2])


def archived(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in [("readme.html", b"hello"), *reversed(files.items())]:
            member = tarfile.TarInfo(f"{PICKLES}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def write(data_dir: Path, packed: bool = False, **instead: bytes) -> Path:
    files = MADE | instead
    if packed:
        (data_dir / ARCHIVE).write_bytes(archived(files))
        return data_dir
    (data_dir / PICKLES).mkdir()
    for name, content in files.items():
        (data_dir / PICKLES / name).write_bytes(content)
    return data_dir


def loaded(data_dir: Path, **kwargs) -> CIFAR10DataModule:
    datamodule = CIFAR10DataModule(data_dir, **{"train_val_test_split": MADE_SPLIT, "batch_size": 10} | kwargs)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


# The sets


def test_no_image_is_in_two_sets_and_the_test_set_is_the_official_one(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    split, folder = (SPLIT, DATA_DIR) if HAS_CIFAR10 else (MADE_SPLIT, tmp_path)
    if not HAS_CIFAR10:
        request.getfixturevalue("made")
        write(tmp_path)
    datamodule = loaded(folder, train_val_test_split=split)
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == split

    official = [unpickled((folder / PICKLES / name).read_bytes()) for name in NAMES]
    images = {name: data.images.flatten(1).numpy() for name, data in datamodule.sets.items()}
    assert np.array_equal(images["test"], official[-1][b"data"])
    assert datamodule.sets["test"].labels.tolist() == official[-1][b"labels"]
    # Each official training image is used once, with its label.
    together = sorted(
        (row.tobytes(), int(label))
        for name in ("train", "val")
        for row, label in zip(images[name], datamodule.sets[name].labels, strict=True)
    )
    rows = [zip(batch[b"data"], batch[b"labels"], strict=True) for batch in official[:-1]]
    assert together == sorted((row.tobytes(), label) for batch in rows for row, label in batch)


@pytest.mark.parametrize("img_size", [32, 64])
def test_batches_are_in_colour(tmp_path: Path, made: None, img_size: int) -> None:
    datamodule = loaded(write(tmp_path), img_size=img_size, flip=False)
    images, labels = next(iter(datamodule.val_dataloader()))
    assert images.shape == (10, 3, img_size, img_size) and labels.dtype == torch.int64
    if img_size == 32:  # red, green and blue planes, row by row
        row = datamodule.sets["val"].images[0].flatten()
        assert any(np.array_equal(row, image) for name in NAMES for image in unpickled(MADE[name])[b"data"])
        torch.testing.assert_close(images[0].flatten(), row / 127.5 - 1)


def test_the_archive_gives_the_same_sets_as_its_contents(tmp_path: Path, made: None, no_network: None) -> None:
    for folder in ("packed", "unpacked"):
        (tmp_path / folder).mkdir()
    packed = loaded(write(tmp_path / "packed", packed=True))
    unpacked = loaded(write(tmp_path / "unpacked"))
    for name, data in unpacked.sets.items():
        assert torch.equal(packed.sets[name].images, data.images)
        assert torch.equal(packed.sets[name].labels, data.labels)
    assert list(contents(tmp_path / "packed")) == [ARCHIVE]  # nothing unpacked, nothing added


@pytest.mark.parametrize("split", [[45_000, 5_000, 9_999], [55_000, 5_000, 10_000]])
def test_a_split_that_does_not_add_up_is_refused(split: list[int]) -> None:
    with pytest.raises(ValueError, match=r"train_val_test_split.*50000.*10000: try \[45000,5000,10000\]"):
        CIFAR10DataModule("data/", split)


# Files


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_it_is_published_where_torchvision_says() -> None:
    assert CIFAR10DataModule.files == dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert (ARCHIVE, CIFAR10DataModule.archive_md5, PICKLES) == (CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.base_folder)
    assert f"{CIFAR10DataModule.mirrors[0]}{ARCHIVE}" == CIFAR10.url


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "changed", "text", "hostile"])
def test_another_pickle_is_named_and_not_unpickled(tmp_path: Path, made: None, packed: bool, damage: str) -> None:
    content = MADE["data_batch_3"]
    changed = content[:5000] + bytes([content[5000] ^ 255]) + content[5001:]
    hostile = pickle.dumps(Hostile(tmp_path / "touched"))
    bad = {"truncated": content[:5000], "changed": changed, "text": b"404 not found", "hostile": hostile}[damage]
    write(tmp_path, packed, data_batch_3=bad)
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged \(its md5 should be \w+\): delete it") as error:
        loaded(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "incomplete"])
def test_a_damaged_archive_is_named(tmp_path: Path, made: None, damage: str) -> None:
    whole = archived(MADE)
    less = archived({name: MADE[name] for name in NAMES[1:]})
    bad = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"404 not found", "incomplete": less}[damage]
    (tmp_path / ARCHIVE).write_bytes(bad)
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged \(.*\): delete it, and it is downloaded again"):
        loaded(tmp_path)


def test_without_files_and_network_it_says_what_to_put_where(tmp_path: Path, made: None, no_network: None) -> None:
    write(tmp_path)
    (tmp_path / PICKLES / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError) as error:
        loaded(tmp_path)
    message = str(error.value)
    assert message.startswith(f"CIFAR-10 is not in {tmp_path} and could not be downloaded")
    assert f"put {ARCHIVE} there" in message and "no route to host" in message


def test_a_missing_archive_is_downloaded(tmp_path: Path, made: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def serve(url: str, folder: str, md5: str) -> None:
        asked.append((url, md5))
        (Path(folder) / ARCHIVE).write_bytes(archived(MADE))

    monkeypatch.setattr(published_datamodule, "check_answers", lambda _: None)
    monkeypatch.setattr(utils, "download_url", serve)
    loaded(tmp_path / "new")
    loaded(tmp_path / "new")
    assert asked == [(CIFAR10.url, CIFAR10.tgz_md5)]
    assert list(contents(tmp_path / "new")) == [ARCHIVE]
