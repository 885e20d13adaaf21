"""A folder of pictures: classes and splits from what is there. See also the files and their pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.datamodules.folder_datamodule import FolderDataModule
from src.models.prompts import LENGTH, to_codes
from tests.conftest import build

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
COUNTS = {"blue": 10, "green": 20, "red": 40}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour a class; the first column tells them apart."""
    folder = tmp_path_factory.mktemp("pictures") / "colours"
    for name in reversed(COUNTS):
        (folder / name).mkdir(parents=True)
        for i in range(COUNTS[name]):
            pixels = np.full((8, 8, 3), COLOURS[name], np.uint8)
            pixels[:, 0] = i
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


def loaded(folder: Path, **kwargs) -> FolderDataModule:
    datamodule = FolderDataModule(folder, **{"img_size": 8, "batch_size": 5} | kwargs)
    datamodule.setup()
    return datamodule


def pictures(datamodule: FolderDataModule, split: str) -> list[tuple[int, int]]:
    """The label and the number of each picture."""
    data = datamodule.sets[split]
    return list(zip(data.labels.tolist(), data.images[:, 0, 0, 0].tolist(), strict=True))


# Classes and splits


def test_classes_are_the_subfolders_sorted_by_name(original: Path) -> None:
    datamodule = FolderDataModule(original, batch_size=5)  # known before a picture is read
    assert list(datamodule.class_names) == ["blue", "green", "red"]
    assert (datamodule.n_classes, datamodule.channels, datamodule.source) == (3, 3, "colours")
    datamodule = loaded(original)
    for data in datamodule.sets.values():
        for image, label in zip(data.images, data.labels.tolist(), strict=True):
            assert image[:, 4, 4].tolist() == list(COLOURS[datamodule.class_names[label]])


def test_each_class_is_split_by_the_shares(original: Path) -> None:
    datamodule = loaded(original)
    counts = {name: data.labels.bincount().tolist() for name, data in datamodule.sets.items()}
    assert counts == {"train": [8, 16, 32], "val": [1, 2, 4], "test": [1, 2, 4]}
    assert datamodule.train_val_test_split == [56, 7, 7]


def test_each_picture_is_in_one_set_the_same_for_every_run(original: Path) -> None:
    first, other = loaded(original, seed=1), loaded(original, seed=2, batch_size=7, flip=True)
    drawn = {split: pictures(first, split) for split in first.sets}
    assert drawn == {split: pictures(other, split) for split in other.sets}
    together = sorted(drawn["train"] + drawn["val"] + drawn["test"])
    assert together == [(label, i) for label, n in enumerate(COUNTS.values()) for i in range(n)]
    labels = first.sets["train"].labels
    assert labels.tolist() != sorted(labels.tolist())  # the first few are of all classes


