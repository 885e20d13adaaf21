"""How far apart two sets of features are: the Frechet distance and the kernel distance."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 250  # rows of the kernel matrix at a time: they stay in the cache


class Gaussian(NamedTuple):
    """A normal distribution in float64: `mean` [d] and `covariance` [d, d]."""

    mean: Tensor
    covariance: Tensor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of features [N, d], N >= 2."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|^2 + tr(A + B - 2 (AB)^(1/2)), the squared distance that FID is in Inception's features.

    Dowson & Landau, The Frechet distance between multivariate normal distributions, 1982; Heusel et al., 2017. The
    estimate from samples is biased upwards, the more the fewer they are: compare at equal sizes only.
    """
    # tr (AB)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2), which are exact where AB's roots are not.
    shared = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * shared
    return float((a.mean - b.mean).square().sum() + spread)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(a: Tensor, b: Tensor, within_b: Tensor | None = None) -> float:
    """The squared maximum mean discrepancy of features [N, d] and [M, d] under the kernel (x.y / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs, 2018, who call it KID in Inception's features. The estimate is unbiased,
    so that it is 0 on average, and often below 0, for two sets from the same distribution. All pairs are used, not
    subsets.
    `within_b` is `mean_kernel(b)`, if known.
    """
    a, b = a.double(), b.double()
    within_b = mean_kernel(b) if within_b is None else within_b
    return float(mean_kernel(a) + within_b - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def mean_kernel(a: Tensor) -> Tensor:
    """The kernel's mean [] over all pairs of different features of [N, d]."""
    a = a.double()
    return (_kernel_sum(a, a) - _kernel_diagonal(a)) / (len(a) * (len(a) - 1))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    total, one = a.new_zeros(()), a.new_ones(())
    for block in a.split(BLOCK):
        kernel = torch.addmm(one, block, b.T, alpha=1 / a.shape[1])
        total += torch.dot(kernel.square().flatten(), kernel.flatten())  # several times faster than pow(3).sum()
    return total


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
