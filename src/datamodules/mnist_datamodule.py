"""MNIST from files, else from the network, else a smaller stand-in that says so."""

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from src.datamodules.digits_datamodule import DIGITS_SPLIT, load_digits
from src.datamodules.idx_datamodule import IdxDataModule
from src.datamodules.image_datamodule import Split


class MNISTDataModule(IdxDataModule):
    """MNIST (LeCun, Cortes & Burges), 28x28 pixels, resized to `img_size`.

    The official test images are the test set. Training and validation images are drawn from the official training
    images, once and for all, by a fixed seed.

    Args:
        data_dir: holds the four idx files or their `.gz`, directly or under `MNIST/raw/`; they are downloaded there.
        train_val_test_split: training and validation images out of 60,000, and the 10,000 test images.
        batch_size: images a batch (and process, where there are several).
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory.
        pin_memory: page-locked batches, which reach a GPU faster.
        img_size: height and width of the images served, in pixels.
        offline_fallback: without files and network, serve scikit-learn's 1,797 digits instead of raising, over and over
            in an epoch, so that it has as many batches as with MNIST.
        seed: of the order of the training images.
        subset: train on this many of the training images, with as many of each class as there can be; null: on all.
        subset_per_class: train on this many images of each class; takes the place of `subset`.

    Raises:
        ValueError: an argument is not a number of the right kind, the split does not add up, or a file is damaged.
        FileNotFoundError: there are neither files nor a network, and `offline_fallback` is off.
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
        train_val_test_split: Sequence[int] = (55_000, 5_000, 10_000),
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        offline_fallback: bool = True,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
    ) -> None:
        super().__init__(
            data_dir,
            train_val_test_split,
            batch_size,
            num_workers,
            pin_memory,
            img_size,
            seed,
            subset,
            subset_per_class,
        )
        self.offline_fallback = offline_fallback
        self.source = "mnist"

    def prepare_data(self) -> None:
        """Finds the files, downloads what is missing, or falls back to the digits."""
        if self.source == "mnist":
            super().prepare_data()

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        return super().load() if self.source == "mnist" else load_digits(DIGITS_SPLIT)

    def do_without(self, files: str, error: OSError, or_else: str = "") -> None:
        """Falls back to the digits, where that is wanted."""
        if not self.offline_fallback:
            or_else = ", or set datamodule.offline_fallback=true to train on scikit-learn's digits"
            super().do_without(files, error, or_else)
        self.source = "digits-fallback"
        # As much training as on MNIST: all that counts epochs or batches means the same.
        self.epoch_length = self.n_asked_for
        # Of the digits as many as were asked for, or all where there are fewer.
        self.subset, self.subset_per_class = self.n_asked_for, None
        self.train_val_test_split = list(DIGITS_SPLIT)
        warn_of_fallback(
            f"NOT MNIST. It is not in {self.folder} and could not be downloaded ({error}).\n"
            f"This run uses the 1,797 digits of scikit-learn instead: {DIGITS_SPLIT[0]:,} training images of 8x8"
            " pixels, enlarged, and repeated so that an epoch is as long as on MNIST. Its numbers compare with no MNIST"
            " result.\n"
            f"For MNIST put {files} into that folder, or set DATA_DIR in .env.\n"
            "To stop here instead of falling back: datamodule.offline_fallback=false."
        )


@rank_zero_only
def warn_of_fallback(text: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    Console(stderr=True).print(Panel(Text(text), title="WARNING: embedded digits", style="bold yellow"))
