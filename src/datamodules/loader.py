"""Batches of images in memory, in an order that a resumed run can continue anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Batch = tuple[Tensor, Tensor]


@dataclass(eq=False, repr=False)
class ImageSet(Dataset[Batch]):
    """Decoded images that are resized and scaled a batch at a time."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    img_size: int  # height and width to serve, in pixels
    captions: Tensor | None = None  # int32 [N, LENGTH], as `to_codes` makes them; served instead of the labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        images, conditions = self.__getitems__([index])
        return images[0], conditions[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images float32 [B, C, img_size, img_size] in [-1, 1], and labels int64 [B] or captions int64 [B, LENGTH].

        Args:
            indices: i, or ~i for image i mirrored left to right.
        """
        index = torch.as_tensor(indices)
        mirrored = index < 0
        index = torch.where(mirrored, ~index, index)
        images = self.images[index].float()
        if mirrored.any():
            images[mirrored] = images[mirrored].flip(-1)
        size, wanted = images.shape[-2:], (self.img_size, self.img_size)
        if size != wanted:
            shrinks = self.img_size < max(size)  # only then is there anything to smooth, which is slow
            images = interpolate(images, wanted, mode="bilinear", align_corners=False, antialias=shrinks)
        conditions = self.labels[index] if self.captions is None else self.captions[index].long()
        return images.div_(127.5).sub_(1), conditions


class EpochSampler(DistributedSampler):
    """Serves images in a new random order each pass, shared out among the processes.

    The passes follow each other as one endless stream, and an epoch is the next `length` images of it; by default that
    is one pass. The order follows from the seed and the number of the pass alone, so that worker processes and resumed
    runs see the same one. With `flip` so does the coin that is tossed for each image: index i becomes ~i, which asks
    for the image mirrored.
    """

    start = 0  # images of the next epoch to leave out

    def __init__(
        self, data: ImageSet, num_replicas: int, rank: int, seed: int, flip: bool = False, length: int | None = None
    ) -> None:
        super().__init__(data, num_replicas=num_replicas, rank=rank, seed=seed)
        self.flip = flip
        self.length = length or len(data)
        self.num_samples = -(-self.length // num_replicas)  # the same for all; the last few begin the next epoch, too
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        n = len(self.dataset)  # type: ignore[arg-type]
        first = self.epoch * self.length
        stream: list[int] = []
        for number in range(first // n, -(-(first + self.total_size) // n)):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed + number)).numpy()
            if self.flip:
                coins = np.random.default_rng((self.seed, number)).integers(2, size=n)
                order = np.where(coins[order], ~order, order)
            stream += order.tolist()
        skipped = first % n
        return iter(stream[skipped + self.rank : skipped + self.total_size : self.num_replicas][start:])


class ResumableDataLoader(DataLoader[Batch]):
    """Keeps in the checkpoint how far into which epoch it is; its sampler is an `EpochSampler`."""

    _served = 0
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing happens before the first batch: Lightning sets the sampler's epoch late.
        resume, self._resume = self._resume, None
        self._served = 0
        if resume and resume["epoch"] == self._epoch and isinstance(self.sampler, EpochSampler):
            self._served = self.sampler.start = resume["images"]
        for batch in super().__iter__():
            self._served += len(batch[0])
            yield batch

    @property
    def _epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)  # `trainer.overfit_batches` puts a plain sampler here

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "images": self._served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume = dict(state)
