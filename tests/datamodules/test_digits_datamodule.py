"""The embedded digits: all of them, split once."""

import torch
from sklearn import datasets

from src.datamodules.digits_datamodule import DigitsDataModule


def loaded(**kwargs) -> DigitsDataModule:
    datamodule = DigitsDataModule(**kwargs)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def rows(datamodule: DigitsDataModule, *names: str) -> list[tuple[int, ...]]:
    """Each image with its label, in an order of their own."""
    sets = [datamodule.sets[name] for name in names or ("train", "val", "test")]
    return sorted((*i.flatten().tolist(), int(y)) for s in sets for i, y in zip(s.images, s.labels, strict=True))


def test_the_three_sets_are_the_1797_digits() -> None:
    datamodule = loaded()
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == [1_412, 128, 257]
    digits = datasets.load_digits()
    # 16 grey levels become 256.
    expected = [
        (*(round(v * 255 / 16) for v in i), int(y)) for i, y in zip(digits.data.tolist(), digits.target, strict=True)
    ]
    assert rows(datamodule) == sorted(expected)


def test_images_of_all_classes_from_black_to_white() -> None:
    datamodule = loaded(img_size=32)
    assert datamodule.source == "digits"
    for name, images in datamodule.sets.items():
        assert images.labels.unique().tolist() == list(range(10)), name
        assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    images, _ = next(iter(datamodule.train_dataloader()))
    assert images.shape == (64, 1, 32, 32)
    assert images.min() == -1 and images.max() == 1


def test_the_split_is_the_same_for_every_run() -> None:
    first = loaded(seed=1)
    torch.manual_seed(7)
    other = loaded(seed=2, batch_size=3, img_size=8)
    assert all(torch.equal(first.sets[n].images, other.sets[n].images) for n in first.sets)
    kept = dict(first.sets)
    first.setup("test")
    assert all(first.sets[n] is kept[n] for n in kept)


def test_the_seed_orders_the_training_images() -> None:
    first, again, other = (next(iter(loaded(seed=seed).train_dataloader()))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
