"""The embedded digits: all of them, split once."""

import torch
from sklearn import datasets

from src.datamodules.digits_datamodule import DigitsDataModule


def test_they_are_scikit_learns_in_three_sets_of_all_classes() -> None:
    datamodule = DigitsDataModule(img_size=32)
    datamodule.setup("fit")
    assert datamodule.source == "digits" and list(datamodule.class_names) == list("0123456789")
    assert {name: len(data) for name, data in datamodule.sets.items()} == {"train": 1_412, "val": 128, "test": 257}
    served = []
    for data in datamodule.sets.values():
        assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64
        assert data.labels.unique().tolist() == list(range(10))
        served += zip(data.images.flatten(1).tolist(), data.labels.tolist(), strict=True)
    digits = datasets.load_digits()
    grey = [[round(value * 255 / 16) for value in image] for image in digits.data.tolist()]  # 16 levels become 256
    assert sorted(served) == sorted(zip(grey, digits.target.tolist(), strict=True))
    images, _ = next(iter(datamodule.train_dataloader()))
    assert images.shape == (64, 1, 32, 32)
    assert images.min() == -1 and images.max() == 1
