"""What can be evaluated: models that draw images, and files that hold some."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import ListConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.datamodules.picture_files import find_pictures, some
from src.datamodules.picture_pixels import decode, size_of
from src.errors import UserError
from src.metrics.drawn import DRAW_BATCH, SEEDS
from src.metrics.quality import choice
from src.models.request import Request
from src.run.commands import find_checkpoint
from src.run.files import sha256_of
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.labels import resolve
from src.sampling.open_sampler import open_sampler
from src.sampling.sampler import BLOCK, Sampler
from src.sampling.samples_file import LARGEST_SIDE, SamplesFile

log = logging.getLogger(__name__)

MOST = 20  # inputs, which is more than a terminal has columns for
FILE_SEED = 1  # not that of the real images: of a file of these it would choose the very same
GREY = 4  # levels that the channels of a grey picture may differ by on average, as JPEG rounds
STEP = 4 * BLOCK  # images between two steps of a progress bar


class Input(ABC):
    """One of the things to evaluate.

    Attributes:
        path: of its file.
        name: short, and of no other input; it is set when all are known.
        n_classes: number of classes; None: not known.
        channels: image channels; None: as the data have them.
        img_size: height and width of the images in pixels.
        source: the name of the data it was trained on; None: not known.
        data_sha256: the checksum of these; None: not known.
    """

    path: Path
    name: str
    n_classes: int | None
    channels: int | None
    img_size: int
    source: str | None = None
    data_sha256: str | None = None

    @abstractmethod
    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """An image for each of labels int64 [N], as uint8 [N, C, H, W].

        Args:
            labels: no more of each class than `available` says.
            kind: which of `SEEDS` stands for the noise, where there is noise.
            console: where progress is shown.
        """

    @abstractmethod
    def available(self, datamodule: ImageDataModule) -> Tensor | None:
        """How many images of each of these data's classes there are, int64 [n_classes]; None: as many as one likes.

        It comes before `images`.

        Raises:
            UserError: there are images of other classes.
        """

    def sha256(self) -> str:
        """Of its contents, in hexadecimal."""
        return sha256_of(self.path)

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """Failures that only its family of models has, as `ImageModel.alarms`."""
        return {}

    def about(self) -> dict[str, Any]:
        """What is known of it, as plain values."""
        return {}


class ModelInput(Input):
    """A checkpoint or an ONNX file, which draws what it is asked for.

    Args:
        sampler: opened.
        path: of its file.
    """

    def __init__(self, sampler: Sampler, path: Path) -> None:
        self.sampler, self.path = sampler, path
        about = sampler.about
        self.n_classes, self.channels, self.img_size = about.n_classes, about.channels, about.img_size
        self.source = None if about.data in ("None", "") else about.data
        if isinstance(sampler, CheckpointSampler) and isinstance(sampler.data, dict):
            self.data_sha256 = sampler.data.get("sha256")

    def available(self, datamodule: ImageDataModule) -> None:
        """As many as one likes."""

    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """Drawn from the noise that a run's own test draws them from."""
        noise = noise_of_test(len(labels), self.sampler.about.noise_shape, SEEDS[kind])
        request = Request(noise, labels.numpy())
        drawn = [
            self.sampler.draw(request[start : start + STEP])
            for start in track(range(0, len(labels), STEP), f"drawing {escape(self.name)}", console=console)
        ]
        return torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2).contiguous()

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        return self.sampler.model.alarms(metrics) if isinstance(self.sampler, CheckpointSampler) else {}

    def about(self) -> dict[str, Any]:
        """What the file says of the model."""
        return asdict(self.sampler.about)


class DrawnInput(Input):
    """Images that somebody has drawn, with the classes that were asked for.

    Attributes:
        labels: int64 [N].
    """

    n_classes = None
    labels: np.ndarray

    @abstractmethod
    def read(self, index: np.ndarray) -> np.ndarray:
        """The images at these indices, int64 [M], as uint8 [M, H, W, C]."""

    def available(self, datamodule: ImageDataModule) -> Tensor:
        """How many images of each class there are, int64 [n_classes]."""
        return torch.from_numpy(np.bincount(self.labels, minlength=datamodule.n_classes))

    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """Some of each class at random, always the same ones: the first may differ from the others, as MNIST's do."""
        n = len(self.labels)
        order = choice(n, n, FILE_SEED).numpy()
        shuffled = self.labels[order]
        index = np.empty(len(labels), np.int64)
        for label in labels.unique().tolist():
            wanted = (labels == label).numpy()
            index[wanted] = order[shuffled == label][: wanted.sum()]
        with console.status(f"reading {escape(self.name)}"):
            return torch.from_numpy(self.read(index)).permute(0, 3, 1, 2).contiguous()


class FileInput(DrawnInput):
    """A `samples.npz`.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = SamplesFile(path)
        self.img_size, self.channels = self.samples.shape[2:]
        self.labels = self.samples.labels

    def available(self, datamodule: ImageDataModule) -> Tensor:
        """How many images of each class there are, int64 [n_classes]."""
        n_classes = datamodule.n_classes
        if self.labels.max() >= n_classes:
            raise UserError(
                f"ckpt_path={self.path} has images of class {self.labels.max()}, but the data's classes are 0 to"
                f" {n_classes - 1}: name the data that they are images of with datamodule=NAME"
            )
        return super().available(datamodule)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The images at these indices, int64 [M], as uint8 [M, H, W, C]."""
        return self.samples.read(index)


