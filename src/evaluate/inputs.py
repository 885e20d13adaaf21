"""What can be evaluated: models that draw images, and files that hold some."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from src.metrics.evaluator import SEEDS, choice, in_parts
from src.models.request import Request
from src.run.commands import find_checkpoint
from src.run.files import sha256_of
from src.run.trainer import native_precision
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.labels import resolve
from src.sampling.options import open_sampler
from src.sampling.sampler import Sampler
from src.sampling.samples_file import LARGEST_SIDE, SamplesFile

log = logging.getLogger(__name__)

MOST = 20  # inputs, which is more than a terminal has columns for
FILE_SEED = 1  # another than for real images: in a file of these it would choose the same ones
GREY = 4  # levels that the channels of a grey picture may differ by on average, as JPEG rounds
STEPS = 4  # blocks between two steps of a progress bar


class Input(ABC):
    """One of the things to evaluate: a file, or a folder. What is None is not known."""

    name: str  # short, and unique among the inputs
    img_size: int  # height and width of the images in pixels
    channels: int | None = None
    n_classes: int | None = None
    source: str | None = None  # the name of the data it was trained on
    data_sha256: str | None = None  # of these data
    about: Mapping[str, Any] = {}  # what else is known of it, as plain values
    checkpoint: CheckpointSampler | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def available(self, datamodule: ImageDataModule) -> Tensor | None:
        """How many images of each of these data's classes there are, int64 [n_classes]; None: any number.

        Refuses images of other classes. Must be called before `images`.
        """
        return None

    @abstractmethod
    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """An image uint8 [N, C, H, W] for each of labels int64 [N], of which no class has more than are `available`.

        `kind` is the one of `SEEDS` that noise has.
        """

    def sha256(self) -> str:
        return sha256_of(self.path)


class ModelInput(Input):
    """A checkpoint or an ONNX file."""

    def __init__(self, path: Path, sampler: Sampler) -> None:
        super().__init__(path)
        self.sampler, about = sampler, sampler.about
        self.about = asdict(about)
        self.n_classes, self.channels, self.img_size = about.n_classes, about.channels, about.img_size
        self.source = about.data or None
        if isinstance(sampler, CheckpointSampler):
            self.checkpoint = sampler
            on_cpu = sampler.model.device.type == "cpu"
            # As in the run's own test; where bfloat16 is emulated, single precision comes close to that, and is faster.
            sampler.bfloat16 = sampler.trained_in_bfloat16 and native_precision(on_cpu=on_cpu) == "bf16-mixed"
            self.data_sha256 = sampler.data.get("sha256") if isinstance(sampler.data, dict) else None

    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """Drawn from the noise that a run's own test draws from."""
        shape = self.sampler.about.noise_shape
        noise = [torch.randn(len(labels[part]), *shape, generator=rng) for part, rng in in_parts(labels, SEEDS[kind])]
        request = Request(torch.cat(noise).numpy(), labels.numpy())
        drawn = [
            self.sampler.draw(request[start : start + STEPS * self.sampler.block])
            for start in track(
                range(0, len(labels), STEPS * self.sampler.block), f"drawing {escape(self.name)}", console=console
            )
        ]
        return torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2).contiguous()


class DrawnInput(Input):
    """Images that somebody has drawn, with the classes that were asked for."""

    labels: np.ndarray  # int64 [N]

    @abstractmethod
    def read(self, index: np.ndarray) -> np.ndarray:
        """The images at these indices, int64 [M], as uint8 [M, H, W, C]."""

    def available(self, datamodule: ImageDataModule) -> Tensor:
        if self.labels.max() >= datamodule.n_classes:
            raise UserError(
                f"ckpt_path={self.path} has images of class {self.labels.max()}, but the data's classes are 0 to"
                f" {datamodule.n_classes - 1}: name the data that they are images of with datamodule=NAME"
            )
        return torch.from_numpy(np.bincount(self.labels, minlength=datamodule.n_classes))

    def images(self, labels: Tensor, kind: str, console: Console) -> Tensor:
        """Some of each class at random, always the same ones: the first may differ from the others, as MNIST's do."""
        order = choice(len(self.labels), len(self.labels), FILE_SEED).numpy()
        index = np.empty(len(labels), np.int64)
        for label in labels.unique().tolist():
            wanted = (labels == label).numpy()
            index[wanted] = order[self.labels[order] == label][: wanted.sum()]
        with console.status(f"reading {escape(self.name)}"):
            return torch.from_numpy(self.read(index)).permute(0, 3, 1, 2).contiguous()


