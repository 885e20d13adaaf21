"""How good images are in numbers: functions of features, float32 [N, d], and of int64 labels [N]."""

import torch
from torch import Tensor

KERNEL_BLOCK, DISTANCE_BLOCK = 125, 250  # rows of a matrix at a time: they stay in the cache, and in memory
# The neighbours that the papers recommend.
K_PRECISION_RECALL = 3
K_DENSITY_COVERAGE = 5

Gaussian = tuple[Tensor, Tensor]  # a normal distribution's mean [d] and covariance [d, d], float64


def class_accuracy(confusion: Tensor) -> Tensor:
    """For each class (row) the share [n_classes] of its labels that were predicted; NaN for a class without labels."""
    return confusion.diagonal().double() / confusion.sum(1)


def class_variance(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """For each class the variance [n_classes] of features, summed over dimensions; NaN below two images.

    It is near 0 where a class is always the same image.
    """
    features = features.double()
    return torch.stack([features[labels == label].var(0).sum() for label in range(n_classes)])


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of at least two images."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|^2 + tr(A + B - 2 (AB)^(1/2)), the squared distance that FID is in Inception's features.

    Dowson & Landau, The Frechet distance between multivariate normal distributions, 1982; Heusel et al., 2017. The
    estimate from samples is biased upwards, the more the fewer they are: compare at equal sizes only.
    """
    (a_mean, a_covariance), (b_mean, b_covariance) = a, b
    # tr (AB)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2), which are exact where AB's roots are not.
    shared = torch.linalg.svdvals(_root(a_covariance) @ _root(b_covariance)).sum()
    spread = a_covariance.trace() + b_covariance.trace() - 2 * shared
    return float((a_mean - b_mean).square().sum() + spread)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(a: Tensor, b: Tensor, within_b: Tensor | None = None) -> float:
    """The squared maximum mean discrepancy of features [N, d] and [M, d] under the kernel (x.y / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs, 2018, who call it KID in Inception's features. The estimate is unbiased:
    0 on average, and often below 0, for two sets from the same distribution. It uses all pairs, not subsets.
    `within_b` is `mean_kernel(b)`, if known.
    """
    a, b = a.double(), b.double()
    within_b = mean_kernel(b) if within_b is None else within_b
    between = sum(_kernel_sum(block, b) for block in a.split(KERNEL_BLOCK))
    return float(mean_kernel(a) + within_b - 2 * between / (len(a) * len(b)))


def mean_kernel(a: Tensor) -> Tensor:
    """The kernel's mean [] over all pairs of different images."""
    a = a.double()
    total = -(a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
    for start, block in zip(range(0, len(a), KERNEL_BLOCK), a.split(KERNEL_BLOCK), strict=True):
        total += _kernel_sum(block, block) + 2 * _kernel_sum(block, a[start + KERNEL_BLOCK :])  # it is symmetric
    return total / (len(a) * (len(a) - 1))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    kernel = torch.addmm(a.new_ones(()), a, b.T, alpha=1 / a.shape[1])
    return torch.dot(kernel.square().flatten(), kernel.flatten())  # several times faster than pow(3).sum()


def radii(features: Tensor) -> tuple[Tensor, Tensor]:
    """How far the balls around N > 5 images reach: to the 3rd and the 5th nearest of the others, [N] each."""
    k = K_DENSITY_COVERAGE + 1  # the first is itself
    nearest = [torch.cdist(part, features).topk(k, largest=False).values for part in features.split(DISTANCE_BLOCK)]
    distance = torch.cat(nearest)
    return distance[:, K_PRECISION_RECALL], distance[:, K_DENSITY_COVERAGE]


def precision_recall_density_coverage(
    real: Tensor, generated: Tensor, real_radii: tuple[Tensor, Tensor] | None = None
) -> dict[str, float]:
    """Four shares of features [N, d] and [M, d] that lie near each other; N and M are at least 6.

    A ball around an image reaches as far as its k-th nearest neighbour in its own set. `real_radii` is `radii(real)`,
    if known.

    - precision: of generated images, those in the ball of a real one (k = 3).
    - recall: of real images, those in the ball of a generated one (k = 3).
    - density: how many real balls (k = 5) a generated image lies in, over k; may exceed 1.
    - coverage: of real balls (k = 5), those with a generated image in them.

    Precision and recall: Kynkaanniemi et al., Improved precision and recall metric, 2019. Density and coverage, which
    outliers disturb less: Naeem et al., Reliable fidelity and diversity metrics, 2020.
    """
    radius, wider = real_radii or radii(real)
    in_real_ball, memberships = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    parts = zip(generated.split(DISTANCE_BLOCK), radii(generated)[0].split(DISTANCE_BLOCK), strict=True)
    for block, block_radius in parts:
        distance = torch.cdist(block, real)
        in_real_ball += int(_any(distance <= radius, 1).sum())
        recalled |= _any(distance <= block_radius[:, None], 0)
        in_wider = distance <= wider
        memberships += int(in_wider.count_nonzero())
        covered |= _any(in_wider, 0)
    return {
        "precision": in_real_ball / len(generated),
        "recall": float(recalled.double().mean()),
        "density": memberships / (K_DENSITY_COVERAGE * len(generated)),
        "coverage": float(covered.double().mean()),
    }


def _any(true: Tensor, dim: int) -> Tensor:
    """As `torch.any`, twenty times as fast."""
    return true.view(torch.uint8).amax(dim).bool()
