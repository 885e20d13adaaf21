"""What is known of many pictures before one of them is decoded: where they are, their classes, splits and captions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from src.datamodules.picture_files import Found, find_pictures, some
from src.datamodules.picture_pixels import Openable
from src.models.prompts import LENGTH, n_characters, to_codes

SPLIT_NAMES = ("train", "val", "test")


class Pictures(Protocol):
    """N pictures, by their numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Openable: ...
    def identity(self, number: int) -> object:
        """What tells a picture from others, and from itself after a change, wherever its folder lies."""


class Paths:
    """Many paths below a folder in little memory: a `Path` takes ten times as much."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self.folder = folder
        names = [os.fsencode(path.relative_to(folder)) for path in paths]
        self._ends = np.cumsum([0, *map(len, names)])
        self._names = b"".join(names)
        self._sizes = np.array([path.stat().st_size for path in paths], np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> Path:
        return self.folder / os.fsdecode(self._name(number))

    def _name(self, number: int) -> bytes:
        return self._names[self._ends[number] : self._ends[number + 1]]

    def identity(self, number: int) -> tuple[bytes, int]:
        """The path from the folder, and how many bytes the file had."""
        return self._name(number), int(self._sizes[number])


@dataclass
class Listing:
    """N pictures, in an order that follows from their names alone."""

    pictures: Pictures
    class_names: Sequence[str]  # empty: there are captions alone
    labels: Tensor  # int64 [N]; 0 where there are no classes
    splits: Tensor  # int64 [N], the ready-made split in `SPLIT_NAMES`; -1: there is none
    captions: Tensor | None = None  # int32 [N, LENGTH], as `to_codes` makes them
    said: list[str] = field(default_factory=list)  # what people should know of it


def list_folder(folder: Path, captions: str | None) -> Listing:
    """The pictures that `find_pictures` finds.

    Raises:
        ValueError: begins with `folder` or `captions`, or names the table and the line.
    """
    found = find_pictures(folder, captions)
    check_found(found, captions)
    label_of = {name: label for label, name in enumerate(found.class_names)}
    number_of = {name: number for number, name in enumerate(SPLIT_NAMES)}
    listing = Listing(
        Paths(folder, [picture.path for picture in found.pictures]),
        found.class_names,
        torch.tensor([label_of.get(picture.label, 0) for picture in found.pictures]),
        torch.tensor([number_of.get(picture.split or "", -1) for picture in found.pictures]),
        said=[text for text in [found.in_words()] if text],
    )
    check_classes(listing, folder)
    if captions is not None:
        texts = [picture.caption or "" for picture in found.pictures]
        listing.captions = encode_captions(texts, listing, f"captions is {captions!r}, a column of {folder}")
    return listing


def encode_captions(texts: Sequence[str], listing: Listing, what: str) -> Tensor:
    """The pictures' captions as codes int32 [N, LENGTH]; what is empty or cut is added to what the listing says.

    Raises:
        ValueError: there is no text in `what` they come from.
    """
    codes = to_codes(texts).astype(np.int32)
    if not codes.any():
        raise ValueError(f"{what} with no text in it: fill it in")
    empty = (codes[:, 0] == 0).nonzero()[0]
    cut = [number for number, text in enumerate(texts) if n_characters(text) > LENGTH]
    for numbers, about in (
        (empty, "have no letter and no digit: these pictures are trained on as if nothing were asked for"),
        (cut, f"have more than {LENGTH} characters: the rest is left out"),
    ):
        if len(numbers):
            named = some([str(listing.pictures[int(number)]) for number in numbers], ", ", 3)
            listing.said.append(f"{len(numbers):,} of {len(texts):,} captions {about} ({named})")
    return torch.from_numpy(codes)


def check_found(found: Found, captions: str | None) -> None:
    """Refuses what only a folder can lack."""
    folder, left_out = found.folder, found.in_words()
    left_out = f" ({left_out})" if left_out else ""
    if found.empty:
        raise ValueError(
            f"folder is {folder}, where {found.empty[0].name!r} has no pictures: put some into it, named *.png, *.jpg"
            f" or the like, or remove it{left_out}"
        )
    if captions is not None and not found.pictures:
        raise ValueError(
            f"folder is {folder}, where no picture has a row in the table: file_name must be its path from the"
            f" table{left_out}"
        )
    if found.class_names and not all(picture.label for picture in found.pictures):
        raise ValueError(f"folder is {folder}, where not every split's table has classes: state them in all or in none")
    if len(found.class_names) < 2 and (captions is None or found.class_names):
        names = found.class_names
        way_out = "put the pictures of each class into a subfolder, two classes at least"
        if captions is not None:
            way_out = "remove the table's column of classes, or state two at least"
        raise ValueError(
            f"folder is {folder}, which has {len(names)} classes{f' ({names[0]})' if names else ''}:"
            f" {way_out}{left_out}"
        )


def check_classes(listing: Listing, folder: Path) -> None:
    """Refuses ready-made splits without a `train`, and those that lack a class."""
    n = len(listing.class_names)
    for number, split in enumerate(SPLIT_NAMES):
        labels = listing.labels[listing.splits == number]
        lacks = [repr(listing.class_names[i]) for i in (labels.bincount(minlength=n) == 0).nonzero()] if n else []
        if len(labels) and lacks:
            raise ValueError(
                f"folder is {folder}, whose {split} split has no pictures of {some(lacks, ', ')}: every split needs"
                " every class"
            )
    if listing.splits.min() > 0:
        raise ValueError(f"folder is {folder}, where no picture is for train: name that split train")
