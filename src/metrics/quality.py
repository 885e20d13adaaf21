"""Every quality metric of a set of images."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.classes import class_accuracy, class_variance, confusion_matrix
from src.metrics.feature_net import Embedded
from src.metrics.frechet import fit_gaussian, frechet_distance
from src.metrics.kid import kernel_distance, mean_kernel
from src.metrics.neighbours import nearest_distance, precision_recall_density_coverage, real_radii

N_NEAREST = 1_000  # images whose nearest training images are looked up, which costs more than all the rest
SEED = 0  # of which real images are compared with


class Quality(NamedTuple):
    """What `QualityMetrics.measure` finds: `metrics` by name, and what alarms look at besides."""

    metrics: dict[str, float]
    confusion: Tensor  # int64 [n_classes, n_classes]: asked for, taken for
    variance: Tensor  # [n_classes], over that of real images
    nearest_train: Tensor  # of the first 1,000


class QualityMetrics:
    """Real images in the features of their data set's own classifier, against which n others are measured.

    The reference is the test split: all of it for means and variances, n images where the number matters. The others
    are n images of the validation split, which the classifier has not seen; `floor` is their own quality, the best
    that n images can have.

    Args:
        real: the splits `train`, `val` and `test`.
        n_classes: number of classes.
        n: images to measure at a time; fewer where a split has fewer.
    """

    def __init__(self, real: dict[str, Embedded], n_classes: int, n: int) -> None:
        self.n_classes = n_classes
        self.n = min(n, len(real["val"].labels), len(real["test"].labels))
        self._gaussian = fit_gaussian(real["test"].features)
        self._variance = class_variance(real["test"].features, real["test"].labels, n_classes)
        self._reference = chosen(real["test"], self.n).features
        self._train = real["train"].features
        self.held_out = chosen(real["val"], self.n)
        self.labels = self.held_out.labels  # what to ask a model for: floor and samples then differ in nothing else

    @cached_property
    def _real_alone(self) -> tuple[list[Tensor], Tensor]:
        """A third of what neighbours and kernels cost, and the same every time."""
        return real_radii(self._reference), mean_kernel(self._reference)

    @cached_property
    def floor(self) -> Quality:
        """The quality of the n held-out images. It is measured when it is first asked for: a run starts sooner."""
        return self.measure(self.held_out)

    def measure(self, images: Embedded) -> Quality:
        """Quality of embedded images, whose labels are the classes that were asked for. Keys of `metrics`:

        - `fd`: Frechet distance to the test split.
        - `kid`: kernel distance to n images of the test split.
        - `precision`, `recall`, `density`, `coverage`: of these and n images of the test split.
        - `label_accuracy`, `worst_class_accuracy`: images that the classifier takes for what was asked for.
        - `within_class_variance`: of features, over that of the test split, mean over classes; 1 = as real, 0 = one
          image a class.
        - `nearest_train`: mean distance of 1,000 of them to the nearest training image; far below its floor, images are
          copies.
        """
        confusion = confusion_matrix(images.predicted, images.labels, self.n_classes)
        accuracy = class_accuracy(confusion)
        variance = class_variance(images.features, images.labels, self.n_classes) / self._variance
        radii, mean_real = self._real_alone
        nearest = nearest_distance(images.features[:N_NEAREST], self._train)
        metrics = {
            "fd": frechet_distance(fit_gaussian(images.features), self._gaussian),
            "kid": kernel_distance(images.features, self._reference, mean_real),
            "label_accuracy": float(confusion.trace() / confusion.sum()),
            "worst_class_accuracy": float(accuracy[~accuracy.isnan()].min()),
            **precision_recall_density_coverage(self._reference, images.features, radii),
            "within_class_variance": float(variance.nanmean()),
            "nearest_train": float(nearest.mean()),
        }
        return Quality(metrics, confusion, variance, nearest)


def chosen(images: Embedded, n: int) -> Embedded:
    """`n` images at random, without repetition; always the same ones."""
    return these(images, choice(len(images.labels), n))


def choice(n_all: int, n: int, seed: int = SEED) -> Tensor:
    """The indices of `n` out of `n_all` images at random, without repetition; always the same ones."""
    return torch.randperm(n_all, generator=torch.Generator().manual_seed(seed))[:n]


def these(images: Embedded, index: Tensor) -> Embedded:
    """The images at these indices, int64 [N]."""
    return Embedded(*(tensor[index] for tensor in images))
