"""Flowers: packed photos or the official files, divided class by class. Where `DATA_DIR` holds the packed ones: those.

The made ones are three classes of ten photos, each photo in a colour of its own.
"""

import io
import itertools
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from src.datamodules.flowers_datamodule import ARCHIVE, LABELS, PACKED, PHOTOS, SETS, FlowersDataModule
from tests.conftest import build
from tests.datamodules.conftest import DATA_DIR, HAS_FLOWERS, changed, contents, md5

SPLIT = [18, 6, 6]
# The number of each photo, from 1, beside those of the official test, and its official label.
NUMBERS = range(1, 41)
LABEL_OF = {number: number % 3 + 1 for number in NUMBERS}
USED = [number for number in NUMBERS if number <= 30]


def photo(number: int, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (6 * number, 100, 255 - 6 * number))


def packed() -> bytes:
    images = np.stack([np.asarray(photo(number, (64, 64))) for number in USED])
    content = io.BytesIO()
    np.savez(content, images=images, labels=np.array([LABEL_OF[number] - 1 for number in USED], np.int64))
    return content.getvalue()


def official() -> dict[str, bytes]:
    files = {}
    for name, arrays in {
        LABELS: {"labels": np.array([[LABEL_OF[number] for number in NUMBERS]], np.uint8)},
        SETS: {
            "trnid": np.array([USED[::2]], np.uint16),
            "valid": np.array([USED[1::2]], np.uint16),
            "tstid": np.array([NUMBERS[30:]], np.uint16),
        },
    }.items():
        content = io.BytesIO()
        savemat(content, arrays)
        files[name] = content.getvalue()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for number in NUMBERS:
            jpeg = io.BytesIO()
            photo(number, (96, 80)).save(jpeg, "JPEG", quality=100)
            member = tarfile.TarInfo(f"{PHOTOS}/image_{number:05}.jpg")
            member.size = jpeg.tell()
            archive.addfile(member, io.BytesIO(jpeg.getvalue()))
    return files | {ARCHIVE: content.getvalue()}


