"""Anybody's pictures, with a class or a caption for each of them."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from pytorch_lightning.utilities import rank_zero_only

from src.config.types import Count, Positive
from src.datamodules.image_datamodule import MOST_REFERENCES, SPLIT_SEED, Crop, ImageDataModule, Split, Workers
from src.datamodules.listing import SPLIT_NAMES, Listing, list_folder
from src.datamodules.loader import Images
from src.datamodules.picture_files import some
from src.datamodules.picture_pixels import decode, size_of
from src.datamodules.streamed_images import StreamedImages, main_memory

log = logging.getLogger(__name__)

N_TRIED = 100  # pictures that are decoded at the start where they are not all


def _make_one(shares: Sequence[float]) -> Sequence[float]:
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError
    return shares


InMemory = Annotated[Literal["auto"] | bool, Field(description="one of auto, true, false")]
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
        in_memory: whether to decode all pictures at the start and keep them; else each batch is decoded when it is
            needed, by worker processes, to the same pixels. "auto": if they take at most a quarter of the main memory.
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
        in_memory: InMemory = "auto",
        num_workers: Workers | None = None,
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
        self.listing = listing = self.list_pictures()
        self.class_names = listing.class_names
        self.n_classes = len(self.class_names)
        self.source = self.folder.resolve().name[:60]  # a tag of a W&B run has 64 characters at most
        self._missing = [name for number, name in enumerate(SPLIT_NAMES) if not (listing.splits == number).any()]
        self._splits = listing.splits.clamp(min=0)
        shares = [
            share if name in ("train", *self._missing) else 0
            for name, share in zip(SPLIT_NAMES, train_val_test_split, strict=True)
        ]
        order = torch.randperm(len(self._splits), generator=torch.Generator().manual_seed(SPLIT_SEED))
        for label, name in enumerate(self.class_names or [""]):
            pool = order[(listing.labels[order] == label) & (self._splits[order] == 0)]
            val, test = (max(1, round(len(pool) * share / sum(shares))) if share else 0 for share in shares[1:])
            sizes = torch.tensor([len(pool) - val - test, val, test])
            if sizes[0] < 1:
                of_it, way_out = (f" of {name!r}", ", or remove that class") if name else ("", "")
                raise ValueError(
                    f"train_val_test_split is {shares}, which leaves no picture{of_it} to train on: add pictures to the"
                    f" {len(pool)} in {self.folder}{way_out}"
                )
            self._splits[pool] = torch.arange(3).repeat_interleave(sizes)
        self._needed = len(self._splits) * channels * img_size**2
        self.in_memory = self._needed <= main_memory() / 4 if in_memory == "auto" else in_memory
        super().__init__(
            self._splits.bincount(minlength=3).tolist(), img_size=img_size, num_workers=num_workers, **kwargs
        )

    def list_pictures(self) -> Listing:
        """What there is, before a picture is decoded."""
        return list_folder(self.folder, self.captions)

    def n_smaller(self, size: float) -> int:
        pictures = self.listing.pictures
        sizes = (size_of(pictures[number]) for number in range(len(pictures)))
        return sum(each is not None and min(each) < size for each in sizes)

    def load(self) -> dict[str, Split]:
        listing = self.listing
        how = self.channels, self.img_size, self.white
        order = torch.randperm(len(listing.pictures), generator=torch.Generator().manual_seed(SPLIT_SEED))
        images: Images
        # If not all, a few show before training that all of it works.
        tried = range(len(order)) if self.in_memory else order[:N_TRIED].tolist()
        images, animated = decode([listing.pictures[number] for number in tried], *how)
        if not self.in_memory:
            images = StreamedImages(listing.pictures, *how)
            rank_zero_only(log.info)(
                "images stay in their files, and are decoded when they are needed: in memory they would take %s MiB of"
                " %s; metrics compare with at most %s of the training images, and %s of the others",
                *(f"{n:,.0f}" for n in (self._needed / 2**20, main_memory() / 2**20)),
                *(f"{MOST_REFERENCES[name]:,}" for name in ("train", "val")),
            )
        columns = [images, listing.labels] + ([] if listing.captions is None else [listing.captions])
        said = listing.said.copy()
        if self._missing and "train" not in self._missing:
            totals = dict(zip(SPLIT_NAMES, self.train_val_test_split, strict=True))
            taken = " and ".join(f"{totals[name]:,} images for {name}" for name in self._missing)
            said.append(f"{self.folder} has no {' and no '.join(self._missing)}: {taken} are taken from train")
        if animated:
            named = some([*map(str, animated)], ", ", 3)
            said.append(f"of {len(animated):,} pictures with several frames only the first one is taken ({named})")
        for text in said:
            rank_zero_only(log.warning)(text)
        parts = [order[self._splits[order] == i] for i in range(3)]  # in random order, not class after class
        splits = [tuple(column[part] for column in columns) for part in parts]
        return dict(zip(SPLIT_NAMES, splits, strict=True))
