"""Tar files of pictures: classes, captions and splits from what is in them, and what strangers may have put there."""

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from src.datamodules.shards import find_shards
from src.datamodules.shards_datamodule import ShardsDataModule
from src.errors import UserError
from tests.conftest import assert_same

Files = dict[str, bytes]


def picture(number: int, kind: str = "PNG") -> bytes:
    """Of one grey, which is its number."""
    file = io.BytesIO()
    Image.new("L", (6, 6), number).save(file, kind)
    return file.getvalue()


def write(path: Path, files: Files, kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: range) -> Files:
    """The class of a picture is whether its number is odd."""
    files: Files = {}
    for number in numbers:
        files |= {f"{number:04}.png": picture(number), f"{number:04}.cls": str(number % 2).encode()}
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(3):
        write(tmp_path / "Große Daten" / f"{shard}.tar", samples(range(20 * shard, 20 * shard + 20)))
    return tmp_path / "Große Daten"


def loaded(folder: Path, **kwargs) -> ShardsDataModule:
    options = {"img_size": 6, "channels": 1, "batch_size": 4, "cache_dir": folder.parent / "index", "num_workers": 0}
    datamodule = ShardsDataModule(folder, **options | kwargs)
    datamodule.setup()
    return datamodule


def served(datamodule: ShardsDataModule, split: str) -> list[tuple[int, int]]:
    """The number and the class of each picture."""
    found = []
    for images, labels in getattr(datamodule, f"{split}_dataloader")():
        numbers = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        found += list(zip(numbers, labels.tolist(), strict=True))
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_picture_is_served_with_its_class(folder: Path, num_workers: int) -> None:
    datamodule = loaded(folder, in_memory=False, num_workers=num_workers)
    assert (datamodule.class_names, datamodule.source) == (["0", "1"], "Große Daten")
    found = [pair for split in ("train", "val", "test") for pair in served(datamodule, split)]
    assert sorted(found) == [(number, number % 2) for number in range(60)]
    near = loaded(folder, in_memory=True)
    for split in ("train", "val", "test"):
        assert_same(*(list(getattr(each, f"{split}_dataloader")()) for each in (near, datamodule)))


def test_shards_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        first = loaded(folder)
    (index,) = (folder.parent / "index").iterdir()
    assert f"reading 3 shards of {folder} once, for {index}" in caplog.messages
    with monkeypatch.context() as patch:
        patch.setattr("src.datamodules.shards_datamodule.read_shard", None)
        again = loaded(folder)
    assert again.sha256() == first.sha256() and served(again, "val") == served(first, "val")
    index.write_bytes(index.read_bytes()[:-100])
    assert served(loaded(folder), "val") == served(first, "val")
    assert f"{index} is damaged: it is made anew" in caplog.messages
    write(folder / "3.tar", samples(range(60, 70)))
    assert sum(len(each) for each in loaded(folder).sets.values()) == 70


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train/0.tar train/1.tar val/0.tar", ["train", "train", "val"]),
        ("digits-train-000.tar digits-test-000.tar", ["test", "train"]),
        ("0.tar val-0.tar", [None, None]),
        ("training.tar constraint.tar", [None, None]),
    ],
)
def test_splits_are_what_folders_or_names_say(tmp_path: Path, names: str, splits: list[str | None]) -> None:
    for name in names.split():
        write(tmp_path / name, {})
    assert [split for _, split in find_shards(tmp_path)] == splits


def test_ready_made_splits_stay_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train-0.tar", samples(range(20)))
    write(tmp_path / "d" / "validation-0.tar", samples(range(20, 30)))
    datamodule = loaded(tmp_path / "d")
    assert datamodule.train_val_test_split == [18, 10, 2]  # a test split is taken from train
    assert sorted(number for number, _ in served(datamodule, "val")) == list(range(20, 30))