PACKED_CONTENT, OFFICIAL = packed(), official()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data module takes the made files for the published ones."""
    monkeypatch.setattr(FlowersDataModule, "class_names", ("rose", "daisy", "tulip"))
    monkeypatch.setattr(FlowersDataModule, "n_classes", 3)
    monkeypatch.setattr(FlowersDataModule, "n_photos", len(USED))
    monkeypatch.setattr(FlowersDataModule, "packed_md5", md5(PACKED_CONTENT))
    monkeypatch.setattr(FlowersDataModule, "files", {name: md5(content) for name, content in OFFICIAL.items()})


def write(data_dir: Path, names: str, **instead: bytes) -> Path:
    """Writes the `packed` photos or the `official` files, or both; `instead` replaces the contents of some."""
    files = {PACKED: PACKED_CONTENT} if "packed" in names else {}
    files |= {f"flowers-102/{name}": content for name, content in OFFICIAL.items() if "official" in names}
    for name, content in files.items():
        (data_dir / name).parent.mkdir(exist_ok=True)
        (data_dir / name).write_bytes(instead.get(Path(name).stem, content))
    return data_dir


def loaded(data_dir: Path, **kwargs) -> FlowersDataModule:
    datamodule = FlowersDataModule(data_dir, **{"train_val_test_split": SPLIT, "batch_size": 5} | kwargs)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def photos(datamodule: FlowersDataModule, split: str) -> list[tuple[int, int]]:
    """The number of each photo, and its label."""
    data = datamodule.sets[split]
    assert data.images.shape[1:] == (3, data.images.shape[-1], data.images.shape[-1])
    return list(zip((data.images[:, 0, 5, 5] / 6).round().int().tolist(), data.labels.tolist(), strict=True))


@pytest.mark.parametrize("names", ["packed", "official"])
def test_each_photo_is_in_one_set_with_its_label(tmp_path: Path, made: None, names: str) -> None:
    datamodule = loaded(write(tmp_path, names))
    sets = [photos(datamodule, split) for split in ("train", "val", "test")]
    assert sorted(itertools.chain(*sets)) == [(number, LABEL_OF[number] - 1) for number in USED]
    assert [data.labels.bincount().tolist() for data in datamodule.sets.values()] == [[6] * 3, [2] * 3, [2] * 3]
    assert sets == [photos(loaded(tmp_path, seed=5, img_size=32), split) for split in ("train", "val", "test")]


def test_both_kinds_of_files_make_the_same_sets(tmp_path: Path, made: None) -> None:
    """So that runs compare."""
    write(tmp_path, "official")
    from_files = {split: photos(loaded(tmp_path), split) for split in ("train", "val", "test")}
    (tmp_path / "flowers-102" / ARCHIVE).unlink()  # no longer needed
    before = contents(tmp_path)
    again = loaded(tmp_path)
    assert from_files == {split: photos(again, split) for split in from_files}
    assert contents(tmp_path) == before
    packed_ones = loaded(write(tmp_path, "packed"))
    assert from_files == {split: photos(packed_ones, split) for split in from_files}


def test_larger_images_are_taken_from_the_official_files_where_they_are(
    tmp_path: Path, made: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        enlarged = loaded(write(tmp_path, "packed"), img_size=80)
    assert enlarged.sets["train"].images.shape[-1] == 64 and next(iter(enlarged.train_dataloader()))[0].shape[-1] == 80
    assert "has photos of 64 pixels, which are enlarged to 80: put the official files into" in caplog.text
    assert loaded(write(tmp_path, "official"), img_size=80).sets["train"].images.shape[-1] == 80


def test_all_classes_are_in_all_sets_alike(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    data_dir, split = DATA_DIR, [1_632, 204, 204]
    if not HAS_FLOWERS:
        request.getfixturevalue("made")
        data_dir, split = write(tmp_path, "packed"), SPLIT
    datamodule = loaded(data_dir, train_val_test_split=split)
    n = datamodule.n_classes
    for name, size in zip(["train", "val", "test"], split, strict=True):
        assert datamodule.sets[name].labels.bincount(minlength=n).tolist() == [size // n] * n
    assert len(datamodule.references["train"].images.flatten(1).unique(dim=0)) == split[0]


def test_they_are_published_where_torchvision_says() -> None:
    files = dict(Flowers102._file_dict.values())
    assert FlowersDataModule.files == files and FlowersDataModule.mirrors == (Flowers102._download_url_prefix,)
    assert list(FlowersDataModule.class_names) == [name.rstrip("?") for name in Flowers102.classes]


def test_torchvision_finds_the_same_photos(tmp_path: Path, made: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "official")
    ours = loaded(tmp_path)
    keys = {"image": ARCHIVE, "label": LABELS, "setid": SETS}
    monkeypatch.setattr(Flowers102, "_file_dict", {key: (name, ours.files[name]) for key, name in keys.items()})
    theirs = [pair for split in ("train", "val") for pair in Flowers102(tmp_path, split)]
    expected = [(round(np.asarray(image)[5, 5, 0] / 6), label) for image, label in theirs]
    assert sorted(expected) == sorted(pair for split in ours.sets for pair in photos(ours, split))


@pytest.mark.parametrize(
    ("names", "instead", "says"),
    [
        ("packed", {"flowers64": changed(PACKED_CONTENT)}, r"flowers64\.npz is damaged"),
        ("official", {"setid": changed(OFFICIAL[SETS])}, r"setid\.mat is damaged"),
        ("official", {"102flowers": OFFICIAL[ARCHIVE][: len(OFFICIAL[ARCHIVE]) // 2]}, r"102flowers\.tgz is damaged"),
        ("official", {"102flowers": changed(OFFICIAL[ARCHIVE])}, r"102flowers\.tgz is damaged"),
        ("official", {"102flowers": b"404 not found"}, r"102flowers\.tgz is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, made: None, names: str, instead: dict[str, bytes], says: str) -> None:
    with pytest.raises(ValueError, match=f"{says} .*: delete it") as error:
        loaded(write(tmp_path, names, **instead))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "flowers-102" / PHOTOS).exists()  # half of the photos would be taken for all


def test_photos_that_are_missing_are_named(tmp_path: Path, made: None) -> None:
    loaded(write(tmp_path, "official"))
    (tmp_path / "flowers-102" / PHOTOS / "image_00007.jpg").unlink()
    with pytest.raises(ValueError, match=r"jpg lacks image_00007\.jpg: delete it, and it is made again"):
        loaded(tmp_path)


def test_without_files_and_network_it_says_what_to_put_where(tmp_path: Path, made: None, no_network: None) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"102 Flowers is not in .*flowers-102 .*: put imagelabels\.mat, setid\.mat, 102flow"
    ):
        loaded(tmp_path)


@pytest.mark.parametrize("split", [[1_632, 204, 203], [1_633, 203, 204], [2_040, 204, 204]])
def test_a_split_that_cannot_be_even_is_refused(split: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must make 2040, each a multiple of the 102 classes: try \[1632,204,204\]"):
        build(FlowersDataModule, data_dir="data/", train_val_test_split=split)
