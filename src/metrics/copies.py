"""Whether images are copies of training images."""

from typing import NamedTuple

import torch
from torch import Tensor

N_NEAREST = 1_000  # images that are looked at, at most
BLOCK = 100  # rows of a matrix at a time, against tens of thousands of training images: more are slower
RARE = 0.01  # of held-out images are nearer to a training image than what is called a copy
FEW = 5  # images
SMALLEST = 1e-6  # distance of two training images: some data sets have one twice


class Nearest(NamedTuple):
    """How near images are to training images, both [N].

    `distance` is Euclidean, from an image to the training image nearest to it, and exactly 0 for a copy. `closeness` is
    that over the distance from that training image to the nearest other one: 0 for a copy, about 1 for a new image,
    both in a class whose images are all alike and in one in which they differ widely.
    """

    distance: Tensor
    closeness: Tensor


def nearest_training_images(features: Tensor, train: Tensor) -> Nearest:
    """How near features [N, d] are to those of training images [M, d].

    Alaa et al., How faithful is your synthetic data?, 2022, compare the same two distances: an image is not authentic
    to them if the first is the smaller one.
    """
    nearest = _nearest(features, train)
    others = _nearest(train[nearest], train, besides=nearest)
    distance = (features - train[nearest]).norm(dim=1)
    around = (train[nearest] - train[others]).norm(dim=1)
    return Nearest(distance, distance / around.clamp(min=SMALLEST))


def _nearest(a: Tensor, b: Tensor, besides: Tensor | None = None) -> Tensor:
    """For each of features [N, d] the index [N] of the nearest of [M, d], but not that in `besides`, int64 [N]."""
    found = []
    half = b.square().sum(1) / 2
    for start in range(0, len(a), BLOCK):
        # |a - b|^2 / 2 without what is the same for all b: half the time of `torch.cdist` and the smallest of that.
        distance = torch.addmm(half, a[start : start + BLOCK], b.T, alpha=-1)
        if besides is not None:
            distance.scatter_(1, besides[start : start + BLOCK, None], torch.inf)
        found.append(distance.argmin(1))
    return torch.cat(found)


def copied(images: Nearest, held_out: Nearest) -> float:
    """The share of images nearer to a training image than all but 1 % of held-out images: 1 for training images."""
    return float((images.closeness < held_out.closeness.quantile(RARE)).double().mean())


def too_many(share: float, n: int, most: float) -> bool:
    """Whether the share of copies among n images is above `most`, by more than a few images: that is chance."""
    return share > most + FEW / n
