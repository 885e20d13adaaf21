"""Whether images are copies of training images."""

from typing import NamedTuple

from torch import Tensor

from src.metrics.neighbours import nearest_neighbours

RARE = 0.01  # of held-out images are nearer to a training image than what is called a copy
SMALLEST = 1e-6  # distance of two training images: some data sets have one twice


class Nearest(NamedTuple):
    """The training images nearest to some images, and how near they are.

    `indices` int64 [N, k] and `distance` [N, k] have the nearest first. `closeness` [N] is the distance to the nearest
    training image, over the distance from there to the nearest other one: a copy has 0, a new image about 1, be it of
    a class whose images are all alike or of one in which they differ widely.
    """

    indices: Tensor
    distance: Tensor
    closeness: Tensor


def nearest_training_images(features: Tensor, train: Tensor, k: int) -> Nearest:
    """The k nearest of the training images [M, d] to each of [N, d].

    Alaa et al., How faithful is your synthetic data?, 2022, compare the same two distances: an image is not authentic
    to them where the first is the smaller one.
    """
    distance, indices = nearest_neighbours(features, train, k)
    around, _ = nearest_neighbours(train[indices[:, 0]], train, 2)  # the first is itself
    return Nearest(indices, distance, distance[:, 0] / around[:, 1].clamp(min=SMALLEST))


def copied(images: Nearest, held_out: Nearest) -> float:
    """The share of images that are nearer to a training image than all but 1 % of held-out images, by `closeness`.

    It is about 0.01 for new images, and 1 for training images.
    """
    return float((images.closeness < held_out.closeness.quantile(RARE)).double().mean())
