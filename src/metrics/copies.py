"""Whether images are copies of training images."""

from typing import NamedTuple

import torch
from torch import Tensor

N_NEAREST = 1_000  # images that are looked at, at most
BLOCK = 512  # training images at a time: distances from a thousand images to them stay in the cache
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
    half = b.square().sum(1) / 2
    least = a.new_full((len(a),), torch.inf)
    found = torch.zeros(len(a), dtype=torch.int64, device=a.device)
    for start in range(0, len(b), BLOCK):
        block = slice(start, start + BLOCK)
        # |a - b|^2 / 2 without what is the same for all b: half the time of `torch.cdist` and the smallest of that.
        distance = torch.addmm(half[block], a, b[block].T, alpha=-1)
        if besides is not None:
            inside = ((besides >= start) & (besides < start + BLOCK)).nonzero()[:, 0]
            distance[inside, besides[inside] - start] = torch.inf
        here = distance.amin(1)
        nearer = (here < least).nonzero()[:, 0]  # fewer with each block; for all of them, argmin takes longest of all
        least[nearer] = here[nearer]
        found[nearer] = start + distance[nearer].argmin(1)
    return found


def copied(images: Nearest, held_out: Nearest) -> float:
    """The share of images nearer to a training image than all but 1 % of held-out images: 1 for training images."""
    return float((images.closeness < held_out.closeness.quantile(RARE)).double().mean())


def too_many(share: float, n: int, most: float) -> bool:
    """Whether the share of copies among n images is above `most`, by more than a few images: that is chance."""
    return share > most + FEW / n
