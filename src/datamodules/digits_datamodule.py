"""The handwritten digits that scikit-learn ships: real data on any machine, without a network."""

from collections.abc import Sequence

import torch

from src.datamodules.image_datamodule import ImageDataModule, Split, split_off

N_DIGITS = 1797
DIGITS_SPLIT = (1_412, 128, 257)  # MNIST's proportions


def check_digits_split(split: Sequence[int]) -> None:
    """Raises ValueError where the sizes do not add up to 1,797."""
    if sum(split) != N_DIGITS:
        raise ValueError(
            f"train_val_test_split must add up to {N_DIGITS}, but {list(split)} makes {sum(split)}: try [1412,128,257]"
        )


def load_digits(split: Sequence[int]) -> dict[str, Split]:
    """The digits (Alpaydin & Kaynak 1998, UCI), 8x8 pixels each, in splits drawn with a fixed seed.

    Raises:
        ValueError: the sizes do not add up to 1,797.
    """
    check_digits_split(split)
    from sklearn import datasets  # a second of imports that MNIST does not need

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return dict(zip(["train", "val", "test"], split_off(images, labels, split), strict=True))


class DigitsDataModule(ImageDataModule):
    """scikit-learn's 1,797 digits, resized to `img_size`; arguments as in `ImageDataModule`."""

    channels = 1
    n_classes = 10
    source = "digits"

    def __init__(
        self,
        train_val_test_split: Sequence[int] = DIGITS_SPLIT,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
    ) -> None:
        super().__init__(
            train_val_test_split, batch_size, num_workers, pin_memory, img_size, seed, subset, subset_per_class
        )

    def check_split(self, split: list[int]) -> None:
        """All of the digits are used."""
        check_digits_split(split)

    def load(self) -> dict[str, Split]:
        return load_digits(self.train_val_test_split)
