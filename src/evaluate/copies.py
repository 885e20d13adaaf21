"""Whether images are copies of training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.scores import DISTANCE_BLOCK

N_NEIGHBOURS = 4  # training images that a picture shows beside an image
RARE = 0.01  # of held-out images are nearer to a training image than what is called a copy
SMALLEST = 1e-6  # distance of two training images: some data sets have one twice


class Nearest(NamedTuple):
    """The training images nearest to some images, and how near they are.

    `indices` int64 [N, k] has the nearest first. `closeness` [N] is the distance to the nearest training image, over
    the distance from there to the nearest other one: 0 for a copy, about 1 for a new image, both in a class whose
    images are all alike and in one in which they differ widely.
    """

    indices: Tensor
    closeness: Tensor


def nearest_training_images(features: Tensor, train: Tensor) -> Nearest:
    """The training images [M, d] nearest to each of [N, d].

    Alaa et al., How faithful is your synthetic data?, 2022, compare the same two distances: an image is not authentic
    to them if the first is the smaller one.
    """
    distance, indices = nearest_neighbours(features, train, N_NEIGHBOURS)
    around, _ = nearest_neighbours(train[indices[:, 0]], train, 2)  # the first is itself
    return Nearest(indices, distance[:, 0] / around[:, 1].clamp(min=SMALLEST))


def nearest_neighbours(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each of features [N, d] the k nearest of [M, d], nearest first: Euclidean distances and indices, [N, k].

    The distance of equal features is exactly 0, unlike that of `torch.cdist`.
    """
    found = torch.cat([torch.cdist(block, b).topk(k, largest=False).indices for block in a.split(DISTANCE_BLOCK)])
    distance, order = (a[:, None] - b[found]).norm(dim=2).sort(dim=1)
    return distance, found.gather(1, order)


def copied(images: Nearest, held_out: Nearest) -> float:
    """The share of images nearer to a training image than all but 1 % of held-out images: 1 for training images."""
    return float((images.closeness < held_out.closeness.quantile(RARE)).double().mean())
