"""What every model that makes images can do. Verbs and callbacks know no more of it than this."""

from abc import abstractmethod

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


class DivergedError(RuntimeError):
    """Training produced weights that are not finite."""


class ImageModel(LightningModule):
    """A model that draws an image of a given class.

    Attributes:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the images in pixels.
    """

    n_classes: int
    channels: int
    img_size: int

    @abstractmethod
    def draw_noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """What `n` images start from, [n, ...], drawn on the device of `rng`; None: torch's global generator."""

    @abstractmethod
    def generate(self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Labels int64 [N] -> images [N, C, H, W] in [-1, 1], a function of `noise`, or else of `rng`, alone."""
