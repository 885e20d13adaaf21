"""Which pictures a folder has, of which classes, and in which splits."""

import csv
import io
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from unicodedata import normalize

from PIL import Image

Image.init()
# Formats whose first bytes leave no doubt, whatever the file is called.
CERTAIN = ("PNG", "JPEG", "GIF", "WEBP", "TIFF")
# Pillow needs other programs to read MPEG, EPS and WMF, and only knows that GRIB, HDF5 and BUFR exist.
NOT_READ = {"MPEG", "EPS", "WMF", "GRIB", "HDF5", "BUFR"}
FORMATS = (*CERTAIN, *sorted(set(Image.OPEN) - NOT_READ - set(CERTAIN)))  # in the order in which they are tried
ENDINGS = frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
CLUTTER = ("__macosx", "thumbs.db", "desktop.ini")  # what systems leave behind, beside hidden files
SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "dev"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}
TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl")
COLUMNS = (  # what people call the file, the label and the split
    ("file_name", "filename", "file", "path", "image"),
    ("label", "class", "class_name", "category", "labels"),
    ("split", "subset"),
)
NAMED = 10  # files that a message names


class Row(NamedTuple):
    """What a table states of a picture."""

    label: str  # "": it states no classes
    split: str | None
    caption: str | None


Rows = dict[str, Row]  # by the picture's path from the table


class Picture(NamedTuple):
    path: Path
    label: str  # "": there are captions and no classes
    split: str | None  # the ready-made one, if there is one
    caption: str | None = None  # where captions are read; "": it has none


@dataclass
class Found:
    """What is in a folder. Pictures are in natural order of classes, splits and names."""

    folder: Path
    pictures: list[Picture] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # unused files, by why
    empty: list[Path] = field(default_factory=list)  # subfolders without a picture

    @property
    def class_names(self) -> list[str]:
        return sorted({picture.label for picture in self.pictures} - {""}, key=natural)

    def in_words(self) -> str:
        """One line about what was left out, or nothing."""
        said = []
        for why, paths in self.left_out.items():
            endings = Counter(path.suffix.lower() or "no ending" for path in paths)
            kinds = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(NAMED))
            names = some([str(path.relative_to(self.folder)) for path in paths], ", ", 3)
            if paths:
                said.append(f"{len(paths):,} {why} ({kinds}: {names})")
        return f"left out of {self.folder}: {'; '.join(said)}" if said else ""


def find_pictures(folder: Path, captions: str | None = None) -> Found:
    """The pictures of a folder, which is laid out in one of these ways; classes have any names and depth:

    - `CLASS/**/PICTURE`
    - `SPLIT/CLASS/**/PICTURE`: the split `train` and, if you like, `val` and `test`, or what people call them
    - `metadata.csv` or `metadata.jsonl` (or `labels`) beside the pictures, or in each split's folder, with a row a
      picture: `file_name`, relative to the table, `label`, and `split` if you like

    Hidden files are left out. A name is the same in every Unicode form.

    Args:
        captions: the table's column of texts, which then need no labels beside them; None: no texts are read.

    Raises:
        ValueError: begins with `folder` or `captions`, or names the table and the line.
    """
    try:
        files = sorted(walk(folder), key=by_name)
        subfolders = sorted((path for path in folder.iterdir() if path.is_dir() and not is_clutter(path)), key=by_name)
    except OSError as error:
        raise ValueError(
            f"folder is {folder}, which cannot be read ({error.strerror}): set datamodule.folder=DIR, where DIR has a"
            " subfolder of pictures a class"
        ) from error
    found = Found(folder)
    inside: dict[str, list[Path]] = defaultdict(list)  # pictures by the first part of their path
    for path in files:
        if is_picture(path):
            inside[path.relative_to(folder).parts[0]].append(path)
        elif path.name not in TABLES:
            found.left_out["not readable as pictures"].append(path)
    rows = read_table(folder, captions)
    used = [path for path in subfolders if path.name in inside]
    splits: dict[str, Path] = {}
    for path in used if rows is None else []:
        split = SPLITS.get(path.name.casefold())
        if split in splits:
            raise ValueError(
                f"folder is {folder}, where {splits[split].name} and {path.name} are both the {split} split: keep one"
                " of them"
            )
        if split:
            splits[split] = path
    if "train" in splits and (len(splits) > 1 or len(used) == 1):  # else these are classes, even one called `train`
        for split, root in splits.items():
            add_pictures(found, root, split, inside.pop(root.name), read_table(root, captions), captions)
        found.left_out["beside the splits' folders"] += itertools.chain(*inside.values())
    else:
        add_pictures(found, folder, None, itertools.chain(*inside.values()), rows, captions)
        found.empty = [path for path in subfolders if path.name not in inside] if rows is None else []
    found.pictures.sort(key=lambda picture: (natural(picture.label), picture.split or "", by_name(picture.path)))
    return found


