"""What all data sets of images with labels or captions share: subsets, splits, loaders and where images are kept."""

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from src.config.types import Count
from src.datamodules.loader import (
    Batch,
    EncodedSet,
    EpochSampler,
    ImageLoader,
    ImageSet,
    ResumableDataLoader,
    prepare_worker,
)
from src.errors import UserError

log = logging.getLogger(__name__)

# Of each split, the images that metrics compare with where these are decoded for it.
MOST_REFERENCES = {"train": 20_000, "val": 10_000, "test": 10_000}
MOST_WORKERS = 8
SPLIT_SEED = 42  # of the one split into train and val that everybody compares on; not the run's seed

Sizes = Annotated[
    Sequence[Count], Field(min_length=3, max_length=3, description="a list of three positive whole numbers")
]
Crop = Annotated[float, Field(ge=0, le=0.5)]
Workers = Annotated[
    int, Field(ge=0, le=1024, description="a whole number from 0 to 1024, at least 0 for no further process")
]
Where = Literal["cpu", "auto"]
# Images, a tensor uint8 [N, C, H, W] or other `Images`; labels int64 [N]; and, if any, captions int32 [N, LENGTH].
Split = tuple[Any, ...]


class ImageDataModule(LightningDataModule):
    """Serves a data set that is in memory, or in files. A new one sets `channels`, `n_classes`, `source` and `load`.

    It may also set `class_names`, one for each label, `flip`, `crop`, and `captions` where its splits hold some:
    batches are then images and captions. A set of captions may be without classes: `n_classes` and all labels are 0.

    Args:
        train_val_test_split: how many images each split has.
        batch_size: images a batch (and process, where there are several); four times as many in validation and test.
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory; null: none for
            these, else one for each CPU but one, at most 8.
        pin_memory: page-locked batches, which reach a GPU faster; always on where images are not in memory.
        device: where the images are kept: "cpu": in main memory; "auto": on the GPU that trains (in several processes,
            each on its own), if there is one and they take at most a quarter of its free memory, else in main memory.
        img_size: height and width of the images served, in pixels.
        seed: orders the training images, and chooses which are mirrored and how they are shifted.
        subset: train on this many of the training images, as evenly from all classes as possible; null: on all.
            The same ones for every seed, and a larger subset holds the smaller ones.
        subset_per_class: train on this many images of each class instead.

    Raises:
        ValueError: there are not that many images.
    """

    channels: int
    n_classes: int
    class_names: Sequence[str] = ()  # what each label stands for; empty: numbers
    captions: str | None = None  # what its texts are called, where batches hold texts instead of labels
    source: str  # names the data in the run's name and configuration
    in_memory = True  # else its splits hold `Images` that are decoded when they are needed
    epoch_length: int | None = None  # training images an epoch has, in repeated passes; None: each once
    # Mirror each training image, left to right, in every other epoch on average. Not for digits and letters.
    flip = False
    # Shift each training image, up or down and left or right, by up to this share of its side; the border mirrors it.
    crop = 0.0

    def __init__(
        self,
        train_val_test_split: Sizes,
        batch_size: Count = 64,
        num_workers: Workers | None = 0,
        pin_memory: bool = False,
        device: Where = "cpu",
        img_size: Count = 32,
        seed: int = 0,
        subset: Count | None = None,
        subset_per_class: Count | None = None,
    ) -> None:
        super().__init__()
        if subset is not None and subset_per_class is not None:
            raise ValueError("subset must be null where subset_per_class is set: choose one of the two")
        if subset_per_class is not None and not self.n_classes:
            raise ValueError("subset_per_class needs classes, which these data do not have: use subset")
        if device == "auto" and (num_workers or pin_memory):
            key, value = ("num_workers", 0) if num_workers else ("pin_memory", "false")
            raise ValueError(
                f"{key} must be {value} with device=auto, as batches are made where the images are, by the process that"
                f" trains: set {key}={value}, or device=cpu"
            )
        self.train_val_test_split = list(train_val_test_split)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.device = device
        self.img_size = img_size
        self.seed = seed
        self.subset = subset
        self.subset_per_class = subset_per_class
        if not self.class_names:
            self.class_names = [str(label) for label in range(self.n_classes)]
        self.sets: dict[str, ImageSet] = {}  # in main memory
        self.references: dict[str, ImageSet] = {}  # of each split, what metrics compare with, whatever `subset` says
        self._placed: dict[str, ImageSet] = {}  # the same where `device` wants them
        self._encoded: dict[str, EncodedSet] = {}
        self.encodes: object = None  # the model that has encoded the images
        wanted, n_train = self.pass_length, self.train_val_test_split[0]
        if wanted > n_train:
            each = f"subset_per_class is {subset_per_class}, which makes {wanted} images of {self.n_classes} classes"
            asked = f"subset is {subset}" if subset else each
            raise ValueError(f"{asked}, but there are only {n_train} training images: use fewer")
        if batch_size > wanted:
            raise ValueError(f"batch_size is {batch_size}, but there are only {wanted} training images: use fewer")

    @property
    def pass_length(self) -> int:
        """How many training images a pass has, if the data hold enough."""
        if self.subset_per_class:
            return self.subset_per_class * self.n_classes
        return self.subset or self.train_val_test_split[0]

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits `train`, `val` and `test`, each as a `Split`."""

    def setup(self, stage: str | None = None) -> None:
        if self.sets:
            return
        splits = self.load()
        self.whole = {name: self._serve(split) for name, split in splits.items()}
        self.references = self.whole
        if not self.in_memory:  # parts of them: all would be decoded before the first batch
            parts = {name: tuple(each[: MOST_REFERENCES[name]] for each in split) for name, split in splits.items()}
            self.references = {name: self._serve(part) for name, part in parts.items()}
        images, labels = splits["train"][:2]
        if self.subset_per_class:
            counts = labels.bincount(minlength=self.n_classes)
            if (least := int(counts.min())) < self.subset_per_class:
                raise ValueError(
                    f"subset_per_class is {self.subset_per_class}, but there are only {least} training images of class"
                    f" {self.class_names[int(counts.argmin())]!r}: use fewer"
                )
        if self.subset_per_class or self.subset:
            chosen = by_turns(labels)[: self.pass_length]
            splits["train"] = tuple(each[chosen] for each in splits["train"])
        self.sets = self.whole | {"train": self._serve(splits["train"])}
        self.sets["train"].most_shift = round(self.crop * min(images.shape[-2:]))

    def serve_encoded(self, split: str, encoded: Tensor) -> None:
        """From now on, batches of a split hold these instead of its images; `sets` stay as they are.

        Args:
            encoded: [K, N, ...] of its N images, and for K = 2 of the same mirrored.
        """
        of = self.sets[split]
        self._encoded[split] = EncodedSet(of.images, of.labels, of.img_size, of.captions, encoded=encoded)

    def n_smaller(self, size: float) -> int:
        """How many pictures have a side of less than `size` pixels where they come from."""
        return sum(len(each) for each in self.sets.values() if min(each.images.shape[-2:]) < size)

    def _served(self, split: str) -> ImageSet:
        return self._encoded[split] if split in self._encoded else self._placed_sets()[split]

    def _serve(self, split: Split) -> ImageSet:
        return ImageSet(split[0], split[1], self.img_size, captions=split[2] if len(split) > 2 else None)

    def train_dataloader(self) -> DataLoader[Batch]:
        # A sampler for several processes: Lightning does not replace it by one of its own.
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(self._served("train"), processes, rank, self.seed, self.flip, self.epoch_length)
        if len(sampler) < self.batch_size:
            raise UserError(
                f"datamodule.batch_size is {self.batch_size}, but each of the {processes} processes has only"
                f" {len(sampler)} training images: use fewer"
            )
        return self._loader(ResumableDataLoader, "train", batch_size=self.batch_size, sampler=sampler, drop_last=True)

    @property
    def eval_batch_size(self) -> int:
        """Images a batch in validation and test: larger ones are faster, and nothing is kept for gradients."""
        return 4 * self.batch_size

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(ImageLoader, "val", batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(ImageLoader, "test", batch_size=self.eval_batch_size)

    def _loader(self, kind: type[DataLoader[Batch]], split: str, **kwargs: object) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = self.num_workers
        if workers is None:
            in_memory = self.in_memory or split in self._encoded
            workers = 0 if in_memory else workers_for(self.trainer.num_devices if self.trainer else 1)
        return kind(
            self._served(split),
            num_workers=workers,
            pin_memory=self.pin_memory or (on_gpu and not self.in_memory),
            persistent_workers=workers > 0,
            worker_init_fn=prepare_worker,
            collate_fn=default_convert,  # `ImageSet` serves whole batches: nothing is left to collate
            generator=torch.Generator(),  # else torch would draw from the global one, and change the noise
            **kwargs,  # type: ignore[arg-type]
        )

    def _placed_sets(self) -> dict[str, ImageSet]:
        if self.device == "cpu" or self.trainer is None or not self.in_memory:
            return self.sets
        if not self._placed:
            self._placed = placed_on(self.sets, self.trainer.strategy.root_device)
        return self._placed

    def sha256_of(self, split: str) -> str:
        """The checksum, in hexadecimal, of a split's images as they are served, without labels and captions."""
        images = self.sets[split].images
        about = repr((list(images.shape), self.img_size)).encode()
        hashed = hashlib.sha256(about)
        for part in content_of(images):
            hashed.update(part)
        return hashed.hexdigest()

    def sha256(self, start: bytes = b"") -> str:
        """The checksum, in hexadecimal, of `start` and of all images, labels and captions, whatever `subset` says."""
        hashed = hashlib.sha256(start)
        for split in (self.whole[name] for name in ("train", "val", "test")):
            for tensor in (split.images, split.labels, split.captions):
                if tensor is not None:
                    hashed.update(repr(list(tensor.shape)).encode())
                    for part in content_of(tensor):
                        hashed.update(part)
        return hashed.hexdigest()


