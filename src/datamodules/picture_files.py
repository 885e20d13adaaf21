"""Which pictures a folder has, of which classes, and in which splits."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from unicodedata import normalize

from PIL import Image

Image.init()
# Formats whose first bytes leave no doubt, so that a file's name need not say that it is a picture.
CERTAIN = ("PNG", "JPEG", "GIF", "WEBP", "TIFF")
# MPEG, EPS and WMF need other programs, and GRIB, HDF5 and BUFR are names of formats that Pillow only knows of.
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
COLUMNS = {  # by what they hold, the names that people give them
    "file": ("file_name", "filename", "file", "path", "image"),
    "label": ("label", "class", "class_name", "category", "labels"),
    "split": ("split", "subset"),
}
NAMED = 10  # files that a message names


class Picture(NamedTuple):
    """A picture's file, its class, and its split; None: to be drawn."""

    path: Path
    label: str
    split: str | None


@dataclass
class Found:
    """What is in a folder.

    Attributes:
        pictures: in natural order of classes, splits and names.
        left_out: files that are not used, by why.
        empty: subfolders without a picture.
    """

    pictures: list[Picture] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    empty: list[Path] = field(default_factory=list)

    def leave_out(self, why: str, paths: Collection[Path]) -> None:
        if paths:
            self.left_out.setdefault(why, []).extend(paths)

    @property
    def class_names(self) -> list[str]:
        """In natural order."""
        return sorted({picture.label for picture in self.pictures}, key=natural)

    def in_words(self, folder: Path) -> str:
        """One line about what was left out, or nothing."""
        said = []
        for why, paths in self.left_out.items():
            endings = Counter(path.suffix.lower() or "no ending" for path in paths)
            kinds = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(NAMED))
            names = some([str(path.relative_to(folder)) for path in paths], ", ", 3)
            said.append(f"{len(paths):,} {why} ({kinds}: {names})")
        return f"left out of {folder}: {'; '.join(said)}" if said else ""


def find_pictures(folder: Path) -> Found:
    """The pictures of a folder, which is laid out in one of these ways, whose classes have any names and depth:

    - `CLASS/**/PICTURE`
    - `SPLIT/CLASS/**/PICTURE`, the splits being `train` and, if you like, `val` and `test` or what people call them
    - `metadata.csv` or `metadata.jsonl` (or `labels`) beside the pictures, or in each split's folder, with a row a
      picture: `file_name`, relative to the table, `label`, and `split` if you like

    Hidden files are left out. Equal names in other Unicode forms are one name.

    Raises:
        ValueError: begins with `folder`, or names the table and the line.
    """
    try:
        if not folder.is_dir():
            os.listdir(folder)  # says why not
        files = list(walk(folder))
        subfolders = sorted((path for path in folder.iterdir() if path.is_dir() and not is_clutter(path)), key=by_name)
    except OSError as error:
        raise ValueError(
            f"folder is {folder}, which cannot be read ({error.strerror}): set datamodule.folder=DIR, where DIR has a"
            " subfolder of pictures a class"
        ) from error
    found = Found()
    pictures = []
    for path in files:
        if is_picture(path):
            pictures.append(path)
        elif path.name not in TABLES:
            found.leave_out("not readable as pictures", [path])
    used = {path.relative_to(folder).parts[0] for path in pictures}
    if (table := table_of(folder)) and (rows := read_table(table)) is not None:
        found.pictures += from_rows(table, rows, None, pictures, found)
    elif splits := split_folders([path for path in subfolders if path.name in used]):
        for split, root in splits.items():
            inside = [path for path in pictures if path.is_relative_to(root)]
            if (table := table_of(root)) and (rows := read_table(table)) is not None:
                found.pictures += from_rows(table, rows, split, inside, found)
            else:
                found.pictures += from_folders(root, split, inside, found)
        roots = list(splits.values())
        stray = [path for path in pictures if not any(path.is_relative_to(root) for root in roots)]
        found.leave_out("beside the splits' folders", stray)
    else:
        found.pictures += from_folders(folder, None, pictures, found)
        found.empty = [path for path in subfolders if path.name not in used]
    found.pictures.sort(key=lambda picture: (natural(picture.label), picture.split or "", by_name(picture.path)))
    return found


def split_folders(subfolders: Sequence[Path]) -> dict[str, Path]:
    """The folders of ready-made splits; none where subfolders are classes, one of which may well be called `train`.

    Args:
        subfolders: those that hold pictures.

    Raises:
        ValueError: two of them are the same split.
    """
    splits: dict[str, Path] = {}
    for path in subfolders:
        split = SPLITS.get(path.name.casefold())
        if split is None:
            continue
        if split in splits:
            raise ValueError(
                f"folder is {path.parent}, where {splits[split].name} and {path.name} are both the {split} split: keep"
                " one of them"
            )
        splits[split] = path
    return splits if "train" in splits and (len(splits) > 1 or len(subfolders) == 1) else {}


def from_folders(root: Path, split: str | None, pictures: Sequence[Path], found: Found) -> Iterator[Picture]:
    """Pictures of classes that are the subfolders of `root`."""
    found.leave_out("in no class's folder", [path for path in pictures if path.parent == root])
    for path in pictures:
        if path.parent != root:
            yield Picture(path, normalize("NFC", path.relative_to(root).parts[0]), split)


