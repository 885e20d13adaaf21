"""How sure a difference between two sets of images is."""

from collections.abc import Iterator

import torch
from torch import Tensor

from src.metrics.feature_net import Embedded
from src.metrics.quality import QualityMetrics, these

GROUPS = 10


def without_each_group(metrics: QualityMetrics, images: Embedded) -> Iterator[dict[str, float]]:
    """The metrics of images [N] without the first tenth of them, without the second, and so on."""
    group = torch.arange(len(images.labels)) % GROUPS
    for left_out in range(GROUPS):
        yield metrics.measure(these(images, (group != left_out).nonzero().flatten())).metrics


def standard_error(estimates: Tensor) -> float:
    """The standard error of a number from its values [G] without each of G groups (Tukey 1958; Efron & Stein 1981).

    For the difference of two numbers, it takes the differences: what both have in common, such as noise and labels,
    then does not count.
    """
    n = len(estimates)
    return float(((estimates - estimates.mean()).square().sum() * (n - 1) / n).sqrt())
