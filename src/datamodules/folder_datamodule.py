"""Anybody's pictures, with a class for each of them."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from pytorch_lightning.utilities import rank_zero_only

from src.config.types import Count, Positive
from src.datamodules.image_datamodule import SPLIT_SEED, ImageDataModule, Split
from src.datamodules.picture_files import Found, find_pictures, some
from src.datamodules.picture_pixels import decode

log = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")


def _make_one(shares: Sequence[float]) -> Sequence[float]:
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError
    return shares


Shares = Annotated[
    Sequence[Positive],
    Field(min_length=3, max_length=3, description="a list of three shares that make 1, such as [0.8,0.1,0.1]"),
    AfterValidator(_make_one),
]


class FolderDataModule(ImageDataModule):
    """Pictures in `folder/CLASS/`, in `folder/SPLIT/CLASS/`, or beside a table: see `find_pictures`.

    Classes are in natural order: 2 before 10. See `decode` for what becomes of the pictures. What is left out is
    counted and named at the start. Where there are no ready-made splits each class is split by itself, always in the
    same way, so that all classes are in every split.

    Args:
        folder: holds the pictures.
        train_val_test_split: the share of each split, of each class. A ready-made split that is missing is taken from
            the training images, in these proportions.
        img_size: height and width of the images served, in pixels.
        channels: 3: colour, 1: grey; pictures of the other kind are converted.
        white: the value of white in pictures of 16 or 32 bits or of floats, where their files do not say it and 0 is
            black; null: 65,535 for 16 bits, unless all of them are dark, and 1 for floats from 0 to 1.
        flip: mirror each training image, left to right, in every other epoch on average; not for letters or digits.
        **kwargs: as in `ImageDataModule`.

    Raises:
        ValueError: the folder does not hold two classes, a class has too few pictures, or pictures are damaged.
    """

    def __init__(
        self,
        folder: str | Path | None,
        train_val_test_split: Shares = (0.8, 0.1, 0.1),
        img_size: Count = 64,
        channels: Annotated[Literal[1, 3], Field(description="3 for colour or 1 for grey")] = 3,
        white: Positive | None = None,
        flip: bool = False,
        **kwargs: Any,
    ) -> None:
        if folder is None:
            raise ValueError("folder must be set: datamodule.folder=DIR, where DIR has a subfolder of pictures a class")
        self.channels = channels
        self.white = white
        self.flip = flip
        self.folder = Path(folder).expanduser()
        self.found = find_pictures(self.folder)
        check_classes(self.found)
        self.class_names = self.found.class_names
        self.n_classes = len(self.class_names)
        self.source = self.folder.resolve().name[:60]  # a tag of a W&B run has 64 characters at most
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self._labels = torch.tensor([label_of[picture.label] for picture in self.found.pictures])
        ready = [picture.split or "train" for picture in self.found.pictures]
        self._missing = [name for name in SPLIT_NAMES if name not in {picture.split for picture in self.found.pictures}]
        self._splits = torch.tensor([SPLIT_NAMES.index(name) for name in ready])
        shares = [
            share if name in ("train", *self._missing) else 0
            for name, share in zip(SPLIT_NAMES, train_val_test_split, strict=True)
        ]
        order = torch.randperm(len(ready), generator=torch.Generator().manual_seed(SPLIT_SEED))
        for label, name in enumerate(self.class_names):
            pool = order[(self._labels[order] == label) & (self._splits[order] == 0)]
            val, test = (max(1, round(len(pool) * share / sum(shares))) if share else 0 for share in shares[1:])
            sizes = torch.tensor([len(pool) - val - test, val, test])
            if sizes[0] < 1:
                raise ValueError(
                    f"train_val_test_split is {shares}, which leaves no picture of {name!r} to train on: add pictures"
                    f" to the {len(pool)} in {self.folder}, or remove that class"
                )
            self._splits[pool] = torch.arange(3).repeat_interleave(sizes)
        super().__init__(self._splits.bincount(minlength=3).tolist(), img_size=img_size, **kwargs)

    def load(self) -> dict[str, Split]:
        paths = [picture.path for picture in self.found.pictures]
        images, animated = decode(paths, self.channels, self.img_size, self.white)
        said = [self.found.in_words()]
        if self._missing and "train" not in self._missing:
            totals = dict(zip(SPLIT_NAMES, self.train_val_test_split, strict=True))
            taken = " and ".join(f"{totals[name]:,} images for {name}" for name in self._missing)
            said.append(f"{self.folder} has no {' and no '.join(self._missing)}: {taken} are taken from train")
        if animated:
            named = some([*map(str, animated)], ", ", 3)
            said.append(f"of {len(animated):,} pictures with several frames only the first one is taken ({named})")
        for text in filter(None, said):
            rank_zero_only(log.warning)(text)
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SPLIT_SEED))
        parts = [order[self._splits[order] == i] for i in range(3)]  # in random order, not class after class
        return {name: (images[part], self._labels[part]) for name, part in zip(SPLIT_NAMES, parts, strict=True)}


def check_classes(found: Found) -> None:
    """Refuses a folder without two classes, or whose splits have different classes."""
    folder, names, left_out = found.folder, found.class_names, found.in_words()
    left_out = f" ({left_out})" if left_out else ""
    if found.empty:
        raise ValueError(
            f"folder is {folder}, where {found.empty[0].name!r} has no pictures: put some into it, named *.png, *.jpg"
            f" or the like, or remove it{left_out}"
        )
    if len(names) < 2:
        raise ValueError(
            f"folder is {folder}, which has {len(names)} classes{f' ({names[0]})' if names else ''}: put the pictures"
            f" of each class into a subfolder, two classes at least{left_out}"
        )
    for split in SPLIT_NAMES:
        its = {picture.label for picture in found.pictures if picture.split == split}
        if its and (lacks := [repr(name) for name in names if name not in its]):
            raise ValueError(
                f"folder is {folder}, whose {split} split has no pictures of {some(lacks, ', ')}: every split needs"
                " every class"
            )
    if {picture.split for picture in found.pictures} <= {"val", "test"}:
        raise ValueError(f"folder is {folder}, where no picture is for train: name that split train")
