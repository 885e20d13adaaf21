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


def make_one(shares: Sequence[float]) -> Sequence[float]:
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError
    return shares


Shares = Annotated[
    Sequence[Positive],
    Field(min_length=3, max_length=3, description="a list of three shares that make 1, such as [0.8,0.1,0.1]"),
    AfterValidator(make_one),
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
        self._class_names = self.found.class_names
        self.n_classes = len(self._class_names)
        self.source = self.folder.resolve().name[:60]  # a tag of a W&B run has 64 characters at most
        label_of = {name: label for label, name in enumerate(self._class_names)}
        self._labels = torch.tensor([label_of[picture.label] for picture in self.found.pictures])
        self._splits = self._drawn(train_val_test_split)
        totals = self._splits.bincount(minlength=3).tolist()
        super().__init__(totals, img_size=img_size, **kwargs)

    @property
    def class_names(self) -> Sequence[str]:
        """The subfolders' names, or what the table says."""
        return self._class_names

    def load(self) -> dict[str, Split]:
        paths = [picture.path for picture in self.found.pictures]
        images, animated = decode(paths, self.channels, self.img_size, self.white)
        say(self.found.in_words())
        say(self._missing_in_words())
        if animated:
            named = some([*map(str, animated)], ", ", 3)
            say(f"of {len(animated):,} pictures with several frames only the first one is taken ({named})")
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SPLIT_SEED))
        parts = [order[self._splits[order] == i] for i in range(3)]  # in random order, not class after class
        return {name: (images[part], self._labels[part]) for name, part in zip(SPLIT_NAMES, parts, strict=True)}

    def _drawn(self, shares: Sequence[float]) -> torch.Tensor:
        """The split of each picture, int64 [N]: as it is ready-made, or drawn class by class.

        Raises:
            ValueError: a class is left without training images.
        """
        ready = [picture.split for picture in self.found.pictures]
        self._missing = [name for name in SPLIT_NAMES if name not in ready]
        splits = torch.tensor([0 if name is None else SPLIT_NAMES.index(name) for name in ready])
        shares = [
            share if name in ("train", *self._missing) else 0 for name, share in zip(SPLIT_NAMES, shares, strict=True)
        ]
        order = torch.randperm(len(ready), generator=torch.Generator().manual_seed(SPLIT_SEED))
        for label, name in enumerate(self._class_names):
            pool = order[(self._labels[order] == label) & (splits[order] == 0)]
            sizes = share_out(len(pool), shares)
            if sizes[0] < 1:
                raise ValueError(
                    f"train_val_test_split is {[*shares]}, which leaves no picture of {name!r} to train on: add"
                    f" pictures to the {sum(sizes)} in {self.folder}, or remove that class"
                )
            splits[pool] = torch.arange(3).repeat_interleave(torch.tensor(sizes))
        return splits

    def _missing_in_words(self) -> str:
        """Which of several ready-made splits are missing, or nothing."""
        missing = self._missing
        if "train" in missing or not missing:
            return ""
        totals = dict(zip(SPLIT_NAMES, self.train_val_test_split, strict=True))
        parts = " and ".join(f"{totals[name]:,} images for {name}" for name in missing)
        return f"{self.folder} has no {' and no '.join(missing)}: {parts} are taken from train"


@rank_zero_only
def say(text: str) -> None:
    if text:
        log.warning(text)


def check_classes(found: Found) -> None:
    """Refuses a folder without two classes, or whose splits have different classes.

    Raises:
        ValueError: begins with `folder`.
    """
    folder, left_out = found.folder, found.in_words()
    if found.empty:
        raise ValueError(
            f"folder is {folder}, where {found.empty[0].name!r} has no pictures: put some into it, named *.png, *.jpg"
            f" or the like, or remove it{f' ({left_out})' if left_out else ''}"
        )
    names = found.class_names
    if len(names) < 2:
        raise ValueError(
            f"folder is {folder}, which has {len(names)} classes{f' ({names[0]})' if names else ''}: put the pictures"
            f" of each class into a subfolder, two classes at least{f' ({left_out})' if left_out else ''}"
        )
    for split in SPLIT_NAMES:
        its = {picture.label for picture in found.pictures if picture.split == split}
        if its and (lacks := [name for name in names if name not in its]):
            raise ValueError(
                f"folder is {folder}, whose {split} split has no pictures of {some([*map(repr, lacks)], ', ')}: every"
                " split needs every class"
            )
    if {picture.split for picture in found.pictures} <= {"val", "test"}:
        raise ValueError(f"folder is {folder}, where no picture is for train: name that split train")


def share_out(n: int, shares: Sequence[float]) -> list[int]:
    """Three whole numbers of about these shares that make `n`; the second and third, unless 0, get at least 1."""
    val, test = (max(1, round(n * share / sum(shares))) if share else 0 for share in shares[1:])
    return [n - val - test, val, test]
