"""Which pictures are found, of which classes and splits, and what is said of the rest."""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from src.datamodules.folder_datamodule import FolderDataModule
from src.datamodules.picture_files import find_pictures


def put(*paths: Path | str) -> None:
    """A picture under each name."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 99).save(path, format="PNG")


def classes(folder: Path, names: str = "cat dog", n: int = 3) -> Path:
    put(*(folder / name / f"{i}.png" for name in names.split() for i in range(n)))
    return folder


def found(folder: Path) -> list[tuple[str, str, str | None]]:
    """The path, the class and the split of each picture."""
    return [(p.path.relative_to(folder).as_posix(), p.label, p.split) for p in find_pictures(folder).pictures]


def labels(folder: Path) -> dict[str, int]:
    return dict(Counter(picture.label for picture in find_pictures(folder).pictures))


def sizes(folder: Path) -> dict[str, list[int]]:
    """How many pictures of each class each split has."""
    datamodule = FolderDataModule(folder, batch_size=1, img_size=4)
    datamodule.setup()
    return {name: data.labels.bincount().tolist() for name, data in datamodule.sets.items()}


@pytest.mark.parametrize(
    "names",
    [
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "img1 img2 img10",
        "0 01 1 2a 2b 10",
        "ant Bee cat Étage étage2 étage10",
        "v1.2 v1.10 v2.1",
    ],
)
def test_numbers_are_sorted_by_their_value_and_words_without_case(names: str, tmp_path: Path) -> None:
    classes(tmp_path, " ".join(reversed(names.split())))
    assert find_pictures(tmp_path).class_names == names.split()


def test_pictures_are_found_at_any_depth_under_any_ending(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x" / "y" / "2.png", tmp_path / "a" / "10.PNG", tmp_path / "a" / "1", tmp_path / "a" / "3.dat")
    put(tmp_path / "b" / "1.jfif", tmp_path / "b" / "2.jp2", tmp_path / "b" / "3.tga", tmp_path / "b" / "4.qoi")
    assert [path for path, *_ in found(tmp_path)] == [
        *("a/1", "a/3.dat", "a/10.PNG", "a/x/y/2.png"),
        *("b/1.jfif", "b/2.jp2", "b/3.tga", "b/4.qoi"),
    ]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = classes(tmp_path)
    put(folder / "stray.png", folder / "__MACOSX" / "cat" / "._1.png", folder / ".cache" / "a.png")
    (folder / "dog" / "deep").mkdir()
    for name in ("cat/b.heic", "cat/a.HEIC", "dog/deep/x.npy", "dog/LICENSE", "readme.txt", ".hidden", "cat/Thumbs.db"):
        (folder / name).write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        assert sizes(folder) == {"train": [1, 1], "val": [1, 1], "test": [1, 1]}
    assert caplog.messages == [
        f"left out of {folder}: 5 not readable as pictures (2 .heic, 1 .npy, 1 no ending, 1 .txt: cat/a.HEIC,"
        " cat/b.heic, dog/deep/x.npy, and 2 more); 1 in no class's folder (1 .png: stray.png)"
    ]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", "cat")
    classes(tmp_path / "elsewhere", "wolf")
    os.symlink(tmp_path / "elsewhere" / "wolf", folder / "dog")
    os.symlink(folder, folder / "cat" / "again")
    os.symlink(folder / "cat", folder / "cat" / "self")
    os.symlink(tmp_path / "nowhere", folder / "cat" / "broken.png")
    assert labels(folder) == {"cat": 3, "dog": 3}


def test_equal_names_in_other_unicode_forms_are_one_class(tmp_path: Path) -> None:
    put(*(tmp_path / "train" / normalize("NFC", name) / "1.png" for name in ("Äpfel", "Öl")))
    put(*(tmp_path / "test" / normalize("NFD", name) / "1.png" for name in ("Äpfel", "Öl")))
    assert labels(tmp_path) == {normalize("NFC", "Äpfel"): 2, normalize("NFC", "Öl"): 2}


# Ready-made splits


@pytest.mark.parametrize("names", ["train val test", "Training validation Testing", "TRAIN valid test"])
def test_ready_made_splits_stay_as_they_are(tmp_path: Path, names: str) -> None:
    for name, n in zip(names.split(), (5, 2, 3), strict=True):
        classes(tmp_path / name, n=n)
    assert sizes(tmp_path) == {"train": [5, 5], "val": [2, 2], "test": [3, 3]}


@pytest.mark.parametrize(
    ("names", "expected", "says"),
    [
        ("train test", [[18, 18], [2, 2], [20, 20]], "no val: 4 images for val"),
        ("train val", [[18, 18], [20, 20], [2, 2]], "no test: 4 images for test"),
        ("train", [[16, 16], [2, 2], [2, 2]], "no val and no test: 4 images for val and 4 images for test"),
    ],
)
def test_a_missing_split_is_taken_from_train_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, expected: list[list[int]], says: str
) -> None:
    for name in names.split():
        classes(tmp_path / name, n=20)
    with caplog.at_level(logging.WARNING):
        assert sizes(tmp_path) == dict(zip(["train", "val", "test"], expected, strict=True))
    assert caplog.messages == [f"{tmp_path} has {says} are taken from train"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    classes(tmp_path, "train plane")
    assert find_pictures(tmp_path).class_names == ["plane", "train"]


def test_what_lies_beside_splits_is_no_class(tmp_path: Path) -> None:
    for name in ("train", "test", "unlabeled"):
        classes(tmp_path / name, n=20)
    assert labels(tmp_path) == {"cat": 40, "dog": 40}
    assert "40 beside the splits' folders (40 .png: unlabeled/cat/0.png" in find_pictures(tmp_path).in_words()


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat dog emu")
    classes(tmp_path / "test", "cat dog fox")
    with pytest.raises(ValueError, match="whose train split has no pictures of 'fox': every split needs every class"):
        FolderDataModule(tmp_path)
    classes(tmp_path / "train", "fox")
    with pytest.raises(ValueError, match="whose test split has no pictures of 'emu'"):
        FolderDataModule(tmp_path)
    classes(tmp_path / "testing")
    with pytest.raises(ValueError, match="test and testing are both the test split: keep one of them"):
        FolderDataModule(tmp_path)


# Tables


def table(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))
    return folder


ROWS = [("a.png", "cat"), ("x/b.png", "dog"), ("10.png", "cat"), ("9.png", "dog")]
CSV = "\n".join(["file_name,label", *(f"{name},{label}" for name, label in ROWS)])
OBJECTS = [json.dumps({"file_name": f"./{name}", "label": label, "text": "ä"}) for name, label in ROWS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", CSV),
        ("metadata.csv", CSV.replace(",", "\t").replace("label", "class")),
        ("labels.csv", CSV.replace("/", "\\").replace("file_name", "file")),  # paths of Windows
        ("labels.csv", "\ufefflabel;filename;text\r\n" + "".join(f'{b};{a};"a; b\r\nc"\r\n' for a, b in ROWS)),  # Excel
        ("metadata.jsonl", "\n\n".join(OBJECTS)),
    ],
    ids=["csv", "tabs", "windows paths", "excel", "jsonl"],
)
def test_a_table_says_the_classes(tmp_path: Path, name: str, text: str) -> None:
    put(*(tmp_path / name for name, _ in ROWS))
    assert found(table(tmp_path, name, text)) == [
        *(("10.png", "cat", None), ("a.png", "cat", None)),
        *(("9.png", "dog", None), ("x/b.png", "dog", None)),
    ]


def test_a_table_may_say_the_split_or_lie_in_one(tmp_path: Path) -> None:
    one, each, above = tmp_path / "one", tmp_path / "each", tmp_path / "above"
    put(*(one / name for name, _ in ROWS))
    rows = 'file_name,label,split\n"a.png",0,train\nx/b.png,1,Valid\n10.png,2,test\n9.png,3,train\n'
    table(one, "metadata.csv", rows)
    assert [pair for _, *pair in found(one)] == [["0", "train"], ["1", "val"], ["2", "test"], ["3", "train"]]

    rows = '{"file_name": "a.png", "label": 1}\n{"file_name": "deep/b.png", "label": 2}'
    for split in ("train", "test"):
        put(each / split / "a.png", each / split / "deep" / "b.png")
        table(each / split, "metadata.jsonl", rows)
    assert [pair for _, *pair in found(each)] == [["1", "test"], ["1", "train"], ["2", "test"], ["2", "train"]]

    put(above / "train" / "a.png", above / "test" / "a.png")
    table(above, "metadata.csv", "file_name,label\ntrain/a.png,x\ntest/a.png,x\n")
    assert [pair for _, *pair in found(above)] == [["x", "test"], ["x", "train"]]


def test_captions_alone_leave_the_classes_to_the_folders(tmp_path: Path) -> None:
    classes(tmp_path)
    table(tmp_path, "metadata.csv", "file_name,text\ncat/0.png,a cat\n")
    assert labels(tmp_path) == {"cat": 3, "dog": 3}


def test_rows_and_pictures_without_each_other_are_counted(tmp_path: Path) -> None:
    put(*(tmp_path / name for name, _ in ROWS), tmp_path / "new.png")
    said = find_pictures(table(tmp_path, "labels.csv", f"{CSV}\ngone.png,cat")).in_words()
    assert "1 without a row in the table (1 .png: new.png)" in said
    assert "1 in the table, but not there (1 .png: gone.png)" in said


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metadata.csv", "file_name,label\na.png,\n", "line 2: label is empty"),
        ("metadata.csv", "file_name,label\na.png\n", "line 2: label is empty"),
        ("metadata.csv", "file_name,label\na.png,x\na.png,y\n", "line 3: 'a.png' is in line 2 already"),
        ("metadata.csv", "file_name,label\n../a.png,x\n", "line 2: '../a.png' is not in the folder of the table"),
        ("metadata.csv", "file_name,label\nx/../../a.png,x\n", "is not in the folder of the table"),
        ("metadata.csv", "file_name,label\n/etc/a.png,x\n", "is not in the folder of the table"),
        ("metadata.csv", "file_name,label\nC:\\a.png,x\n", "is not in the folder of the table"),
        ("metadata.csv", "file_name,label,split\na.png,x,later\n", "line 2: split is 'later': use train, val or test"),
        ("metadata.csv", "file_name,label,split\na.png,x,train\nb.png,x,\n", "line 3: split is empty"),
        (
            *("metadata.csv", "file_name,text\na.png,a cat\n"),
            "has no column 'label', but file_name, text: rename the one that is meant, or read texts with",
        ),
        ("metadata.csv", "name,label\na.png,x\n", "has no column 'file_name', but name, label: rename the one that"),
        ("metadata.csv", "file_name,label\n", "has no rows"),
        ("metadata.csv", "", "has no rows"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": "x"}\n{"file_name"', "line 2: it is not JSON"),
        ("metadata.jsonl", '["a.png", "x"]\n', "line 1: it is not an object"),
        ("metadata.jsonl", "9" * 5_000, "line 1: it is not JSON"),
        ("metadata.jsonl", "[" * 100_000, "line 1: it is not JSON"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": ["x"]}\n', "line 1: label is empty"),
    ],
)
def test_a_table_that_cannot_be_meant_is_named_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    put(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ValueError) as error:
        FolderDataModule(table(tmp_path, name, text))
    assert str(tmp_path / name) in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value)


def captioned(folder: Path, text: str, name: str = "metadata.csv") -> FolderDataModule:
    """The pictures of a folder with a table, and the texts in its column `text`."""
    return FolderDataModule(table(folder, name, text), captions="text", batch_size=1, img_size=4)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'file_name,text\na.png,"one, two"\nx/b.png,\n'),
        ("metadata.csv", "file_name;text\na.png;one, two\nx/b.png\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one, two"}\n{"file_name": "x/b.png", "text": null}'),
    ],
)
def test_a_table_says_the_captions_and_needs_no_classes(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path / "a.png", tmp_path / "x" / "b.png", tmp_path / "x" / "new.png")
    pictures = find_pictures(table(tmp_path, name, text), "text")
    assert [(p.path.name, p.label, p.caption) for p in pictures.pictures] == [
        ("a.png", "", "one, two"),
        ("b.png", "", ""),
    ]
    assert pictures.class_names == []
    assert "1 without a row in the table (1 .png: x/new.png)" in pictures.in_words()


def test_captions_come_with_classes_and_splits_where_tables_state_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / split / "a.png", tmp_path / split / "b.png")
        table(tmp_path / split, "metadata.csv", "file_name,class,text\na.png,cat,one\nb.png,dog,two\n")
    assert [p[1:] for p in find_pictures(tmp_path, "text").pictures] == [
        *(("cat", "test", "one"), ("cat", "train", "one"), ("dog", "test", "two"), ("dog", "train", "two")),
    ]
    table(tmp_path / "test", "metadata.csv", "file_name,text\na.png,one\nb.png,two\n")
    with pytest.raises(ValueError, match="where not every split's table has classes: state them in all or in none"):
        FolderDataModule(tmp_path, captions="text")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "other.csv",
            "",
            "captions is 'text', but {folder} has no table: add a metadata.csv or .jsonl with the columns",
        ),
        (
            *("metadata.csv", "file_name,title\na.png,one\n"),
            "captions is 'text', but {folder}/metadata.csv has no such column, but file_name, title: name one of them",
        ),
        ("metadata.csv", "name,text\na.png,one\n", "has no column 'file_name', but name, text: rename"),
        ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2: it has more cells than the first line: put the"),
        (
            "metadata.csv",
            "file_name,text\nc.png,one\n",
            "no picture has a row in the table: file_name must be its path",
        ),
        ("metadata.csv", "file_name,text,label\na.png,one,x\n", "has 1 classes (x): remove the table's column of"),
        ("metadata.csv", "file_name,text,label\na.png,one,\n", "line 2: label is empty: fill it in"),
        ("metadata.csv", "file_name,text\na.png,one\nb.png,two\n", "no picture to train on: add pictures to the 2 in"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png"}',
            "line 2: it has no text: add",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": ["x", "y"]}',
            "line 1: text is ['x', 'y'], which is not text",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 5}', "line 1: text is 5, which is not text: write one text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x}', "line 1: it is not JSON"),
    ],
)
def test_captions_that_cannot_be_meant_are_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    put(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ValueError) as error:
        captioned(tmp_path, text, name)
    assert says.format(folder=tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for encoding in ("latin-1", "utf-16"):
        table(tmp_path, "labels.csv", "file_name,label\na.png,größe\n", encoding)
        with pytest.raises(ValueError, match=r"labels\.csv is not UTF-8 .*: save it as UTF-8"):
            find_pictures(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"which has metadata\.jsonl and labels\.csv: keep one of them"):
        find_pictures(tmp_path)
