"""Batches of resized images, in an order that is known beforehand and can be taken up anywhere."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, default_convert

from src.datamodules.digits_datamodule import DigitsDataModule
from src.datamodules.loader import EncodedSet, EpochSampler, ImageSet, ResumableDataLoader
from tests.conftest import assert_same

N, BATCH = 20, 4


def image_set(size: int = 8, img_size: int = 8, n: int = N, most_shift: int = 0) -> ImageSet:
    """The label of an image is its number."""
    images = torch.randint(256, (n, 1, size, size), generator=torch.Generator().manual_seed(0)).byte()
    return ImageSet(images, torch.arange(n), img_size, most_shift=most_shift)


def make_loader(
    num_workers: int = 0,
    flip: bool = False,
    length: int | None = None,
    most_shift: int = 0,
    processes: int = 1,
    rank: int = 0,
) -> ResumableDataLoader:
    data = image_set(most_shift=most_shift)
    return ResumableDataLoader(
        data,
        batch_size=BATCH,
        sampler=EpochSampler(data, num_replicas=processes, rank=rank, seed=3, flip=flip, length=length),
        num_workers=num_workers,
        collate_fn=default_convert,
        generator=torch.Generator(),
    )


def batches_of(loader: ResumableDataLoader, epoch: int) -> list[list[Tensor]]:
    """Images and labels of each batch, as Lightning asks for them: an iterator, then the epoch, then the batches."""
    batches = iter(loader)
    loader.sampler.set_epoch(epoch)
    return list(batches)


# ImageSet


def test_levels_become_numbers_between_minus_one_and_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    images, _ = ImageSet(levels, torch.zeros(256, dtype=torch.int64), 1).__getitems__(range(256))
    assert images.dtype == torch.float32
    assert images[0].item() == -1 and images[255].item() == 1
    torch.testing.assert_close(images.flatten(), torch.linspace(-1, 1, 256))


@pytest.mark.parametrize(("size", "img_size", "smooth"), [(8, 32, False), (28, 32, False), (28, 16, True)])
def test_resizing_is_torchs(size: int, img_size: int, smooth: bool) -> None:
    data = image_set(size, img_size)
    images, _ = data.__getitems__([5, 0])
    options = {"mode": "bilinear", "align_corners": False, "antialias": smooth}
    expected = interpolate(data.images[[5, 0]].float(), (img_size, img_size), **options)
    torch.testing.assert_close(images, expected / 127.5 - 1)
    assert images.min() >= -1 and images.max() <= 1


def test_a_batch_is_its_images_one_by_one() -> None:
    data = image_set(img_size=12)
    before = data.images.clone()
    images, labels = data.__getitems__([7, 7, 2])
    one_by_one = [data[i] for i in (7, 7, 2)]
    torch.testing.assert_close(images, torch.stack([image for image, _ in one_by_one]))
    assert labels.tolist() == [int(label) for _, label in one_by_one] == [7, 7, 2]
    assert torch.equal(data.images, before)


def test_a_complemented_index_asks_for_the_image_mirrored() -> None:
    data = image_set(size=8, img_size=12)
    images, labels = data.__getitems__([3, ~3, ~0])
    torch.testing.assert_close(images, torch.stack([data[3][0], data[3][0].flip(-1), data[0][0].flip(-1)]))
    assert labels.tolist() == [3, 3, 0]
    assert not torch.equal(images[0], images[1])


def test_a_larger_index_asks_for_the_image_in_another_place() -> None:
    data, whole = image_set(size=6, img_size=6, most_shift=2), image_set(size=6, img_size=6)
    assert data.n_places == 25
    padded = np.pad(data.images[3, 0].numpy(), 2, mode="reflect")
    places = [torch.from_numpy(padded[y : y + 6, x : x + 6].copy()) for y in range(5) for x in range(5)]
    images, labels = data.__getitems__([3 + N * place for place in range(25)])
    assert labels.tolist() == [3] * 25
    assert torch.equal(images[0], whole[3][0])  # it stays where it is, as for those who ask for it by its number
    served = {((image[0] + 1) * 127.5).round().byte().numpy().tobytes() for image in images}
    assert served == {place.numpy().tobytes() for place in places}
    assert torch.equal(data[~(3 + N * 7)][0], images[7].flip(-1))
    enlarged = image_set(size=6, img_size=12, most_shift=2)[3 + N * 7][0]
    torch.testing.assert_close(
        enlarged[None], interpolate(images[7][None], (12, 12), mode="bilinear", align_corners=False)
    )


def test_batches_are_made_where_the_set_is_without_waiting_for_it() -> None:
    """`meta` stands for a GPU: it computes on no tensor of another device, and answers no question."""
    meta = torch.device("meta")
    data = image_set(size=6, img_size=12, most_shift=2)
    images, labels = data.to(meta).__getitems__([3, ~3, 3 + N * 7, ~(4 + N * 8)])
    assert images.device == labels.device == meta
    assert images.shape == (4, 1, 12, 12) and images.dtype == torch.float32 and labels.dtype == torch.int64
    captioned = ImageSet(data.images, data.labels, 6, torch.zeros(N, 5, dtype=torch.int32)).to(meta)
    assert captioned.__getitems__([1, 2])[1].shape == (2, 5)
    assert data.images.device.type == data.labels.device.type == "cpu"
    assert captioned.nbytes == N * (36 + 8 + 20)


# Order


def order(seed: int, epoch: int, ranks: int = 1, rank: int = 0, n: int = N, most_shift: int = 0, **kwargs) -> list[int]:
    sampler = EpochSampler(image_set(n=n, most_shift=most_shift), ranks, rank, seed, **kwargs)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = order(seed=1, epoch=0)
    torch.manual_seed(99)
    assert order(seed=1, epoch=0) == first
    assert sorted(first) == list(range(N))
    assert len({tuple(order(seed, epoch)) for seed in (1, 7) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("length", [None, 50])
def test_processes_share_an_epoch_out(flip: bool, length: int | None) -> None:
    alone = order(1, 2, flip=flip, length=length)
    parts = [order(1, 2, ranks=2, rank=rank, flip=flip, length=length) for rank in (0, 1)]
    assert [i for pair in zip(*parts, strict=True) for i in pair] == alone
    odd = [order(1, 2, ranks=3, rank=rank, flip=flip) for rank in (0, 1, 2)]  # 20 images for 3: one twice, none lost
    assert {len(part) for part in odd} == {7}
    assert {max(i, ~i) for part in odd for i in part} == set(range(N))


def test_coins_are_tossed_for_each_image_and_epoch() -> None:
    n, epochs = 200, 20
    mirrored = torch.zeros(epochs, n)
    for epoch in range(epochs):
        flipped = order(seed=1, epoch=epoch, n=n, flip=True)
        # The order is that without flips.
        assert [i if i >= 0 else ~i for i in flipped] == order(seed=1, epoch=epoch, n=n)
        assert flipped == order(seed=1, epoch=epoch, n=n, flip=True)
        mirrored[epoch, [~i for i in flipped if i < 0]] = 1
    # Four standard deviations: of all coins, of one epoch's, of one image's, of one epoch's against the next one's.
    assert abs(mirrored.mean() - 0.5) < 2 / (n * epochs) ** 0.5
    assert (mirrored.mean(1) - 0.5).abs().max() < 2 / n**0.5
    assert (mirrored.mean(0) - 0.5).abs().max() < 2.2 / epochs**0.5
    assert ((mirrored[1:] != mirrored[:-1]).float().mean() - 0.5).abs() < 2 / (n * (epochs - 1)) ** 0.5
    assert order(seed=1, epoch=0, n=n, flip=True) != order(seed=2, epoch=0, n=n, flip=True)


def test_places_are_drawn_for_each_image_and_epoch() -> None:
    n, epochs, places = 500, 10, 9
    drawn = torch.zeros(epochs, n, dtype=torch.int64)
    for epoch in range(epochs):
        shifted = torch.tensor(order(seed=1, epoch=epoch, n=n, most_shift=1))
        # The order is that without shifts, and flips are the same.
        assert (shifted % n).tolist() == order(seed=1, epoch=epoch, n=n)
        both = order(seed=1, epoch=epoch, n=n, most_shift=1, flip=True)
        assert [i if i >= 0 else ~i for i in both] == shifted.tolist()
        assert [i < 0 for i in both] == [i < 0 for i in order(seed=1, epoch=epoch, n=n, flip=True)]
        drawn[epoch, shifted % n] = shifted // n
    assert (drawn.flatten().bincount() / drawn.numel() - 1 / places).abs().max() < 4 * (0.1 / drawn.numel()) ** 0.5
    again = (drawn[1:] == drawn[:-1]).float().mean()
    assert abs(again - 1 / places) < 4 * (0.1 / drawn[1:].numel()) ** 0.5


@pytest.mark.parametrize("length", [7, 20, 33, 50])
@pytest.mark.parametrize("changes", [{}, {"flip": True}, {"flip": True, "most_shift": 2}])
def test_epochs_of_any_length_follow_each_other_through_the_passes(length: int, changes: dict[str, int]) -> None:
    passes = [i for number in range(6) for i in order(seed=1, epoch=number, **changes)]
    epochs = [i for epoch in range(5) for i in order(seed=1, epoch=epoch, length=length, **changes)]
    n = min(len(passes), len(epochs))
    assert epochs[:n] == passes[:n]
    assert len(epochs) == 5 * length


# Resuming


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("flip", "length", "stop"), [(False, None, 2), (True, None, 2), (False, 50, 8)])
def test_the_remaining_batches_follow_exactly(num_workers: int, flip: bool, length: int | None, stop: int) -> None:
    """However often a run stops in an epoch, or at its end."""
    made = flip, length, 2 * flip  # the largest shift
    whole = batches_of(make_loader(0, *made), epoch=6)
    loader, served = make_loader(num_workers, *made), 0
    for n in (stop, 1):
        loader.sampler.set_epoch(6)
        batches = iter(loader)
        assert_same([next(batches) for _ in range(n)], whole[served : served + n])
        served += n
        state = loader.state_dict()
        assert state == {"epoch": 6, "images": served * BATCH}
        loader = make_loader(num_workers, *made)
        loader.load_state_dict(state)
    assert_same(batches_of(loader, epoch=6), whole[served:])
    ended = loader.state_dict()
    assert ended == {"epoch": 6, "images": length or N}
    after = make_loader(num_workers, *made)
    after.load_state_dict(ended)
    for each in (loader, after):
        assert_same(batches_of(each, epoch=7), batches_of(make_loader(0, *made), epoch=7))


# What a data module hands to Lightning


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    datamodule = DigitsDataModule(img_size=8)
    datamodule.setup()
    return datamodule


def loaders(datamodule: DigitsDataModule) -> dict[str, DataLoader]:
    return {name: getattr(datamodule, f"{name}_dataloader")() for name in ("train", "val", "test")}


def test_loaders_are_ordinary_ones_of_whole_batches(digits: DigitsDataModule) -> None:
    for name, loader in loaders(digits).items():
        batches = list(loader)
        assert isinstance(loader, DataLoader) and len(batches) == len(loader)
        images, labels = batches[0]
        n = 64 if name == "train" else min(256, len(digits.sets[name]))
        assert images.shape == (n, 1, 8, 8) and labels.shape == (n,)
        served = torch.cat([labels for _, labels in batches])
        if name == "train":
            assert {len(labels) for _, labels in batches} == {64}  # what is left over waits for the next epoch
        else:
            assert torch.equal(served, digits.sets[name].labels)


def test_loading_takes_no_random_numbers(digits: DigitsDataModule) -> None:
    def states() -> tuple[list[int], object, str]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    for loader in loaders(digits).values():
        assert isinstance(next(iter(loader))[0], Tensor)
    assert states() == before


def test_batches_can_hold_what_a_model_has_made_of_the_images() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([5, 6, 7])
    encoded = torch.arange(6.0).view(2, 3, 1)  # of each image, and of its mirror image
    served, conditions = EncodedSet(images, labels, 2, encoded=encoded).__getitems__([2, ~0, 1])
    assert served.tolist() == [[2.0], [3.0], [1.0]]
    assert conditions.tolist() == [7, 5, 6]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on_with_the_images_that_are_left(before: int, after: int) -> None:
    whole = [number for _, labels in batches_of(make_loader(), epoch=1) for number in labels.tolist()]
    seen, left = [], []
    for rank in range(before):
        loader = make_loader(processes=before, rank=rank)
        batches = iter(loader)
        loader.sampler.set_epoch(1)
        for _ in range(2 // before):
            seen += next(batches)[1].tolist()
        state = loader.state_dict()
    assert state == {"epoch": 1, "images": 2 * BATCH}
    for rank in range(after):
        loader = make_loader(processes=after, rank=rank)
        loader.load_state_dict(state)
        left += [number for _, labels in batches_of(loader, epoch=1) for number in labels.tolist()]

    assert sorted(seen) == sorted(whole[: 2 * BATCH])
    assert sorted(left) == sorted(whole[2 * BATCH :])