def test_classes_and_captions_from_json_and_text(tmp_path: Path) -> None:
    files: Files = {}
    for number in range(12):
        about = {"label": ["cat", "Dog"][number % 2], "title": f"number {number}"}
        files |= {f"x/{number}.JPG": picture(number, "JPEG"), f"x/{number}.json": json.dumps(about).encode()}
        files[f"x/{number}.txt"] = f"text {number}".encode()
    write(tmp_path / "d" / "0.tar", files)
    assert loaded(tmp_path / "d").class_names == ["cat", "Dog"]
    for captions, word in (("txt", "text"), ("title", "number")):
        datamodule = loaded(tmp_path / "d", captions=captions, in_memory=False)
        for images, codes in datamodule.val_dataloader():
            texts = ["".join(map(chr, row[row > 0].tolist())) for row in codes]
            numbers = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
            assert texts == [f"{word} {number}" for number in numbers]
    with pytest.raises(
        ValueError,
        match=r"captions is 'nothing', but the shards of .* have no such text, or one with no text in it: fill it in",
    ):
        loaded(tmp_path / "d", captions="nothing")


def test_long_names_and_what_is_no_picture(tmp_path: Path) -> None:
    deep = "a" * 90 + "/" + "b" * 120
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = write(
            tmp_path / "d" / "0.tar", samples(range(12)) | {f"{deep}.png": picture(99), f"{deep}.cls": b"1"}, kind
        )
        with tarfile.open(path, "a") as tar:
            for name, what in [
                ("link.png", tarfile.SYMTYPE),
                ("hard.png", tarfile.LNKTYPE),
                ("fifo.png", tarfile.FIFOTYPE),
            ]:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = what, "/etc/passwd"
                tar.addfile(member)
        assert sum(len(each) for each in loaded(tmp_path / "d").sets.values()) == 13


# Faults


def test_a_folder_without_shards_or_with_compressed_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which has no \*\.tar: set datamodule\.folder=DIR"):
        loaded(tmp_path)
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed.*unpack it to a \.tar"):
        loaded(tmp_path)


@pytest.mark.parametrize("cut", [100, 700, 5_000, 8_192, -1, -1_024, -10_240])
def test_a_shard_that_is_cut_off_is_named(folder: Path, cut: int) -> None:
    content = (folder / "1.tar").read_bytes()
    end = len(content.rstrip(b"\0"))  # what follows only fills up
    (folder / "1.tar").write_bytes(content[:cut] if cut > 0 else content[: end + 1 + cut])
    with pytest.raises(ValueError, match=r"1\.tar is not a whole tar file \(.*\): fetch it again"):
        loaded(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": picture(1), "a.jpg": picture(1)}, "a.jpg is there twice, or there are two pictures: rename one"),
        ({"a.png": picture(1)}, "a.png has no class: add its NAME.cls, or remove those of all others"),
        ({"a.png": picture(1), "a.json": b"{"}, "a.json is not JSON"),
        ({"a.png": picture(1), "a.json": b"[]"}, "a.json is not an object"),
        ({"a.png": picture(1), "a.cls": b"\xff"}, "a.cls is not UTF-8"),
        ({"a.png": picture(1), "a.cls": b"1" * 2_000_000}, "a.cls has 2,000,000 bytes, which is too many"),
    ],
)
def test_a_member_that_cannot_be_meant_is_named(folder: Path, files: Files, message: str) -> None:
    write(folder / "3.tar", files)
    with pytest.raises(ValueError, match="3.tar.*" + message.replace(".", r"\.")):
        loaded(folder)


def test_a_name_that_is_there_twice_is_refused(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "a") as tar:
        member = tarfile.TarInfo("0007.png")
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"0\.tar: 0007\.png is there twice"):
        loaded(folder)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d" / "0.tar", {f"{number}.png": picture(number) for number in range(12)})
    with pytest.raises(ValueError, match=r"whose shards have 0 classes: put a NAME\.cls beside each NAME\.jpg"):
        loaded(tmp_path / "d")


def test_a_damaged_picture_is_named_by_shard_and_name(folder: Path) -> None:
    datamodule = loaded(folder, in_memory=False)
    images = datamodule.sets["train"].images
    member = images.pictures[images.rows[30].item()]  # type: ignore[attr-defined]
    content = bytearray(member.shard.read_bytes())
    content[member.offset : member.offset + member.size] = bytes(member.size)
    member.shard.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{member.shard.name}: \d{{4}}\.png cannot be decoded \(not a picture of a kind"
    ):
        list(datamodule.train_dataloader())
    member.shard.unlink()
    with pytest.raises(UserError, match=rf"{member.shard.name}.* cannot be decoded \(No such file or directory\)"):
        list(datamodule.train_dataloader())
