"""What every data set of labelled images shares: checks, splits and loaders."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from src.datamodules.loader import Batch, EpochSampler, ImageSet, ResumableDataLoader, collated
from src.utils.numbers import is_whole

SPLIT_SEED = 42  # of the one split into train and val that everybody compares on; not the run's seed

Split = tuple[Tensor, Tensor]


class ImageDataModule(LightningDataModule):
    """Serves a data set that fits into memory. A new one sets `channels`, `n_classes`, `source` and writes `load`.

    Args:
        train_val_test_split: how many images each split has.
        batch_size: images a batch (and process, where there are several).
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory.
        pin_memory: page-locked batches, which reach a GPU faster.
        img_size: height and width of the images served, in pixels.
        seed: of the order of the training images.

    Raises:
        ValueError: an argument is not a number of the right kind.
    """

    channels: int
    n_classes: int
    source: str  # names the data in the run's name and configuration

    def __init__(
        self,
        train_val_test_split: Sequence[int],
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        split = list(train_val_test_split) if isinstance(train_val_test_split, Sequence) else [train_val_test_split]
        if len(split) != 3 or not all(is_whole(n, least=1) for n in split):
            raise ValueError(f"train_val_test_split must be three positive whole numbers, not {train_val_test_split!r}")
        for name, value, least in [
            ("batch_size", batch_size, 1),
            ("img_size", img_size, 1),
            ("num_workers", num_workers, 0),
        ]:
            if not is_whole(value, least):
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        self.check_split(split)
        if batch_size > split[0]:
            raise ValueError(f"batch_size is {batch_size}, but there are only {split[0]} training images: use fewer")
        self.train_val_test_split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.img_size = img_size
        self.seed = seed
        self.sets: dict[str, ImageSet] = {}

    def check_split(self, split: list[int]) -> None:
        """Refuses sizes that do not suit the data set, where those are known before it is loaded.

        Raises:
            ValueError: begins with `train_val_test_split`.
        """

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits `train`, `val` and `test`, each as images uint8 [N, C, H, W] and labels int64 [N]."""

    def setup(self, stage: str | None = None) -> None:
        if not self.sets:
            self.sets = {name: ImageSet(*split, self.img_size) for name, split in self.load().items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        # Lightning replaces samplers it knows by ones for several processes. This one is such a sampler already.
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(self.sets["train"], num_replicas=processes, rank=rank, seed=self.seed)
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
