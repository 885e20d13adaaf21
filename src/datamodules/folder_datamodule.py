"""Anybody's pictures, with a class or a caption for each of them."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from pytorch_lightning.utilities import rank_zero_only

from src.config.types import Count, Positive
from src.datamodules.image_datamodule import SPLIT_SEED, Crop, ImageDataModule, Split
from src.datamodules.picture_files import Found, Picture, find_pictures, some
from src.datamodules.picture_pixels import decode, size_of
from src.models.prompts import LENGTH, n_characters, to_codes

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
    same way, so that all classes are in every split; pictures that have captions and no class are split as one class.

    Args:
        folder: holds the pictures.
        train_val_test_split: the share of each split, of each class. A ready-made split that is missing is taken from
            the training images, in these proportions.
        img_size: height and width of the images served, in pixels.
        channels: 3: colour, 1: grey; pictures of the other kind are converted.
        white: the value of white in pictures of 16 or 32 bits or of floats, where their files do not say it and 0 is
            black; null: 65,535 for 16 bits, unless all of them are dark, and 1 for floats from 0 to 1.
        captions: the column of texts in the table beside the pictures, for models that read text; null: classes alone.
        flip: mirror each training image, left to right, in every other epoch on average; not for letters or digits.
        crop: shift each training image at random by up to this share of its side; the border mirrors it.
        **kwargs: as in `ImageDataModule`.

    Raises:
        ValueError: the folder does not hold two classes or captions, a class has too few pictures, or pictures are
            damaged.
    """

    def __init__(
        self,
        folder: str | Path | None,
        train_val_test_split: Shares = (0.8, 0.1, 0.1),
        img_size: Count = 64,
        channels: Annotated[Literal[1, 3], Field(description="3 for colour or 1 for grey")] = 3,
        white: Positive | None = None,
        captions: str | None = None,
        flip: bool = False,
        crop: Crop = 0.0,
        **kwargs: Any,
    ) -> None:
        if folder is None:
            raise ValueError("folder must be set: datamodule.folder=DIR, where DIR has a subfolder of pictures a class")
        self.channels = channels
        self.white = white
        self.captions = captions
        self.flip = flip
        self.crop = crop
        self.folder = Path(folder).expanduser()
        self.found = find_pictures(self.folder, captions)
        check_classes(self.found, captions)
        self.class_names = self.found.class_names
        self.n_classes = len(self.class_names)
        self.source = self.folder.resolve().name[:60]  # a tag of a W&B run has 64 characters at most
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self._labels = torch.tensor([label_of.get(picture.label, 0) for picture in self.found.pictures])
        ready = [picture.split or "train" for picture in self.found.pictures]
        self._missing = [name for name in SPLIT_NAMES if name not in {picture.split for picture in self.found.pictures}]
        self._splits = torch.tensor([SPLIT_NAMES.index(name) for name in ready])
        shares = [
            share if name in ("train", *self._missing) else 0
            for name, share in zip(SPLIT_NAMES, train_val_test_split, strict=True)
        ]
        order = torch.randperm(len(ready), generator=torch.Generator().manual_seed(SPLIT_SEED))
        for label, name in enumerate(self.class_names or [""]):
            pool = order[(self._labels[order] == label) & (self._splits[order] == 0)]
            val, test = (max(1, round(len(pool) * share / sum(shares))) if share else 0 for share in shares[1:])
            sizes = torch.tensor([len(pool) - val - test, val, test])
            if sizes[0] < 1:
                of_it, way_out = (f" of {name!r}", ", or remove that class") if name else ("", "")
                raise ValueError(
                    f"train_val_test_split is {shares}, which leaves no picture{of_it} to train on: add pictures to the"
                    f" {len(pool)} in {self.folder}{way_out}"
                )
            self._splits[pool] = torch.arange(3).repeat_interleave(sizes)
        super().__init__(self._splits.bincount(minlength=3).tolist(), img_size=img_size, **kwargs)

    def n_smaller(self, size: float) -> int:
        sizes = [size_of(picture.path) for picture in self.found.pictures]
        return sum(each is not None and min(each) < size for each in sizes)

    def load(self) -> dict[str, Split]:
        paths = [picture.path for picture in self.found.pictures]
        images, animated = decode(paths, self.channels, self.img_size, self.white)
        tensors = [images, self._labels]
        said = [self.found.in_words()]
        if self.captions is not None:
            codes, about = encode_captions(self.found.pictures)
            if not codes.any():
                raise ValueError(
                    f"captions is {self.captions!r}, a column of {self.folder} with no text in it: fill it in"
                )
            tensors.append(codes)
            said += about
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
        splits = [tuple(tensor[part] for tensor in tensors) for part in parts]
        return dict(zip(SPLIT_NAMES, splits, strict=True))


def encode_captions(pictures: Sequence[Picture]) -> tuple[torch.Tensor, list[str]]:
    """The pictures' captions as codes int32 [N, LENGTH], and sentences about those that are empty or cut."""
    codes = to_codes([picture.caption or "" for picture in pictures]).astype(np.int32)
    empty = [str(picture.path) for picture, first in zip(pictures, codes[:, 0], strict=True) if not first]
    cut = [str(picture.path) for picture in pictures if n_characters(picture.caption or "") > LENGTH]
    said = []
    if empty:
        what = "have no letter and no digit: these pictures are trained on as if nothing were asked for"
        said.append(f"{len(empty):,} of {len(pictures):,} captions {what} ({some(empty, ', ', 3)})")
    if cut:
        what = f"have more than {LENGTH} characters: the rest is left out"
        said.append(f"{len(cut):,} of {len(pictures):,} captions {what} ({some(cut, ', ', 3)})")
    return torch.from_numpy(codes), said


def check_classes(found: Found, captions: str | None) -> None:
    """Refuses a folder without two classes, or whose splits have different classes; captions do without classes."""
    folder, names, left_out = found.folder, found.class_names, found.in_words()
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
    if names and not all(picture.label for picture in found.pictures):
        raise ValueError(f"folder is {folder}, where not every split's table has classes: state them in all or in none")
    if len(names) < 2 and (captions is None or names):
        way_out = "put the pictures of each class into a subfolder, two classes at least"
        if captions is not None:
            way_out = "remove the table's column of classes, or state two at least"
        raise ValueError(
            f"folder is {folder}, which has {len(names)} classes{f' ({names[0]})' if names else ''}:"
            f" {way_out}{left_out}"
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
