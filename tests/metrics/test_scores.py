"""Scores against their closed forms, definitions and expectations, or on sets small enough to count by hand."""

import math

import pytest
import torch

from src.metrics import scores
from src.metrics.scores import (
    Gaussian,
    fit_gaussian,
    frechet_distance,
    kernel_distance,
    mean_kernel,
    precision_recall_density_coverage,
    radii,
)

LINE = torch.arange(7.0).unsqueeze(1)  # seven points


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean: list[float], variances: list[float]) -> Gaussian:
    return torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(variances, dtype=torch.float64))


def test_accuracy_and_variance_of_each_class() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    accuracy = scores.class_accuracy(confusion)
    assert accuracy[[0, 1, 3]].tolist() == [0.75, 1, 0] and accuracy[2].isnan()

    features = torch.tensor([[0.0, 0.0], [2.0, 4.0], [7.0, 7.0], [7.0, 7.0], [1.0, 1.0]])
    variance = scores.class_variance(features, torch.tensor([0, 0, 1, 1, 2]), 3)
    assert variance[:2].tolist() == [2 + 8, 0] and variance[2].isnan()


def test_means_and_diagonal_covariances_have_a_closed_form() -> None:
    a, b = gaussian([0, 1, 2], [1, 4, 9]), gaussian([3, 1, -2], [4, 4, 1])

    expected = 3**2 + 0 + 4**2 + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 1) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    # All of one set in a point: no root of a covariance that is 0 may fail.
    assert frechet_distance(gaussian([0, 0], [0, 0]), gaussian([3, 0], [2, 5])) == pytest.approx(9 + 7)


def test_rotating_both_changes_nothing_and_correlation_counts() -> None:
    a, b = gaussian([0, 0], [1, 4]), gaussian([1, 0], [9, 1])
    turn = torch.linalg.qr(normal(2, 2).double()).Q

    turned = [(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b))
    # Equal variances, correlations r and 0: the roots of 1 + r and 1 - r are what is shared.
    r = 0.8
    correlated = torch.zeros(2).double(), torch.tensor([[1, r], [r, 1]], dtype=torch.float64)
    expected = 4 - 2 * (math.sqrt(1 + r) + math.sqrt(1 - r))
    assert frechet_distance(correlated, gaussian([0, 0], [1, 1])) == pytest.approx(expected)


def test_the_same_features_are_at_no_distance_and_shifted_ones_at_the_shift_squared() -> None:
    features = normal(500, 16) * torch.logspace(-2, 2, 16)
    shift = torch.zeros(16)
    shift[3] = 2.0

    assert frechet_distance(fit_gaussian(features), fit_gaussian(features)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(fit_gaussian(features), fit_gaussian(features + shift)) == pytest.approx(4, rel=1e-4)


def test_the_covariance_is_unbiased() -> None:
    mean, covariance = fit_gaussian(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))

    assert mean.tolist() == [1, 2]
    assert covariance.tolist() == [[2, 4], [4, 8]]


def test_the_kernel_distance_by_hand() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [-1.0]])

    within = (1 * 2 + 1) ** 3 + (0 * -1 + 1) ** 3
    between = (1 + 1 + (1 - 1) ** 3 + (1 - 2) ** 3) / 4
    assert kernel_distance(a, b) == pytest.approx(within - 2 * between)
    assert kernel_distance(a, b, mean_kernel(b)) == kernel_distance(a, b)


def test_the_kernel_distance_is_unbiased_even_for_few_images() -> None:
    """Over many small pairs of sets from one distribution the mean is 0, as half of the estimates are below it."""
    rng = torch.Generator().manual_seed(0)
    estimates = torch.tensor(
        [kernel_distance(torch.randn(5, 2, generator=rng), torch.randn(10, 2, generator=rng)) for _ in range(2_000)]
    )

    standard_error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean()) < 3 * standard_error
    assert (estimates < 0).any()


def test_the_kernel_distance_grows_with_a_shift() -> None:
    found = [kernel_distance(normal(300, 8), normal(300, 8, seed=1) + shift) for shift in (0, 0.5, 1)]
    assert abs(found[0]) < 0.1 * found[1] < 0.1 * found[2]


def test_radii_on_a_line() -> None:
    third, fifth = radii(LINE)  # of each point to the 3rd and 5th nearest of the others

    assert third.tolist() == [3, 2, 2, 2, 2, 2, 3]
    assert fifth.tolist() == [5, 4, 3, 3, 3, 4, 5]


def test_shares_by_hand() -> None:
    """Real at 0 ... 6; six generated images at 6.5 and one at 20."""
    found = precision_recall_density_coverage(LINE, torch.tensor([[6.5]] * 6 + [[20.0]]))

    # The balls (k = 3) of 5 and 6 reach 7 and 9.
    assert found["precision"] == pytest.approx(6 / 7)
    # Six images in one place have balls of radius 0; that of the seventh, 13.5, reaches down to 6.5.
    assert found["recall"] == 0
    # The balls (k = 5) of 4, 5 and 6 reach 7, 9 and 11.
    assert found["density"] == pytest.approx(6 * 3 / (5 * 7))
    assert found["coverage"] == pytest.approx(3 / 7)

    # Recall asks for real images in generated balls: here (k = 3) of radii 1.5, 1, 1, 1, 1, 1.5.
    generated = torch.tensor([[0.0], [0.5], [1.0], [1.5], [2.0], [2.5]])
    assert precision_recall_density_coverage(LINE, generated)["recall"] == pytest.approx(5 / 7)  # up to 2.5 + 1.5


def test_the_same_set_twice_is_perfect_and_one_far_away_nothing_of_anything() -> None:
    same = precision_recall_density_coverage(normal(60, 8), normal(60, 8))
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    far = precision_recall_density_coverage(LINE, LINE + 1_000)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_an_outlier_makes_recall_but_no_density() -> None:
    """Why there are two pairs: one generated image far off has a ball that holds all real ones."""
    real = normal(100, 2)
    generated = torch.cat([torch.zeros(99, 2) + 50, torch.tensor([[-60.0, -60.0]])])

    found = precision_recall_density_coverage(real, generated)
    assert precision_recall_density_coverage(real, generated, radii(real)) == found
    assert found["recall"] == 1
    assert found["coverage"] == found["density"] == 0


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(40, 3), normal(50, 3, seed=1) + 1
    whole = precision_recall_density_coverage(a, b), kernel_distance(a, b)
    monkeypatch.setattr(scores, "DISTANCE_BLOCK", 7)
    monkeypatch.setattr(scores, "KERNEL_BLOCK", 7)

    assert precision_recall_density_coverage(a, b) == whole[0]
    assert kernel_distance(a, b) == pytest.approx(whole[1])
