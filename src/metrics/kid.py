"""The kernel distance of two sets of features."""

import torch
from torch import Tensor

BLOCK = 250  # rows of the kernel matrix at a time: they stay in the cache


def kernel_distance(a: Tensor, b: Tensor, within_b: Tensor | None = None) -> float:
    """The squared maximum mean discrepancy of features [N, d] and [M, d] under the kernel (x.y / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs, 2018, who call it KID in Inception's features. The estimate is unbiased,
    so that it is 0 on average, and often below 0, for two sets from the same distribution. All pairs are used, not
    subsets.

    Args:
        a: features.
        b: features.
        within_b: `mean_kernel(b)`, if known.
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
