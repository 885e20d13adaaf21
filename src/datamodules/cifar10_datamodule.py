"""CIFAR-10 from its pickles or their archive, or from the network."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from src.datamodules.image_datamodule import Split, split_off
from src.datamodules.published_datamodule import PublishedDataModule, check_md5

ARCHIVE = "cifar-10-python.tar.gz"
PICKLES = "cifar-10-batches-py"  # the folder in the archive
ADMITTED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class CIFAR10DataModule(PublishedDataModule):
    """CIFAR-10 (Krizhevsky 2009): ten kinds of things in colour, 32x32 pixels, resized to `img_size`.

    Args:
        data_dir: holds the folder `cifar-10-batches-py` or the archive `cifar-10-python.tar.gz`, which is downloaded
            there and read without being unpacked; the folder is read faster.
        train_val_test_split: training and validation images out of 50,000, and the 10,000 test images.

    Further arguments, and errors, as in `ImageDataModule` and `PublishedDataModule`.
    """

    channels = 3
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    n_classes = len(class_names)
    source = "cifar10"
    title = "CIFAR-10"
    folder_name = ""
    mirrors = ("https://www.cs.toronto.edu/~kriz/",)
    n_train = 50_000
    n_test = 10_000
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    files = {  # the training images in their order, then the test images
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }

    def __init__(
        self,
        data_dir: str | Path = "data/",
        train_val_test_split: Sequence[int] = (45_000, 5_000, 10_000),
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 32,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
        flip: bool = True,
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
            flip,
        )

    def missing(self) -> dict[str, str]:
        return {} if self._unpacked() or (self.folder / ARCHIVE).is_file() else {ARCHIVE: self.archive_md5}

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        train = torch.empty(self.n_train, 3, 32, 32, dtype=torch.uint8), torch.empty(self.n_train, dtype=torch.int64)
        test = torch.empty(self.n_test, 3, 32, 32, dtype=torch.uint8), torch.empty(self.n_test, dtype=torch.int64)
        names = list(self.files)
        n = self.n_train // (len(names) - 1)
        for path, content in self._contents():
            check_md5(content, self.files[path.name], path)
            try:
                batch = read_pickle(content)
            except pickle.UnpicklingError as error:
                raise ValueError(f"{path} is not CIFAR-10's ({error}): delete it") from error
            start = names.index(path.name) * n
            images, labels = (part[start : start + n] for part in train) if path.name != "test_batch" else test
            images.copy_(torch.from_numpy(batch[b"data"]).view_as(images))
            labels.copy_(torch.tensor(batch[b"labels"]))
        first, second = split_off(*train, self.train_val_test_split[:2])
        return {"train": first, "val": second, "test": test}

    def _unpacked(self) -> bool:
        return all((self.folder / PICKLES / name).is_file() for name in self.files)

    def _contents(self) -> Iterator[tuple[Path, bytes]]:
        """Each pickle's path and bytes, in any order: an archive is read once, from its beginning to its end."""
        if self._unpacked():
            for name in self.files:
                path = self.folder / PICKLES / name
                yield path, path.read_bytes()
            return
        archive = self.folder / ARCHIVE
        wanted = {f"{PICKLES}/{name}" for name in self.files}
        try:
            with tarfile.open(archive, "r|gz") as members:
                for member in members:
                    if member.name in wanted and (content := members.extractfile(member)):
                        wanted.remove(member.name)
                        yield archive / member.name, content.read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{archive} is damaged ({error}): delete it, and it is downloaded again") from error
        if wanted:
            lacks = ", ".join(sorted(wanted))
            raise ValueError(f"{archive} is damaged (it lacks {lacks}): delete it, and it is downloaded again")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain values, and calls nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}")
        return super().find_class(module, name)


def read_pickle(content: bytes) -> dict[bytes, Any]:
    """A pickle of NumPy arrays, lists, numbers and texts, which stay bytes, from a source that nobody vouches for.

    Raises:
        pickle.UnpicklingError: it holds anything else; none of that was run.
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