def add_pictures(
    found: Found, root: Path, split: str | None, pictures: Iterable[Path], rows: Rows | None, captions: str | None
) -> None:
    """Adds the pictures below `root`, whose classes are its subfolders, or what the rows of its table state."""
    if rows is None and captions is not None:
        raise ValueError(
            f"captions is {captions!r}, but {root} has no table: add a metadata.csv or .jsonl with the columns"
            f" file_name and {captions}, or set datamodule.captions=null"
        )
    if rows is None:
        for path in pictures:
            if path.parent == root:
                found.left_out["in no class's folder"].append(path)
            else:
                found.pictures.append(Picture(path, normalize("NFC", path.relative_to(root).parts[0]), split))
        return
    there = {normalize("NFC", path.relative_to(root).as_posix()): path for path in pictures}
    found.left_out["without a row in the table"] += [path for file, path in there.items() if file not in rows]
    # As in Hugging Face's loader: paths in a table that is above the splits' folders state the split.
    by_folder = {file: SPLITS.get(file.partition("/")[0].casefold()) for file in rows}
    if None in by_folder.values() or "train" not in by_folder.values():
        by_folder = {}
    for file, (label, its_split, caption) in rows.items():
        if file in there:
            found.pictures.append(Picture(there[file], label, split or its_split or by_folder.get(file), caption))
        elif not (root / file).exists():
            found.left_out["in the table, but not there"].append(root / file)


def read_table(folder: Path, captions: str | None) -> Rows | None:
    """What a CSV or JSON lines file in a folder states of its pictures; None: the classes are subfolders.

    Args:
        captions: the column of texts to read; None: none.
    """
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if not tables:
        return None
    if len(tables) > 1:
        raise ValueError(f"folder is {folder}, which has {tables[0].name} and {tables[1].name}: keep one of them")
    path = tables[0]
    records = list(read_records(path))
    if not records:
        raise ValueError(f"{path} has no rows: add one a picture, or delete it")
    there = {name for _, record in records for name in record}
    columns = [next((name for name in names if name in there), None) for names in COLUMNS]
    file_column, label_column, split_column = columns
    has = ", ".join(str(name) for name in list(records[0][1])[:NAMED] if name is not None)
    if captions is not None and captions not in there:
        raise ValueError(f"captions is {captions!r}, but {path} has no such column, but {has}: name one of them")
    if (
        captions is None
        and label_column is None
        and any(each.is_dir() and not is_clutter(each) for each in folder.iterdir())
    ):
        return None  # captions, for instance
    for column, names in zip(columns[: 2 if captions is None else 1], COLUMNS, strict=False):
        if column is None:
            way_out = ", or read texts with datamodule.captions=COLUMN" if names is COLUMNS[1] else ""
            raise ValueError(f"{path} has no column {names[0]!r}, but {has}: rename the one that is meant{way_out}")
    rows: Rows = {}
    lines: dict[str, int] = {}
    for line, record in records:
        where = f"{path}, line {line}"
        file, label, split = (
            normalize("NFC", str(cell).strip()) if isinstance(cell, (str, int, float)) else ""
            for cell in map(record.get, columns)
        )
        if not file or not (label or label_column is None):
            column = label_column if file else file_column
            raise ValueError(f"{where}: {column} is empty: fill it in, or remove the line")
        if split and split.casefold() not in SPLITS:
            raise ValueError(f"{where}: {split_column} is {split!r}: use train, val or test")
        inner = PurePosixPath(file.replace("\\", "/"))
        if inner.is_absolute() or PureWindowsPath(file).drive or ".." in inner.parts:
            raise ValueError(f"{where}: {file!r} is not in the folder of the table: move the picture there")
        if (name := str(inner)) in rows:
            raise ValueError(f"{where}: {name!r} is in line {lines[name]} already: remove one")
        lines[name] = line
        rows[name] = Row(label, SPLITS.get(split.casefold()), caption_in(record, captions, where))
    without = [lines[name] for name, row in rows.items() if row.split is None]
    if 0 < len(without) < len(rows):
        raise ValueError(f"{path}, line {without[0]}: {split_column} is empty: fill it in, or remove the column")
    return rows


def caption_in(record: Mapping[Any, Any], column: str | None, where: str) -> str | None:
    """The text in a row's column, "" where it is empty; None: no texts are read."""
    if column is None:
        return None
    if None in record:  # `csv` would leave out the rest of a text with a comma
        raise ValueError(f"{where}: it has more cells than the first line: put the texts in double quotes")
    if column not in record:
        raise ValueError(f'{where}: it has no {column}: add it, as "" where the picture has no text')
    text = "" if record[column] is None else record[column]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column} is {str(text)[:40]}, which is not text: write one text, in double quotes")
    return text


def read_records(path: Path) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    """Each row of a CSV file, or object of a JSON lines file, with its line's number, from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    if path.suffix == ".csv":
        header = text.partition("\n")[0]  # cells are separated by commas, semicolons or tabs
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: it is not CSV ({error}): mend it") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: it is not JSON ({error}): mend it") from error
        if not isinstance(record, dict):
            raise ValueError(f'{path}, line {number}: it is not an object such as {{"file_name": "a.png"}}: mend it')
        yield number, record


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder but hidden ones. Follows links, but not in circles."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for path in folder.iterdir():
        if is_clutter(path):
            continue
        if path.is_dir():
            yield from walk(path, (*above, here))
        elif path.is_file():
            yield path


def is_clutter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold() in CLUTTER


def is_picture(path: Path) -> bool:
    """Whether its name or its first bytes say so."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with Image.open(path, formats=CERTAIN):
            return True
    except Exception:  # decoders fail on other files in many ways
        return False


def natural(text: str) -> tuple[Any, ...]:
    """A key to sort by: numbers by their value, words whatever their case and Unicode form."""
    text = normalize("NFC", text)
    parts = re.split(r"(\d+)", text.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


def by_name(path: Path) -> tuple[Any, ...]:
    return tuple(natural(part) for part in path.parts)


def some(texts: Sequence[str], between: str, most: int = NAMED) -> str:
    """The first few, and how many more there are."""
    more = f"{between}and {len(texts) - most:,} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more
