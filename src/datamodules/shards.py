"""Pictures in tar files, as WebDataset lays them out: NAME.jpg, and beside it NAME.cls, NAME.txt or NAME.json."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from src.datamodules.picture_files import COLUMNS, ENDINGS, SPLITS, by_name, is_clutter

MOST_TEXT = 2**20  # bytes of a text or JSON beside a picture
MOST_PICTURE = 2**28  # bytes
TEXTS = ("cls", "txt", "json")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Sample(NamedTuple):
    offset: int  # of the picture, from the start of the shard
    size: int
    label: str  # "": there is none
    caption: str | None  # None: there is none


class Member(NamedTuple):
    """A picture inside a tar file."""

    shard: Path
    offset: int
    size: int

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        name = f"the picture at byte {self.offset}"
        with suppress(OSError), open(self.shard, "rb") as file:  # its header says what it is called
            file.seek(self.offset - tarfile.BLOCKSIZE)
            name = file.read(100).rstrip(b"\0").decode(errors="replace")
        return f"{self.shard}: {name}"


class Members:
    """The pictures of several shards, in little memory.

    Args:
        folder: above the shards.
        shards: their paths.
        places: int64 [3, N]: which shard a picture is in, from which byte, and how many.
    """

    def __init__(self, folder: Path, shards: Sequence[Path], places: np.ndarray) -> None:
        self.folder, self.shards, self._places = folder, shards, places

    def __len__(self) -> int:
        return self._places.shape[1]

    def __getitem__(self, number: int, /) -> Member:
        shard, offset, size = self._places[:, number].tolist()
        return Member(self.shards[shard], offset, size)

    def identity(self, number: int) -> object:
        """The shard from the folder, and where in it how many bytes are."""
        shard, offset, size = self._places[:, number].tolist()
        return self.shards[shard].relative_to(self.folder).as_posix(), offset, size


def find_shards(folder: Path) -> list[tuple[Path, str | None]]:
    """The tar files of a folder in natural order, and the split of each, if all have one.

    It is the subfolder's (`train/0.tar`), or what the name begins with (`train-0.tar`).

    Raises:
        ValueError: begins with `folder`: there are none, or they are compressed.
    """
    try:
        files = sorted((path for path in folder.rglob("*.t*") if path.is_file() and not is_clutter(path)), key=by_name)
    except OSError as error:
        raise ValueError(f"folder is {folder}, which cannot be read ({error.strerror})") from error
    packed = [path for path in files if path.name.lower().endswith(PACKED)]
    if packed:
        raise ValueError(
            f"folder is {folder}, where {packed[0].relative_to(folder)} is compressed, in which no picture can be found"
            " by its place: unpack it to a .tar, as pictures are compressed already"
        )
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    if not shards:
        raise ValueError(f"folder is {folder}, which has no *.tar: set datamodule.folder=DIR, where DIR has shards")
    splits = []
    for path in shards:
        first = path.relative_to(folder).parts[0]
        words = first if len(path.relative_to(folder).parts) > 1 else path.stem
        splits.append(next((SPLITS[word] for word in _words(words) if word in SPLITS), None))
    return list(zip(shards, splits if None not in splits else [None] * len(shards), strict=True))


def _words(name: str) -> list[str]:
    return "".join(each if each.isalpha() else " " for each in name.casefold()).split()


def read_shard(path: Path, captions: str | None) -> Iterator[Sample]:
    """The samples of a tar file, in its order. Nothing is unpacked: links, folders and other files are passed over.

    Args:
        captions: `txt` for NAME.txt, or a key of NAME.json; None: no texts are read.

    Raises:
        ValueError: names the shard, and what in it is wrong.
    """
    pictures: dict[str, tuple[int, int]] = {}
    texts: dict[tuple[str, str], str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key, ending = f"{folder}/{stem}", ending.lower()
                if not member.isreg() or member.sparse is not None or name.startswith("."):
                    continue
                is_picture = f".{ending.rpartition('.')[2]}" in ENDINGS
                if not is_picture and ending not in TEXTS:
                    continue
                if member.size > (MOST_PICTURE if is_picture else MOST_TEXT):
                    raise ValueError(f"{path}: {member.name} has {member.size:,} bytes, which is too many: remove it")
                if key in pictures if is_picture else (key, ending) in texts:
                    raise ValueError(f"{path}: {member.name} is there twice, or there are two pictures: rename one")
                if is_picture:
                    pictures[key] = member.offset_data, member.size
                else:
                    content = tar.extractfile(member)
                    assert content is not None
                    texts[key, ending] = content.read().decode("utf-8-sig")
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes rubbish for the end
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a whole tar file ({error}): fetch it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {member.name} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    for key, (offset, size) in pictures.items():
        fields = read_json(texts.get((key, "json"), "{}"), f"{path}: {key.lstrip('/')}.json")
        label = texts.get((key, "cls"), next((fields[name] for name in COLUMNS[1] if name in fields), ""))
        text = texts.get((key, "txt")) if captions == "txt" else fields.get(captions or "")
        yield Sample(offset, size, str(label).strip(), text if isinstance(text, str) else None)


def read_json(text: str, what: str) -> dict[str, object]:
    """An object in JSON, or a ValueError that says what is none."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON ({error}): mend it") from error
    if not isinstance(fields, dict):
        raise ValueError(f'{what} is not an object such as {{"label": "cat"}}: mend it')
    return fields
