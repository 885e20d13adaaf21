"""Failures of models that draw images of classes, which numbers alone do not name."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from src.metrics.copies import Nearest, too_many
from src.metrics.scores import class_accuracy

LABELS_IGNORED = 0.1  # share of the way from guessing to the accuracy of real images
LABELS_MISSED = 0.6  # as before
LABELS_MIXED_UP = 0.5  # share of a class's images that are taken for one and the same other class
COPIED = 0.05  # share of copies
VARIANCE_GONE = 0.1  # share of the variance of real images


class Quality(NamedTuple):
    """What `Evaluator.measure` finds: `metrics` by name, and what alarms look at besides."""

    metrics: dict[str, float]
    confusion: Tensor  # int64 [n_classes, n_classes]: asked for, taken for
    variance: Tensor  # [n_classes], over that of real images
    nearest: Nearest  # of the first 1,000


def alarms(quality: Quality, floor: Quality, class_names: Sequence[str]) -> dict[str, str]:
    """What is wrong with generated images, beside as many real ones: a sentence under a short name that never changes.

    The names are `labels`, `class NAME` (lost), `variance` or `variance NAME` (gone) and `copies`.
    """
    found = {}
    accuracy, real_accuracy = quality.metrics["label_accuracy"], floor.metrics["label_accuracy"]
    guessing = 1 / len(class_names)
    most = quality.confusion.max(1)
    taken_for = most.indices.tolist()  # for each class the one that most of its images are taken for
    shares = most.values / quality.confusion.sum(1)  # NaN for a class without images, in a file of samples
    figures = f"{accuracy:.1%} of the images are of the class asked for, real images {real_accuracy:.1%}"
    if accuracy < guessing + LABELS_IGNORED * (real_accuracy - guessing):
        asked = (~shares.isnan()).nonzero().flatten().tolist()
        if float(shares.nanmean()) < LABELS_MIXED_UP or len({taken_for[label] for label in asked}) < len(asked) / 2:
            found["labels"] = f"labels are ignored ({figures}, guessing {guessing:.1%})"
        else:
            pairs = ", ".join(f"{class_names[a]} as {class_names[taken_for[a]]}" for a in asked if a != taken_for[a])
            found["labels"] = f"labels are mixed up ({figures}; drawn are {pairs})"
    else:
        of_classes = class_accuracy(quality.confusion).tolist(), class_accuracy(floor.confusion).tolist()
        for name, mostly, share, real in zip(class_names, taken_for, *of_classes, strict=True):
            if share < min(guessing, real / 2):  # some classes are hard to tell even when they are real
                found[f"class {name}"] = (
                    f"class {name} is lost ({share:.1%} of its images are taken for one, most for"
                    f" {class_names[mostly]})"
                )
        if not found and accuracy < guessing + LABELS_MISSED * (real_accuracy - guessing):
            found["labels"] = f"labels are often missed ({figures}, guessing {guessing:.1%})"

    gone = quality.metrics["within_class_variance"]
    if gone < VARIANCE_GONE:
        found["variance"] = f"each class is nearly one image (within-class variance {gone:.2f} of that of real images)"
    else:
        for name, share in zip(class_names, quality.variance.tolist(), strict=True):
            if share < VARIANCE_GONE:
                found[f"variance {name}"] = (
                    f"class {name} is nearly one image (variance {share:.2f} of that of real images)"
                )

    share = quality.metrics["copied"]
    if too_many(share, len(quality.nearest.distance), COPIED):
        found["copies"] = (
            f"training images are copied ({share:.1%} of the images are nearer to one than 99% of real images are)"
        )
    return found
