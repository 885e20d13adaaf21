"""What can be evaluated: models that draw images, and files that hold some."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
from src.drawing.checkpoint_drawer import CheckpointDrawer
from src.drawing.drawer import BLOCK, Drawer
from src.drawing.open_drawer import open_drawer
from src.drawing.samples_file import SamplesFile
from src.metrics.drawn import DRAW_BATCH, SEEDS
from src.metrics.quality import choice
from src.utils.checksum import sha256_of
from src.utils.commands import find_checkpoint
from src.utils.errors import UserError

MOST = 20  # inputs, which is more than a terminal has columns for
FILE_SEED = 1  # not that of the real images: of a file of these it would choose the very same
STEP = 4 * BLOCK  # images between two steps of a progress bar


class Input(ABC):
    """One of the things to evaluate.

    Attributes:
        path: of its file.
        name: short, and of no other input; it is set when all are known.
        n_classes: number of classes; None: not known.
        channels: image channels.
        img_size: height and width of the images in pixels.
        source: the name of the data it was trained on; None: not known.
        data_sha256: the checksum of these; None: not known.
    """

    path: Path
    name: str
    n_classes: int | None
    channels: int
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

    def about(self) -> dict[str, Any]:
        """What is known of it, as plain values."""
        return {}


class ModelInput(Input):
    """A checkpoint or an ONNX file, which draws what it is asked for.

    Args:
        drawer: opened.
        path: of its file.
    """

    def __init__(self, drawer: Drawer, path: Path) -> None:
        self.drawer, self.path = drawer, path
        about = drawer.about
        self.n_classes, self.channels, self.img_size = about.n_classes, about.channels, about.img_size
        self.source = None if about.data in ("None", "") else about.data
        if isinstance(drawer, CheckpointDrawer) and isinstance(drawer.data, dict):
            self.data_sha256 = drawer.data.get("sha256")

    def available(self, datamodule: ImageDataModule) -> None:
        """As many as one likes."""

    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """Drawn from the noise that a run's own test draws them from."""
        noise = noise_of_test(len(labels), self.drawer.about.noise_shape, SEEDS[kind])
        asked = labels.numpy()
        drawn = [
            self.drawer.draw(asked[start : start + STEP], noise[start : start + STEP])
            for start in track(range(0, len(labels), STEP), f"drawing {escape(self.name)}", console=console)
        ]
        return torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2).contiguous()

    def about(self) -> dict[str, Any]:
        """What the file says of the model."""
        return asdict(self.drawer.about)


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
        ckpt_path: a checkpoint, an ONNX file, a `samples.npz`, `last`, or a list of these.
        work_dir: where to look for the newest run.
        weights: `ema` or `raw`, of models.
        trusted: packages beside ours whose classes a checkpoint may name, each with a dot at its end.

    Raises:
        UserError: one of them cannot be used, or there are too many.
    """
    listed = list(ckpt_path) if isinstance(ckpt_path, (list, ListConfig)) else [ckpt_path]
    if not 0 < len(listed) <= MOST:
        raise UserError(f"ckpt_path names {len(listed)} files: name 1 to {MOST}, such as ckpt_path=[a.ckpt,b.onnx]")
    paths = list(dict.fromkeys(find_checkpoint(each, work_dir) for each in listed))
    inputs = [_open(path, work_dir, weights, trusted) for path in paths]
    for each, name in zip(inputs, short_names(paths), strict=True):
        each.name = name
    return inputs


def _open(path: Path, work_dir: str | Path, weights: Any, trusted: Sequence[str]) -> Input:
    if not path.is_file():
        raise UserError(f"ckpt_path={path} is no file: choose a checkpoint, an ONNX file or a samples.npz")
    if path.suffix == ".npz":
        return FileInput(path)
    drawer, _ = open_drawer(str(path), work_dir, weights, trusted=trusted)
    return ModelInput(drawer, path)


def short_names(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as sets it apart from the others."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
