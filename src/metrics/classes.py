"""What becomes of each class."""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """How often each label (row) was predicted as each class (column), int64 [n_classes, n_classes], from int64 [N]."""
    return (labels * n_classes + predicted).bincount(minlength=n_classes**2).view(n_classes, n_classes)


def class_accuracy(confusion: Tensor) -> Tensor:
    """For each class the share [n_classes] of its labels that were predicted; NaN for a class without labels."""
    return confusion.diagonal().double() / confusion.sum(1)


def class_variance(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """For each class the variance [n_classes] of features [N, d], summed over dimensions; NaN below two images.

    It is near 0 where a class is always the same image.
    """
    features = features.double()
    return torch.stack([features[labels == label].var(0).sum() for label in range(n_classes)])
