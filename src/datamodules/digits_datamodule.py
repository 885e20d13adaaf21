"""The handwritten digits that scikit-learn ships: real data on any machine, without a network."""

from collections.abc import Sequence
from typing import Any

import torch

from src.datamodules.image_datamodule import ImageDataModule, Sizes, Split, split_off

DIGITS_SPLIT = (1_412, 128, 257)  # MNIST's proportions


class DigitsDataModule(ImageDataModule):
    """Digits (Alpaydin & Kaynak 1998, UCI) in grey, 8x8 pixels, resized to `img_size`.

    Args:
        train_val_test_split: makes 1,797.
        **kwargs: as in `ImageDataModule`.
    """

    channels = 1
    n_classes = 10
    source = "digits"

    def __init__(self, train_val_test_split: Sizes = DIGITS_SPLIT, **kwargs: Any) -> None:
        if (total := sum(train_val_test_split)) != sum(DIGITS_SPLIT):
            raise ValueError(
                f"train_val_test_split must add up to {sum(DIGITS_SPLIT)}, but {list(train_val_test_split)} makes"
                f" {total}: try [{','.join(map(str, DIGITS_SPLIT))}]"
            )
        super().__init__(train_val_test_split, **kwargs)

    def load(self) -> dict[str, Split]:
        return load_digits(self.train_val_test_split)


def load_digits(split: Sequence[int]) -> dict[str, Split]:
    """The digits in splits of these sizes, drawn with a fixed seed."""
    from sklearn import datasets  # a second of imports that MNIST does not need

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return dict(zip(["train", "val", "test"], split_off(images, labels, split), strict=True))
