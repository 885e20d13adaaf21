"""The embedded digits: all of them, split once."""

import torch
from sklearn import datasets

from src.datamodules.digits_datamodule import DigitsDataModule


def loaded(**kwargs) -> DigitsDataModule:
    datamodule = DigitsDataModule(**kwargs)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def test_the_three_sets_are_the_1797_digits() -> None:
    datamodule = loaded()
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == [1_412, 128, 257]
    digits = datasets.load_digits()
    # 16 grey levels become 256.
    expected = [
        (*(round(v * 255 / 16) for v in i), int(y)) for i, y in zip(digits.data.tolist(), digits.target, strict=True)
    ]
    images, labels = (
        torch.cat([getattr(data, name) for data in datamodule.sets.values()]) for name in ("images", "labels")
    )
    assert sorted((*i, y) for i, y in zip(images.flatten(1).tolist(), labels.tolist(), strict=True)) == sorted(expected)


def test_images_of_all_classes_from_black_to_white() -> None:
    datamodule = loaded(img_size=32)
    assert datamodule.source == "digits"
    for name, images in datamodule.sets.items():
        assert images.labels.unique().tolist() == list(range(10)), name
        assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    images, _ = next(iter(datamodule.train_dataloader()))
    assert images.shape == (64, 1, 32, 32)
    assert images.min() == -1 and images.max() == 1
