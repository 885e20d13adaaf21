"""CIFAR-10 from its pickles or their archive, or from the network."""

import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch

from src.datamodules.image_datamodule import Crop, Sizes, Split
from src.datamodules.published_datamodule import PublishedDataModule, check_md5

ARCHIVE = "cifar-10-python.tar.gz"
PICKLES = "cifar-10-batches-py"  # the folder in the archive


class CIFAR10DataModule(PublishedDataModule):
    """CIFAR-10 (Krizhevsky 2009): ten kinds of things in colour, 32x32 pixels, resized to `img_size`.

    `data_dir` holds the folder `cifar-10-batches-py` or the archive `cifar-10-python.tar.gz`, which is downloaded there
    and read without being unpacked; the folder is read faster.

    Args:
        flip: mirror each training image, left to right, in every other epoch on average.
        crop: shift each training image at random by up to this share of its side; the border mirrors it.
        **kwargs: as in `PublishedDataModule`.
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
        data_dir: str | Path,
        train_val_test_split: Sizes,
        flip: bool = True,
        crop: Crop = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, train_val_test_split, **kwargs)
        self.flip = flip
        self.crop = crop

    def missing(self) -> dict[str, str]:
        return {} if self._unpacked() or (self.folder / ARCHIVE).is_file() else {ARCHIVE: self.archive_md5}

    def read(self) -> tuple[Split, Split]:
        splits = []
        for path, content in self._contents().items():
            check_md5(content, self.files[path.name], path)  # only what was published is unpickled
            batch = pickle.loads(content, encoding="bytes")
            splits.append((torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32), torch.tensor(batch[b"labels"])))
        *parts, test = splits
        images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return (images, labels), test

    def _unpacked(self) -> bool:
        return all((self.folder / PICKLES / name).is_file() for name in self.files)

    def _contents(self) -> dict[Path, bytes]:
        """Each pickle's path and bytes, in the order of `files`."""
        folder, archive = self.folder / PICKLES, self.folder / ARCHIVE
        if self._unpacked():
            return {folder / name: (folder / name).read_bytes() for name in self.files}
        found: dict[str, Any] = {}
        try:
            with tarfile.open(archive, "r|gz") as members:
                for member in members:
                    if member.isfile():
                        found[member.name] = members.extractfile(member).read()  # type: ignore[union-attr]
            return {archive / PICKLES / name: found[f"{PICKLES}/{name}"] for name in self.files}
        except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{archive} is damaged ({why}): delete it, and it is downloaded again") from error
