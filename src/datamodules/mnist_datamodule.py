"""MNIST from files, else from the network, else a smaller stand-in that says so."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from src.config.types import Count
from src.datamodules.digits_datamodule import DIGITS_SPLIT, load_digits
from src.datamodules.idx_datamodule import IdxDataModule
from src.datamodules.image_datamodule import Sizes, Split


class MNISTDataModule(IdxDataModule):
    """MNIST (LeCun, Cortes & Burges 1998): handwritten digits in grey, 28x28 pixels, resized to `img_size`.

    Args:
        data_dir: holds the four files or their `.gz`, directly or under `MNIST/raw/`; they are downloaded there.
        train_val_test_split: training and validation images out of 60,000, and the 10,000 test images.
        batch_size: images a batch (and process, where there are several).
        offline_fallback: without files and network, serve scikit-learn's 1,797 digits instead of raising. They are
            repeated, so that an epoch has as many batches as with MNIST.
        **kwargs: as in `ImageDataModule`.
    """

    n_classes = 10
    title = "MNIST"
    folder_name = "MNIST/raw"
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    files = {
        "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    }

    def __init__(
        self,
        data_dir: str | Path = "data/",
        train_val_test_split: Sizes = (55_000, 5_000, 10_000),
        batch_size: Count = 64,
        offline_fallback: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, train_val_test_split, batch_size=batch_size, **kwargs)
        self.offline_fallback = offline_fallback
        self.source = "mnist"

    def prepare_data(self) -> None:
        """Finds the files, downloads what is missing, or falls back to the digits."""
        if self.source == "mnist":
            super().prepare_data()

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        return super().load() if self.source == "mnist" else load_digits(DIGITS_SPLIT)

    def do_without(self, missing: str) -> None:
        """Falls back to the digits, unless `offline_fallback` is off."""
        if not self.offline_fallback:
            super().do_without(f"{missing}, or set datamodule.offline_fallback=true to train on scikit-learn's digits")
        self.source = "digits-fallback"
        # As much training as on MNIST: all that counts epochs or batches means the same.
        self.epoch_length = self.pass_length
        # As many of the digits as were asked for, or all where there are fewer.
        self.subset, self.subset_per_class = self.pass_length, None
        self.train_val_test_split = list(DIGITS_SPLIT)
        warn_of_fallback(
            f"NOT MNIST. {missing}, or set DATA_DIR in .env.\n"
            f"This run uses the 1,797 digits of scikit-learn instead: {DIGITS_SPLIT[0]:,} training images of 8x8"
            " pixels, enlarged, and repeated so that an epoch is as long as on MNIST. Its numbers do not compare with"
            " MNIST results.\n"
            "To stop here instead of falling back: datamodule.offline_fallback=false."
        )


@rank_zero_only
def warn_of_fallback(text: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    Console(stderr=True).print(Panel(Text(text), title="WARNING: embedded digits", style="bold yellow"))
