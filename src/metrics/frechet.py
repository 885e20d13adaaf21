"""The Frechet distance: how far apart two sets of features are, each taken for a Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor


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
