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


def nearest_neighbours(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each of features [N, d] the k nearest of [M, d], nearest first: Euclidean distances and indices, [N, k].

    The distance of two features that are the same is 0, which that of `torch.cdist` is not to the last digit.
    """
    found = torch.cat([torch.cdist(block, b).topk(k, largest=False).indices for block in a.split(BLOCK)])
    distance, order = (a[:, None] - b[found]).norm(dim=2).sort(dim=1)
    return distance, found.gather(1, order)


def neighbour_radius(features: Tensor, *ks: int) -> list[Tensor]:
    """For each k the distance [N] of each of features [N, d] to its k-th nearest neighbour other than itself.

    Raises:
        ValueError: there are not more than k features.
    """
    if len(features) <= max(ks):
        raise ValueError(f"features must be more than {max(ks)}, to have that many neighbours, not {len(features)}")
    nearest = torch.cat(
        [torch.cdist(block, features).topk(max(ks) + 1, largest=False).values for block in features.split(BLOCK)]
    )
    return [nearest[:, k] for k in ks]


def real_radii(real: Tensor) -> list[Tensor]:
    """What `precision_recall_density_coverage` needs to know of the real images alone, to be measured once."""
    return neighbour_radius(real, K_PRECISION_RECALL, K_DENSITY_COVERAGE)


def precision_recall_density_coverage(
    real: Tensor, generated: Tensor, radii: list[Tensor] | None = None
) -> dict[str, float]:
    """Four shares of features [N, d] and [M, d] that lie near each other.

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
        radii: `real_radii(real)`, if known.

    Raises:
        ValueError: a set has 5 images or fewer.
    """
    radius, wider = radii or real_radii(real)
    radius_generated, _ = neighbour_radius(generated, K_PRECISION_RECALL, K_DENSITY_COVERAGE)
    in_real_ball, memberships = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for block, block_radius in zip(generated.split(BLOCK), radius_generated.split(BLOCK), strict=True):
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
