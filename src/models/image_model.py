"""What every model that makes images can do. Verbs and callbacks know no more of it than this."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


class ImageModel(LightningModule):
    """A model that draws an image of a given class.

    Attributes:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the images in pixels.
        has_average: whether there is a moving average of the weights.
        progress_metrics: the metrics that its progress bar shows, such as `train/loss`.
        confusions: of the last validation or test, by a name in `tables`: int64 [N, N], how often the model took images
            of the row's kind for the column's.
    """

    n_classes: int
    channels: int
    img_size: int
    has_average: bool = False
    progress_metrics: tuple[str, ...] = ()
    confusions: Mapping[str, Tensor] = {}

    @property
    def curves(self) -> list[dict[str, Any]]:
        """How a report draws the model's own metrics, one dict of plain values a panel.

        `title`, `unit` of the vertical axis, `lines` (metric with its split -> label; those under `val/` are drawn over
        epochs, others over batches). Where wanted also `note` (how to read it), `levels` (label -> height of a
        horizontal line), `log` (logarithmic axis), `percent` (values are shares), and `compare` (a comparison of
        several runs shows it, each line by itself).
        """
        return []

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """How a report shows the model's own tables of counts [N, N], by the name they are logged under.

        Plain values: `title`, `rows` and `columns` (what they stand for), `names` of both, `caption` (below
        its picture), and where wanted `note`.
        """
        return {}

    @abstractmethod
    def draw_noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """What `n` images start from, [n, ...], drawn on the device of `rng`; None: torch's global generator."""

    @abstractmethod
    def interpolate(
        self, labels: Tensor, others: Tensor, weight: Tensor, noise: Tensor, average: bool = True
    ) -> Tensor:
        """Images between two classes: labels and others int64 [N], weight [N] from 0 (labels) to 1 (others)."""

    def start_average(self) -> None:
        """Lets the moving average of the weights, where there is one, begin from the weights as they are."""

    @abstractmethod
    def generate(
        self,
        labels: Tensor,
        rng: torch.Generator | None = None,
        noise: Tensor | None = None,
        average: bool = True,
    ) -> Tensor:
        """Labels int64 [N] -> images [N, C, H, W] in [-1, 1], a function of `noise`, or else of `rng`, alone.

        They are drawn with the moving average of the weights where `average` is true and `has_average` is, too.
        """