def workers_for(processes: int) -> int:
    """How many workers each of the processes of this machine has that train together: of its CPUs all but one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_srun = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1  # which says what each process has
    own = int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) if by_srun else 0
    return max(1, min(MOST_WORKERS, (own or cpus // processes) - 1))


def content_of(images: Any) -> Iterator[bytes | memoryview]:
    """What a checksum of `Images`, or of any tensor, is made from."""
    if isinstance(images, Tensor):
        yield images.contiguous().numpy().data
    else:
        yield from images.identity()


def placed_on(sets: dict[str, ImageSet], device: torch.device) -> dict[str, ImageSet]:
    """The sets on a device if it is a GPU and they take at most a quarter of its free memory; else as they are.

    Raises:
        UserError: the GPU has less room than it said.
    """
    needed, free = sum(each.nbytes for each in sets.values()) / 2**20, free_on_gpu(device) / 2**20
    say = rank_zero_only(log.info)
    if needed > free / 4:
        why = f"{needed:,.0f} MiB are more than a quarter of what is free on {device}, {free:,.0f} MiB"
        say("images stay in main memory: %s", why if free else "what trains is not a GPU with memory of its own")
        return sets
    try:
        placed = {name: each.to(device) for name, each in sets.items()}
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"datamodule.device=auto found no room for {needed:,.0f} MiB of images on {device}: use"
            " datamodule.device=cpu"
        ) from error
    say("images are on %s: %s MiB", device, f"{needed:,.0f}")
    return placed


def free_on_gpu(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 for what is none, and for Apple's, which shares the main memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def split_off(images: Tensor, labels: Tensor, sizes: Sequence[int], by_class: bool = False) -> list[Split]:
    """Random parts of these sizes, without overlap; always the same ones.

    Args:
        by_class: each with as many images of each class, as far as there are that many.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    order = by_turns(labels) if by_class else order
    return [(images[part], labels[part]) for part in order[: sum(sizes)].split(list(sizes))]


def by_turns(labels: Tensor) -> Tensor:
    """A random order of N labels, as indices int64 [N], in which the classes take turns; always the same one.

    So its first n hold the classes as evenly as possible.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    turn = torch.empty_like(labels)
    for label in labels.unique():
        members = order[labels[order] == label]
        turn[members] = torch.arange(len(members))
    return order[turn[order].argsort(stable=True)]
