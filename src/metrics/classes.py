"""What becomes of each class."""

import torch
from torch import Tensor


def class_accuracy(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """For each class the share [n_classes] of its labels that were predicted; NaN for a class without labels.

    Args:
        predicted: int64 [N].
        labels: int64 [N], the truth.
        n_classes: number of classes.
    """
    right = labels[predicted == labels].bincount(minlength=n_classes)
    return right.double() / labels.bincount(minlength=n_classes)


def class_variance(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """For each class the variance [n_classes] of features [N, d], summed over dimensions; NaN below two images.

    It is near 0 where a class is always the same image.
    """
    features = features.double()
    return torch.stack([features[labels == label].var(0).sum() for label in range(n_classes)])
