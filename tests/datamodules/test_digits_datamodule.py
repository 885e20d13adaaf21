"""The embedded digits: all of them, split once."""

import pytest
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_val_test_split": [1_000, 128, 257]}, "train_val_test_split must add up to 1797.*1385"),
        ({"train_val_test_split": [1_797]}, "train_val_test_split must be three positive whole numbers"),
        ({"train_val_test_split": [1_540, 0, 257]}, "train_val_test_split must be three positive whole numbers"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 64.0}, "batch_size must be a whole number of at least 1, not 64.0"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, not True"),
        ({"batch_size": 1_413}, "batch_size is 1413, but there are only 1412 training images"),
        ({"img_size": 0}, "img_size must be a whole number of at least 1, not 0"),
        ({"subset": 0}, "subset must be a whole number of at least 1, not 0"),
        ({"subset": 1_413}, "subset is 1413, but there are only 1412 training images: use fewer"),
        ({"subset": 100, "batch_size": 101}, "batch_size is 101, but there are only 100 training images"),
        ({"subset_per_class": 6}, "batch_size is 64, but there are only 60 training images"),
        ({"subset_per_class": True}, "subset_per_class must be a whole number of at least 1, not True"),
        ({"subset_per_class": 142}, "subset_per_class is 142, which makes 1420 images of 10 classes.* only 1412"),
        ({"subset_per_class": 140}, "subset_per_class is 140, but there are only 13. training images of class '[0-9]'"),
        ({"subset": 100, "subset_per_class": 10}, "subset must be null where subset_per_class is set"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0, not -1"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(**arguments)
