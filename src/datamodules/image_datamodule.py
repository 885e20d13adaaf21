"""What every data set of labelled images shares: checks, splits and loaders."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from src.config.numbers import is_whole
from src.datamodules.loader import Batch, EpochSampler, ImageSet, ResumableDataLoader, collated
from src.errors import UserError

MOST_WORKERS = 1024
SPLIT_SEED = 42  # of the one split into train and val that everybody compares on; not the run's seed

Split = tuple[Tensor, Tensor]


class ImageDataModule(LightningDataModule):
    """Serves a data set that fits into memory. A new one sets `channels`, `n_classes`, `source` and writes `load`.

    It may set `class_names`, too, one for each label.

    Args:
        train_val_test_split: how many images each split has.
        batch_size: images a batch (and process, where there are several).
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory.
        pin_memory: page-locked batches, which reach a GPU faster.
        img_size: height and width of the images served, in pixels.
        seed: of the order of the training images, and of which are mirrored.
        subset: train on this many of the training images, with as many of each class as there can be; null: on all.
            The same ones for every seed, and a larger subset holds the smaller ones.
        subset_per_class: train on this many images of each class; takes the place of `subset`.
        flip: mirror each training image in every other epoch on average, left to right.

    Raises:
        ValueError: an argument is not a number of the right kind, or there are not that many images.
    """

    channels: int
    n_classes: int
    source: str  # names the data in the run's name and configuration
    epoch_length: int | None = None  # training images an epoch has, in repeated passes; None: each once

    def __init__(
        self,
        train_val_test_split: Sequence[int],
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
        flip: bool = False,
    ) -> None:
        super().__init__()
        split = list(train_val_test_split) if isinstance(train_val_test_split, Sequence) else [train_val_test_split]
        if len(split) != 3 or not all(is_whole(n, least=1) for n in split):
            raise ValueError(f"train_val_test_split must be three positive whole numbers, not {train_val_test_split!r}")
        for name, value, least in [
            ("batch_size", batch_size, 1),
            ("img_size", img_size, 1),
            ("num_workers", num_workers, 0),
            ("subset", subset, 1),
            ("subset_per_class", subset_per_class, 1),
        ]:
            if value is None and name.startswith("subset"):
                continue
            if not is_whole(value, least):
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if num_workers > MOST_WORKERS:
            raise ValueError(f"num_workers must be a whole number from 0 to {MOST_WORKERS}, not {num_workers}")
        if subset is not None and subset_per_class is not None:
            raise ValueError("subset must be null where subset_per_class is set: choose one of the two")
        self.check_split(split)
        self.train_val_test_split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.img_size = img_size
        self.seed = seed
        self.subset = subset
        self.subset_per_class = subset_per_class
        self.flip = flip
        self.sets: dict[str, ImageSet] = {}
        self._check_enough()

    @property
    def class_names(self) -> Sequence[str]:
        """What each label stands for."""
        return [str(label) for label in range(self.n_classes)]

    def check_split(self, split: list[int]) -> None:
        """Refuses sizes that do not suit the data set, where those are known before it is loaded.

        Raises:
            ValueError: begins with `train_val_test_split`.
        """

    @property
    def n_asked_for(self) -> int:
        """How many training images a pass is to have."""
        if self.subset_per_class:
            return self.subset_per_class * self.n_classes
        return self.subset or self.train_val_test_split[0]

    def _check_enough(self) -> None:
        wanted, n_train = self.n_asked_for, self.train_val_test_split[0]
        if wanted > n_train and self.subset:
            raise ValueError(f"subset is {wanted}, but there are only {n_train} training images: use fewer")
        if wanted > n_train:
            raise ValueError(
                f"subset_per_class is {self.subset_per_class}, which makes {wanted} images of {self.n_classes} classes,"
                f" but there are only {n_train} training images: use fewer"
            )
        if self.batch_size > wanted:
            raise ValueError(f"batch_size is {self.batch_size}, but there are only {wanted} training images: use fewer")

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits `train`, `val` and `test`, each as images uint8 [N, C, H, W] and labels int64 [N]."""

    def setup(self, stage: str | None = None) -> None:
        if self.sets:
            return
        splits = self.load()
        # What images are compared with is the same whatever part of it a run trains on.
        self.whole_train = ImageSet(*splits["train"], self.img_size)
        splits["train"] = self._chosen(*splits["train"])
        self.sets = {name: ImageSet(*split, self.img_size) for name, split in splits.items()}

    def _chosen(self, images: Tensor, labels: Tensor) -> Split:
        """The training images that `subset` or `subset_per_class` leaves."""
        if self.subset_per_class:
            counts = labels.bincount(minlength=self.n_classes)
            if (least := int(counts.min())) < self.subset_per_class:
                raise ValueError(
                    f"subset_per_class is {self.subset_per_class}, but there are only {least} training images of class"
                    f" {self.class_names[int(counts.argmin())]!r}: use fewer"
                )
            chosen = by_turns(labels)[: self.subset_per_class * self.n_classes]
        elif self.subset:
            chosen = by_turns(labels)[: self.subset]
        else:
            return images, labels
        return images[chosen], labels[chosen]

    def train_dataloader(self) -> DataLoader[Batch]:
        # Lightning replaces samplers it knows by ones for several processes. This one is such a sampler already.
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(self.sets["train"], processes, rank, self.seed, self.flip, self.epoch_length)
        if len(sampler) < self.batch_size:
            raise UserError(
                f"datamodule.batch_size is {self.batch_size}, but each of the {processes} processes has only"
                f" {len(sampler)} training images: use fewer"
            )
        return self._loader(ResumableDataLoader, "train", sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(DataLoader, "val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(DataLoader, "test")

    def _loader(self, kind: type[DataLoader[Batch]], split: str, **kwargs: object) -> DataLoader[Batch]:
        return kind(
            self.sets[split],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            collate_fn=collated,  # type: ignore[arg-type]
            generator=torch.Generator(),  # torch would otherwise draw from the global one, which is the noise's
            **kwargs,  # type: ignore[arg-type]
        )


def split_off(images: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[Split]:
    """Parts of the given sizes, drawn at random without overlap; always the same ones."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return [(images[part], labels[part]) for part in order[: sum(sizes)].split(list(sizes))]


def by_turns(labels: Tensor) -> Tensor:
    """The indices of `labels` in a random order in which the classes take turns; always the same one.

    So its first n hold the classes as evenly as n images of `labels` can.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    turn = torch.empty_like(labels)
    for label in labels.unique():
        members = order[labels[order] == label]
        turn[members] = torch.arange(len(members))
    return order[turn[order].argsort(stable=True)]