class FileInput(DrawnInput):
    """A `samples.npz`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.samples = SamplesFile(path)
        self.img_size, self.channels = self.samples.shape[2:]
        self.labels = self.samples.labels

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.samples.read(index)


class FolderInput(DrawnInput):
    """A folder of pictures, with a subfolder for each class, or laid out otherwise as `find_pictures` says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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
        self.grey = datamodule.channels == 1
        label_of = {}
        for name in self.found.class_names:
            try:
                label_of[name] = resolve(name, datamodule.class_names)
            except ValueError as error:
                raise UserError(
                    f"ckpt_path={self.path} has pictures of class {name!r}, but of {datamodule.source!r} {error}:"
                    " rename that folder, or name the data with datamodule=NAME"
                ) from error
        self.labels = np.array([label_of[picture.label] for picture in self.found.pictures])
        return super().available(datamodule)

    def read(self, index: np.ndarray) -> np.ndarray:
        with _blamed_on(self.path):
            pixels, _ = decode([self.found.pictures[i].path for i in index], 3, self.img_size, None)
        if self.grey:
            if float((pixels.amax(1) - pixels.amin(1)).float().mean()) > GREY:
                raise UserError(f"ckpt_path={self.path} has pictures in colour, but the data are grey: save them grey")
            pixels = pixels.float().mean(1, keepdim=True).round().byte()
        return pixels.permute(0, 2, 3, 1).numpy()

    def sha256(self) -> str:
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


def open_inputs(
    ckpt_path: Any,
    work_dir: str,
    weights: str,
    trusted: Sequence[str] = (),
    drawing: Mapping[str, Any] | None = None,
) -> list[Input]:
    """Opens what `ckpt_path` names, each once: checkpoints, ONNX files, `samples.npz` and folders of pictures.

    The newest run is looked for in `work_dir`; `weights`, `trusted` and `drawing` are those of `open_sampler`.

    Raises:
        UserError: one of them cannot be used, or there are too many.
    """
    listed = list(ckpt_path) if isinstance(ckpt_path, ListConfig) else [ckpt_path]
    if not 0 < len(listed) <= MOST:
        raise UserError(f"ckpt_path names {len(listed)} files: name 1 to {MOST}, such as ckpt_path=[a.ckpt,b.onnx]")
    inputs: list[Input] = []
    paths: dict[Path, None] = {}
    for each in listed:  # all are found before one is opened
        folder = Path(each)
        of_a_run = (found for pattern in (".hydra", "ckpts", "*.ckpt") for found in folder.glob(pattern))
        path = folder.resolve() if folder.is_dir() and not any(of_a_run) else find_checkpoint(each, work_dir)
        if not path.is_file() and not path.is_dir():
            raise UserError(f"ckpt_path={path} is not a file: choose a checkpoint, an ONNX file or a samples.npz")
        paths[path] = None
    for path, name in zip(paths, short_names(list(paths)), strict=True):
        if path.is_dir():
            inputs.append(FolderInput(path))
        elif path.suffix == ".npz":
            inputs.append(FileInput(path))
        else:
            inputs.append(ModelInput(path, open_sampler(path, weights, trusted=trusted, drawing=drawing)))
        inputs[-1].name = name
    return inputs


def short_names(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as sets it apart from the others."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
