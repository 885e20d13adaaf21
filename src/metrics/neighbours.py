"""What nearest neighbours in feature space say about two sets of images."""

import torch
from torch import Tensor

BLOCK = 500  # rows of a distance matrix in memory at a time
# The neighbours that the papers recommend.
K_PRECISION_RECALL = 3
K_DENSITY_COVERAGE = 5


def nearest_distance(a: Tensor, b: Tensor) -> Tensor:
    """For each of features [N, d] the Euclidean distance [N] to the nearest of [M, d]."""
    return torch.cat([torch.cdist(block, b).amin(1) for block in a.split(BLOCK)])


def radii(features: Tensor) -> tuple[Tensor, Tensor]:
    """How far the balls around N > 5 features [N, d] reach: to the 3rd and the 5th nearest of the others, [N] each."""
    k = K_DENSITY_COVERAGE + 1  # the first is itself
    nearest = [torch.cdist(block, features).topk(k, largest=False).values for block in features.split(BLOCK)]
    distance = torch.cat(nearest)
    return distance[:, K_PRECISION_RECALL], distance[:, K_DENSITY_COVERAGE]


def precision_recall_density_coverage(
    real: Tensor, generated: Tensor, real_radii: tuple[Tensor, Tensor] | None = None
) -> dict[str, float]:
    """Four shares of features [N, d] and [M, d] that lie near each other; N and M are at least 6.

    A ball around an image reaches as far as its k-th nearest neighbour in its own set.

    - precision: of generated images, those in the ball of a real one (k = 3).
    - recall: of real images, those in the ball of a generated one (k = 3).
    - density: how many real balls (k = 5) a generated image lies in, over k; may exceed 1.
    - coverage: of real balls (k = 5), those with a generated image in them.

    Precision and recall: Kynkaanniemi et al., Improved precision and recall metric, 2019. Density and coverage, which
    outliers disturb less: Naeem et al., Reliable fidelity and diversity metrics, 2020.

    Args:
        real: features.
        generated: features.
        real_radii: `radii(real)`, if known.
    """
    radius, wider = real_radii or radii(real)
    in_real_ball, memberships = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for block, block_radius in zip(generated.split(BLOCK), radii(generated)[0].split(BLOCK), strict=True):
        distance = torch.cdist(block, real)
        in_real_ball += int((distance <= radius).any(1).sum())
        recalled |= (distance <= block_radius[:, None]).any(0)
        in_wider = distance <= wider
        memberships += int(in_wider.sum())
        covered |= in_wider.any(0)
    return {
        "precision": in_real_ball / len(generated),
        "recall": float(recalled.double().mean()),
        "density": memberships / (K_DENSITY_COVERAGE * len(generated)),
        "coverage": float(covered.double().mean()),
    }