class FolderInput(DrawnInput):
    """A folder of pictures, with a subfolder for each class, or laid out otherwise as `find_pictures` says.

    Args:
        path: of the folder.

    Raises:
        UserError: it holds no pictures of classes, or not squares of one size.
    """

    channels = None

    def __init__(self, path: Path) -> None:
        self.path = path
        with _blamed_on(path):
            self.found = find_pictures(path)
        if not self.found.pictures:
            raise UserError(
                f"ckpt_path={path} is a folder without pictures of classes: name a file, or a folder that has a"
                " subfolder of pictures for each class"
            )
        if left_out := self.found.in_words():
            log.warning(left_out)
        sizes = Counter(size for picture in self.found.pictures if (size := size_of(picture.path)))
        (width, height), _ = sizes.most_common(1)[0] if sizes else ((1, 1), 0)
        if len(sizes) > 1 or width != height or width > LARGEST_SIDE:
            has = some([f"{n:,} of {w} x {h} pixels" for (w, h), n in sizes.most_common()], ", ", 3)
            raise UserError(
                f"ckpt_path={path} has pictures of several sizes, or not squares ({has}): save all of them as squares"
                f" of one size, of at most {LARGEST_SIDE} pixels"
            )
        self.img_size = width

    def available(self, datamodule: ImageDataModule) -> Tensor:
        """How many images of each class there are, int64 [n_classes]."""
        self._channels = datamodule.channels
        names = list(datamodule.class_names)
        label_of = {}
        for name in self.found.class_names:
            try:
                label_of[name] = resolve(name, names)
            except ValueError as error:
                raise UserError(
                    f"ckpt_path={self.path} has pictures of class {name!r}, but of {datamodule.source!r} {error}:"
                    " rename that folder, or name the data with datamodule=NAME"
                ) from error
        self.labels = np.array([label_of[picture.label] for picture in self.found.pictures])
        return super().available(datamodule)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The pictures at these indices, int64 [M], as uint8 [M, H, W, C]."""
        with _blamed_on(self.path):
            pixels, _ = decode([self.found.pictures[i].path for i in index], 3, self.img_size, None)
        if self._channels == 1:
            if float((pixels.amax(1) - pixels.amin(1)).float().mean()) > GREY:
                raise UserError(f"ckpt_path={self.path} has pictures in colour, but the data are grey: save them grey")
            pixels = pixels.float().mean(1, keepdim=True).round().byte()
        return pixels.permute(0, 2, 3, 1).numpy()

    def sha256(self) -> str:
        """Of its pictures and their names, in hexadecimal."""
        hashed = hashlib.sha256()
        for picture in self.found.pictures:
            hashed.update(f"{picture.path.relative_to(self.path)}\n{picture.label}\n".encode())
            hashed.update(picture.path.read_bytes())
        return hashed.hexdigest()


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(f"ckpt_path={path}: {error}") from error


def noise_of_test(n: int, shape: Sequence[int], seed: int) -> np.ndarray:
    """The noise that `LogQuality` draws `n` images from, float32 [n, *shape]."""
    parts = [
        torch.randn(min(DRAW_BATCH, n - start), *shape, generator=torch.Generator().manual_seed(seed + start))
        for start in range(0, n, DRAW_BATCH)
    ]
    return torch.cat(parts).numpy()


def open_inputs(ckpt_path: Any, work_dir: str | Path, weights: Any, trusted: Sequence[str] = ()) -> list[Input]:
    """What `ckpt_path` names, each once, in that order.

    Args:
        ckpt_path: a checkpoint, an ONNX file, a `samples.npz`, a folder of pictures, `last`, or a list of these.
        work_dir: where to look for the newest run.
        weights: `ema` or `raw`, of models.
        trusted: packages beside ours whose classes a checkpoint may name, each with a dot at its end.

    Raises:
        UserError: one of them cannot be used, or there are too many.
    """
    listed = list(ckpt_path) if isinstance(ckpt_path, (list, ListConfig)) else [ckpt_path]
    if not 0 < len(listed) <= MOST:
        raise UserError(f"ckpt_path names {len(listed)} files: name 1 to {MOST}, such as ckpt_path=[a.ckpt,b.onnx]")
    paths = list(dict.fromkeys(find_pictures_or_file(each, work_dir) for each in listed))
    for path in paths:
        if not path.is_file() and not path.is_dir():
            raise UserError(f"ckpt_path={path} is no file: choose a checkpoint, an ONNX file or a samples.npz")
    inputs = [_open(path, work_dir, weights, trusted) for path in paths]
    for each, name in zip(inputs, short_names(paths), strict=True):
        each.name = name
    return inputs


def find_pictures_or_file(ckpt_path: Any, work_dir: str | Path) -> Path:
    """A folder that is no run's, or the file that `ckpt_path` means."""
    path = Path(str(ckpt_path))
    runs = (found for pattern in (".hydra", "ckpts", "*.ckpt") for found in path.glob(pattern))
    return path.resolve() if path.is_dir() and not any(runs) else find_checkpoint(ckpt_path, work_dir)


def _open(path: Path, work_dir: str | Path, weights: Any, trusted: Sequence[str]) -> Input:
    if path.is_dir():
        return FolderInput(path)
    if path.suffix == ".npz":
        return FileInput(path)
    sampler, _ = open_sampler(str(path), work_dir, weights, trusted=trusted)
    return ModelInput(sampler, path)


def short_names(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as sets it apart from the others."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