def from_rows(
    table: Path, rows: Sequence["Row"], split: str | None, pictures: Sequence[Path], found: Found
) -> Iterator[Picture]:
    """Pictures of the classes, and splits, that a table says.

    Raises:
        ValueError: a row leads out of the folder, or says something twice or not at all.
    """
    root = table.parent
    there = {normalize("NFC", path.relative_to(root).as_posix()): path for path in pictures}
    # As the Hugging Face loader does: paths in a table that is above the splits' folders say the split.
    by_folder = [SPLITS.get(row.file.partition("/")[0].casefold()) for row in rows]
    in_folders = None not in by_folder and "train" in by_folder
    lines: dict[str, int] = {}
    for row, its_folder in zip(rows, by_folder, strict=True):
        if row.file in lines:
            raise ValueError(f"{table}, line {row.line}: {row.file!r} is in line {lines[row.file]} already: remove one")
        lines[row.file] = row.line
        if row.file in there:
            yield Picture(there[row.file], row.label, split or row.split or (its_folder if in_folders else None))
    found.leave_out(f"without a row in {table.name}", [path for name, path in there.items() if name not in lines])
    missing = [root / name for name in lines if name not in there and not (root / name).exists()]
    found.leave_out(f"in {table.name}, but not there", missing)


class Row(NamedTuple):
    """A line of a table: a picture's path from the table's folder, its class, and its split, if it says one."""

    line: int
    file: str
    label: str
    split: str | None


def table_of(folder: Path) -> Path | None:
    """The table that says what the pictures in a folder are.

    Raises:
        ValueError: there are several.
    """
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"folder is {folder}, which has {tables[0].name} and {tables[1].name}: keep one of them")
    return tables[0] if tables else None


def read_table(table: Path) -> list[Row] | None:
    """The rows of a CSV or JSON lines file; None: it says nothing of classes, which then are folders.

    Raises:
        ValueError: names the file, the line and what to change.
    """
    records = list(read_jsonl(table) if table.suffix == ".jsonl" else read_csv(table))
    if not records:
        raise ValueError(f"{table} has no rows: add one a picture, or delete it")
    columns = {
        kind: next((name for name in names if any(name in record for _, record in records)), None)
        for kind, names in COLUMNS.items()
    }
    if columns["label"] is None and any(path.is_dir() and not is_clutter(path) for path in table.parent.iterdir()):
        return None
    for kind in ("file", "label"):
        if columns[kind] is None:
            has = ", ".join(map(str, list(records[0][1])[:NAMED]))
            raise ValueError(f"{table} has no column {COLUMNS[kind][0]!r}, but {has}: rename the one that is meant")
    rows = []
    splits = 0
    for line, record in records:
        values = {kind: as_text(record.get(name)) for kind, name in columns.items() if name is not None}
        for kind in ("file", "label"):
            if not values[kind]:
                raise ValueError(f"{table}, line {line}: {columns[kind]} is empty: fill it in, or remove the line")
        split = values.get("split") or None
        splits += split is not None
        if split is not None and split.casefold() not in SPLITS:
            raise ValueError(f"{table}, line {line}: {columns['split']} is {split!r}: use train, val or test")
        file = relative(values["file"])
        if file is None:
            raise ValueError(
                f"{table}, line {line}: {values['file']!r} is not in the folder of the table: move the picture there"
            )
        rows.append(Row(line, file, values["label"], SPLITS[split.casefold()] if split else None))
    if 0 < splits < len(rows):
        first = next(row for row in rows if row.split is None)
        raise ValueError(f"{table}, line {first.line}: {columns['split']} is empty: fill it in, or remove the column")
    return rows


def read_csv(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row with its line's number, from 1; cells are separated by commas, semicolons or tabs."""
    with utf8(table), open(table, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num}: it is no CSV ({error}): mend it") from error


def read_jsonl(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each object with its line's number, from 1."""
    with utf8(table), open(table, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}, line {number}: it is no JSON ({error}): mend it") from error
            if not isinstance(record, dict):
                raise ValueError(f'{table}, line {number}: it is no object such as {{"file_name": "a.png"}}: mend it')
            yield number, record


class utf8:
    """Says which file is not UTF-8."""

    def __init__(self, table: Path) -> None:
        self.table = table

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{self.table} is not UTF-8 ({error.reason}): save it as UTF-8") from error


def as_text(value: Any) -> str:
    """A cell: numbers and words alike; nothing else is a name."""
    return normalize("NFC", str(value).strip()) if isinstance(value, (str, int, float)) else ""


def relative(text: str) -> str | None:
    """A path of a table as it is written in one way; None where it leads out of the folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(text).drive or ".." in path.parts:
        return None
    return str(path)


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder but hidden ones, in natural order; links are followed, but not in circles."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for path in sorted(folder.iterdir(), key=by_name):
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
    except Exception:  # it is something else
        return False


def natural(text: str) -> tuple[Any, ...]:
    """A key to sort by: numbers by their value, and words without regard to case and Unicode form."""
    text = normalize("NFC", text)
    parts = re.split(r"(\d+)", text.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


def by_name(path: Path) -> tuple[Any, ...]:
    return tuple(natural(part) for part in path.parts)


def some(texts: Sequence[str], between: str, most: int = NAMED) -> str:
    """The first few, and how many more there are."""
    more = f"{between}and {len(texts) - most:,} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more