@pytest.mark.parametrize(
    ("n", "shares", "sizes"),
    [
        (10, (0.8, 0.1, 0.1), [8, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (100, (0.7, 0.2, 0.1), [70, 20, 10]),
        (7, (0.4, 0.3, 0.3), [3, 2, 2]),
    ],
)
def test_shares_become_counts(tmp_path: Path, n: int, shares: tuple[float, ...], sizes: list[int]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(n):
            (tmp_path / name / f"{i}.png").touch()
    datamodule = FolderDataModule(tmp_path, shares, batch_size=1)
    assert datamodule.train_val_test_split == [2 * size for size in sizes]


def test_a_subset_and_grey_batches(original: Path) -> None:
    datamodule = loaded(original, subset_per_class=8, channels=1, img_size=6)
    assert datamodule.sets["train"].labels.bincount().tolist() == [8, 8, 8]
    images, _ = next(iter(datamodule.train_dataloader()))
    assert images.shape == (5, 1, 6, 6)


# Captions


@pytest.fixture
def captioned(original: Path, tmp_path: Path) -> Path:
    """The red pictures; the caption of each is its number, but for a few."""
    folder = shutil.copytree(original / "red", tmp_path / "red")
    texts = {f"{i:02}.png": f"Number {i}!" for i in range(40)} | {"07.png": " ?", "09.png": "é" * 200}
    rows = [f'{{"file_name": "{name}", "text": "{text}"}}' for name, text in texts.items()]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_captions_are_served_instead_of_labels(captioned: Path, caplog: pytest.LogCaptureFixture) -> None:
    datamodule = loaded(captioned, captions="text")
    assert (datamodule.n_classes, list(datamodule.class_names)) == (0, [])
    assert datamodule.train_val_test_split == [32, 4, 4]
    assert caplog.messages == [
        "1 of 40 captions have no letter and no digit: these pictures are trained on as if nothing were asked for"
        f" ({captioned}/07.png)",
        f"1 of 40 captions have more than 128 characters: the rest is left out ({captioned}/09.png)",
    ]
    seen = []
    for split, data in datamodule.sets.items():
        assert data.captions is not None and data.captions.dtype == torch.int32
        assert data.labels.tolist() == [0] * len(data)
        for images, codes in getattr(datamodule, f"{split}_dataloader")():
            assert codes.dtype == torch.int64 and codes.shape == (len(images), LENGTH)
            seen += list(zip(((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist(), codes, strict=True))
    for number, codes in seen:
        expected = {7: "", 9: "é" * LENGTH}.get(number, f"number {number}")
        assert "".join(map(chr, codes[codes > 0].tolist())) == expected
    assert {number for number, _ in seen} >= {7, 9}


def test_captions_stay_with_their_pictures_in_a_subset_and_count_in_the_checksum(captioned: Path) -> None:
    datamodule = loaded(captioned, captions="text", subset=6)
    data = datamodule.sets["train"]
    assert data.captions is not None and len(data.captions) == len(data.images) == 6
    numbers = data.images[:, 0, 0, 0].tolist()
    assert torch.equal(data.captions.long(), torch.from_numpy(to_codes([f"number {i}" for i in numbers])))
    with pytest.raises(ValueError, match="subset_per_class needs classes, which these data do not have: use subset"):
        loaded(captioned, captions="text", subset_per_class=2)
    before = datamodule.sha256()
    table = captioned / "metadata.jsonl"
    table.write_text(table.read_text(encoding="utf-8").replace("Number 5!", "Number V!"), encoding="utf-8")
    assert loaded(captioned, captions="text").sha256() != before


def test_captions_without_any_text_are_refused(captioned: Path) -> None:
    (captioned / "metadata.jsonl").unlink()
    rows = "".join(f"{i:02}.png,...\n" for i in range(40))
    (captioned / "metadata.csv").write_text(f"file_name,text\n{rows}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions is 'text', a column of .*red with no text in it: fill it in"):
        loaded(captioned, captions="text")


# What cannot be

NOT_SHARES = "train_val_test_split must be a list of three shares that make 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": None}, r"folder must be set: datamodule\.folder=DIR"),
        ({"folder": "nowhere"}, "folder is nowhere, which cannot be read .No such file or directory.: set"),
        ({"channels": 2}, "channels must be 3 for colour or 1 for grey, not 2"),
        ({"train_val_test_split": [8, 1, 1]}, rf"{NOT_SHARES}.*\[8, 1, 1\]"),
        ({"train_val_test_split": [0.9, 0.1]}, NOT_SHARES),
        ({"train_val_test_split": [1.0, 0.0, 0.0]}, NOT_SHARES),
        ({"train_val_test_split": [0.02, 0.49, 0.49]}, "no picture of 'blue' to train on: add pictures to the 10"),
        ({"subset": 57}, "subset is 57, but there are only 56 training images"),
        ({"crop": 0.6}, "crop must be a number from 0 to 0.5, not 0.6"),
        ({"captions": 5}, "captions must be text or null, not 5"),
        ({"img_size": 0}, "img_size must be a whole number of at least 1, not 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(original: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(FolderDataModule, **{"folder": str(original), "batch_size": 5} | arguments)


def test_a_folder_without_classes_is_refused(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "colours")
    with pytest.raises(ValueError, match=r"red, which has 0 classes: put .* into a subfolder.*40 in no"):
        FolderDataModule(folder / "red")
    with pytest.raises(ValueError, match=r"00\.png, which cannot be read \(Not a directory\)"):
        FolderDataModule(folder / "red" / "00.png")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder is .*, where 'empty' has no pictures: put some into it"):
        FolderDataModule(folder)
    for name in ("blue", "empty", "red"):
        shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=r"which has 1 classes .green.: .*two classes at least"):
        FolderDataModule(folder)
