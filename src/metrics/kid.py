"""The kernel distance of two sets of features."""

import torch
from torch import Tensor

BLOCK = 250  # rows of the kernel matrix at a time: they stay in the cache


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The squared maximum mean discrepancy of features [N, d] and [M, d] under the kernel (x.y / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs, 2018, who call it KID in Inception's features. The estimate is unbiased,
    so that it is 0 on average, and often below 0, for two sets from the same distribution. All pairs are used, not
    subsets.
    """
    a, b = a.double(), b.double()
    within = sum((_kernel_sum(x, x) - _kernel_diagonal(x)) / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(within - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    total, one = a.new_zeros(()), a.new_ones(())
    for block in a.split(BLOCK):
        kernel = torch.addmm(one, block, b.T, alpha=1 / a.shape[1])
        total += torch.dot(kernel.square().flatten(), kernel.flatten())  # several times faster than pow(3).sum()
    return total


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
