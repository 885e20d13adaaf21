"""Anybody's pictures: a folder with a subfolder for each class."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_only

from src.datamodules.image_datamodule import SPLIT_SEED, ImageDataModule, Split
from src.utils.numbers import is_whole

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class FolderDataModule(ImageDataModule):
    """`folder/<class name>/<picture>`, in classes sorted by name.

    Each picture is decoded once, turned as its EXIF data say, laid on white where it is transparent, cut to its central
    square and resized to `img_size`. Files that are hidden or no pictures are left out. Each class is split by itself,
    always in the same way, so that all classes are in every split.

    Args:
        folder: holds a subfolder for each class.
        train_val_test_split: the share of each split, or rather of each class in it.
        batch_size: images a batch (and process, where there are several).
        num_workers: processes that prepare batches; 0: none, which is fastest for images in memory.
        pin_memory: page-locked batches, which reach a GPU faster.
        img_size: height and width of the images served, in pixels.
        channels: 3: colour, 1: grey; pictures of the other kind are converted.
        seed: of the order of the training images, and of which are mirrored.
        subset: train on this many of the training images, with as many of each class as there can be; null: on all.
        subset_per_class: train on this many images of each class; takes the place of `subset`.
        flip: mirror each training image in every other epoch on average; not for pictures in which left and right
            differ, such as letters.

    Raises:
        ValueError: an argument cannot be meant, the folder holds no classes, or a picture is damaged.
    """

    def __init__(
        self,
        folder: str | Path | None,
        train_val_test_split: Sequence[float] = (0.8, 0.1, 0.1),
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        img_size: int = 64,
        channels: int = 3,
        seed: int = 0,
        subset: int | None = None,
        subset_per_class: int | None = None,
        flip: bool = False,
    ) -> None:
        if folder is None:
            raise ValueError("folder must be set: datamodule.folder=DIR, where DIR has a subfolder of pictures a class")
        if not is_whole(channels) or channels not in (1, 3):
            raise ValueError(f"channels must be 3 for colour or 1 for grey, not {channels!r}")
        self.channels = channels
        self.folder = Path(folder).expanduser()
        self.pictures = find_pictures(self.folder)
        self.n_classes = len(self.pictures)
        self.source = self.folder.resolve().name[:60]  # a tag of a W&B run has 64 characters at most
        shares = check_shares(train_val_test_split)
        # How many pictures of each class are for training, validation and test.
        self.sizes = {name: share_out(len(paths), shares) for name, paths in self.pictures.items()}
        for name, sizes in self.sizes.items():
            if sizes[0] < 1:
                raise ValueError(
                    f"train_val_test_split is {list(shares)}, which leaves no picture of {name!r} to train on: add"
                    f" pictures to the {sum(sizes)} in {self.folder / name}, or remove that class"
                )
        totals = [sum(sizes) for sizes in zip(*self.sizes.values(), strict=True)]
        super().__init__(totals, batch_size, num_workers, pin_memory, img_size, seed, subset, subset_per_class, flip)

    @property
    def class_names(self) -> Sequence[str]:
        """The subfolders' names."""
        return list(self.pictures)

    def load(self) -> dict[str, Split]:
        images = decode([path for paths in self.pictures.values() for path in paths], self.channels, self.img_size)
        labels = torch.arange(self.n_classes).repeat_interleave(torch.tensor([*map(len, self.pictures.values())]))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        split = torch.empty_like(labels)
        for label, sizes in enumerate(self.sizes.values()):
            split[order[labels[order] == label]] = torch.arange(3).repeat_interleave(torch.tensor(sizes))
        parts = [order[split[order] == i] for i in range(3)]  # in random order, not class after class
        return {name: (images[part], labels[part]) for name, part in zip(["train", "val", "test"], parts, strict=True)}


def find_pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, both sorted by name.

    Raises:
        ValueError: begins with `folder`.
    """
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = {
            path.name: sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
            for path in subfolders
        }
    except OSError as error:
        raise ValueError(
            f"folder is {folder}, which cannot be read ({error.strerror}): set datamodule.folder=DIR, where DIR has a"
            " subfolder of pictures a class"
        ) from error
    if len(found) < 2:
        raise ValueError(
            f"folder is {folder}, which has {len(found)} subfolders: put the pictures of each class into a subfolder,"
            " two classes at least"
        )
    if empty := [name for name, paths in found.items() if not paths]:
        raise ValueError(
            f"folder is {folder}, where {empty[0]!r} has no pictures: put some right into it, named *.png, *.jpg or the"
            " like, or remove it"
        )
    return found


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Refuses what are not three positive numbers that make 1."""
    numbers = all(isinstance(share, (int, float)) and not isinstance(share, bool) and share > 0 for share in shares)
    if len(shares) != 3 or not numbers or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"train_val_test_split must be three shares that make 1, such as [0.8,0.1,0.1], not {shares}")
    return tuple(shares)


def share_out(n: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that make `n`, of about these shares; only the first can be less than 1."""
    val, test = (max(1, round(n * share)) for share in shares[1:])
    return [n - val - test, val, test]


def decode(paths: Sequence[Path], channels: int, img_size: int) -> torch.Tensor:
    """Pictures as uint8 [N, channels, img_size, img_size].

    Raises:
        ValueError: names the first picture that cannot be decoded.
    """
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(paths), img_size, img_size, channels), np.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: decode_one(path, channels, img_size), paths)
        console = Console(stderr=True, quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
        for i, image in enumerate(track(decoded, "Decoding pictures", len(paths), console=console, transient=True)):
            images[i] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def decode_one(path: Path, channels: int, img_size: int) -> np.ndarray:
    """One picture as uint8 [img_size, img_size, channels].

    Raises:
        ValueError: names the file.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (2 * img_size, 2 * img_size))  # big JPEGs are decoded at a fraction of their size
            picture = ImageOps.exif_transpose(image)
            if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits; Pillow would cut them off at 255
                picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = ImageOps.fit(picture, (img_size, img_size), Image.Resampling.BICUBIC)
            return np.asarray(picture).reshape(img_size, img_size, channels)
    except Exception as error:  # decoders fail on damaged files in many ways
        raise ValueError(f"{path} cannot be decoded ({error}): replace or delete it") from error
