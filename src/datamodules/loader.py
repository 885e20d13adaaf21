"""Batches of images in memory, in an order that a resumed run can continue anywhere."""

import atexit
import gc
import math
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Batch = tuple[Tensor, Tensor]


class Images(Protocol):
    """What is asked of N images: a tensor uint8 [N, C, H, W] has it, and so has what decodes them when they are needed.

    An index or a split chooses some of them; `float` says that their pixels are needed.
    """

    @property
    def shape(self) -> torch.Size: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> "Images": ...
    def split(self, size: int, /) -> Sequence["Images"]: ...
    def float(self) -> Tensor: ...


@dataclass(eq=False, repr=False)
class ImageSet(Dataset[Batch]):
    """Images that are resized and scaled a batch at a time."""

    images: Images  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    img_size: int  # height and width to serve, in pixels
    captions: Tensor | None = None  # int32 [N, LENGTH], as `to_codes` makes them; served instead of the labels
    most_shift: int = 0  # stored pixels by which an image may be asked for shifted, up, down, left and right

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """How much memory it takes, all images decoded."""
        others = sum(tensor.nbytes for tensor in (self.labels, self.captions) if tensor is not None)
        return math.prod(self.images.shape) + others

    def to(self, device: torch.device) -> "ImageSet":
        """A copy whose batches are made on a device, in the same order and from the same numbers; of decoded images."""
        assert isinstance(self.images, Tensor)
        captions = None if self.captions is None else self.captions.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), captions=captions)

    @property
    def n_places(self) -> int:
        """In how many places an image may be asked for; place 0 is where it is."""
        return (2 * self.most_shift + 1) ** 2

    def __getitem__(self, index: int) -> Batch:
        images, conditions = self.__getitems__([index])
        return images[0], conditions[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images float32 [B, C, img_size, img_size] in [-1, 1], and labels int64 [B] or captions int64 [B, LENGTH].

        They are on the device where the set is.

        Args:
            indices: i + k * N for image i in place k, or ~ of that for the same mirrored left to right.
        """
        index = torch.as_tensor(indices)
        mirrored = index < 0
        index = torch.where(mirrored, ~index, index)
        # All that has to be asked is asked here, in main memory: an answer from a GPU comes when it has done all else.
        place, index = index // len(self), (index % len(self)).to(self.images.device, non_blocking=True)
        images = self.images[index].float()
        if place.any():
            images = self._shifted(images, place.to(images.device, non_blocking=True))
        if mirrored.any():
            which = mirrored.nonzero()[:, 0].to(images.device, non_blocking=True)
            images[which] = images[which].flip(-1)
        size, wanted = images.shape[-2:], (self.img_size, self.img_size)
        if size != wanted:
            shrinks = self.img_size < max(size)  # only then is there anything to smooth, which is slow
            planes = images.flatten(0, 1)[None]  # the same pixels, in half the time where images have one channel
            planes = interpolate(planes, wanted, mode="bilinear", align_corners=False, antialias=shrinks)
            images = planes[0].unflatten(0, images.shape[:2])
        conditions = self.labels[index] if self.captions is None else self.captions[index].long()
        # Divided by a plain number, a GPU would multiply by its rounded reciprocal: not the same last bit.
        return images.div_(torch.full((), 127.5, device=images.device)).sub_(1), conditions

    def _shifted(self, images: Tensor, place: Tensor) -> Tensor:
        """Images [B, C, H, W] cut out in places [B] of themselves with a border that mirrors them."""
        most, (height, width) = self.most_shift, images.shape[-2:]
        side = 2 * most + 1
        top, left = (place // side + most) % side, (place + most) % side
        windows = pad(images, [most] * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(eq=False, repr=False)
class EncodedSet(ImageSet):
    """The same images as a model that draws in a space of its own sees them, computed once."""

    encoded: Tensor = field(default_factory=lambda: torch.empty(0))  # [K, N, ...]; K: 2 with mirrored images, else 1

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """What stands for the images, [B, ...], and their labels or captions; `indices` as in `ImageSet`, unshifted."""
        index = torch.as_tensor(indices)
        mirrored = index < 0
        index = torch.where(mirrored, ~index, index)
        conditions = self.labels[index] if self.captions is None else self.captions[index].long()
        return self.encoded[mirrored.long(), index], conditions


class EpochSampler(DistributedSampler):
    """Serves images in a new random order each pass, shared out among the processes.

    The passes follow each other as one endless stream, and an epoch is the next `length` images of it; by default that
    is one pass. The order follows from the seed and the number of the pass alone, so that worker processes and resumed
    runs see the same one. With `flip` so does the coin that is tossed for each image, and where the data may be shifted
    so does its place: an index says both, as `ImageSet` reads it.
    """

    start = 0  # images of the next epoch to leave out

    def __init__(
        self, data: ImageSet, num_replicas: int, rank: int, seed: int, flip: bool = False, length: int | None = None
    ) -> None:
        super().__init__(data, num_replicas=num_replicas, rank=rank, seed=seed)
        self.n_places = data.n_places
        self.flip = flip
        self.length = length or len(data)
        self.num_samples = -(-self.length // num_replicas)  # the same for all; the last few begin the next epoch, too
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        n = len(self.dataset)  # type: ignore[arg-type]
        first = self.epoch * self.length
        stream = []
        for number in range(first // n, -(-(first + self.total_size) // n)):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed + number)).numpy()
            asked = np.arange(n)
            if self.n_places > 1:
                asked += n * np.random.default_rng((self.seed, number, 1)).integers(self.n_places, size=n)
            if self.flip:
                coins = np.random.default_rng((self.seed, number)).integers(2, size=n)
                asked = np.where(coins, ~asked, asked)
            stream.append(asked[order])
        skipped = first % n
        ours = np.concatenate(stream)[skipped + self.rank : skipped + self.total_size : self.num_replicas][start:]
        return map(int, ours)  # a list of millions of numbers would take five times the memory of this array


class ImageLoader(DataLoader[Batch]):
    """Its workers leave signals to the main process, and end with it.

    That a worker is gone is noticed between batches. Torch would raise anywhere, and a checkpoint hold half a step.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            if self.pin_memory or self.batch_sampler is None:
                return super().__iter__()
            # The same batches, without what else torch does for each.
            return map(self.dataset.__getitems__, self.batch_sampler)  # type: ignore[attr-defined]
        in_main = threading.current_thread() is threading.main_thread()
        handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
        batches = super().__iter__()
        for worker in set(multiprocessing.active_children()) - others:
            atexit.register(worker.kill)  # Python would wait for it, having asked it with a signal
        if in_main:
            signal.signal(signal.SIGCHLD, handler)
        return batches


def prepare_worker(worker: int) -> None:
    """For a new worker process."""
    gc.freeze()  # the collector would touch, and so copy, all that the process shares with the main one
    # What stops a run reaches its workers, too, but the main process needs them for its last batch.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class ResumableDataLoader(ImageLoader):
    """Keeps in the checkpoint how far into which epoch it is; its sampler is an `EpochSampler`."""

    _served = 0
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing happens before the first batch: Lightning sets the sampler's epoch late.
        resume, self._resume = self._resume, None
        self._served = 0
        if resume and resume["epoch"] == self._epoch and isinstance(self.sampler, EpochSampler):
            self._served = self.sampler.start = resume["images"] // self._processes
        for batch in super().__iter__():
            self._served += len(batch[0])
            yield batch

    @property
    def _epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)  # `trainer.overfit_batches` puts a plain sampler here

    @property
    def _processes(self) -> int:
        return getattr(self.sampler, "num_replicas", 1)

    def state_dict(self) -> dict[str, Any]:
        # Of all processes: a run may go on with another number of them.
        return {"epoch": self._epoch, "images": self._served * self._processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume = dict(state)
