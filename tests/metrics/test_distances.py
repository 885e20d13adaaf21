"""Distances against their closed forms, definitions and expectations."""

import math

import pytest
import torch

from src.metrics import distances
from src.metrics.distances import Gaussian, fit_gaussian, frechet_distance, kernel_distance, mean_kernel


def gaussian(mean: list[float], variances: list[float]) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(variances, dtype=torch.float64)))


def test_means_and_diagonal_covariances_have_a_closed_form() -> None:
    a, b = gaussian([0, 1, 2], [1, 4, 9]), gaussian([3, 1, -2], [4, 4, 1])

    expected = 3**2 + 0 + 4**2 + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 1) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_rotating_both_changes_nothing_and_correlation_counts() -> None:
    a, b = gaussian([0, 0], [1, 4]), gaussian([1, 0], [9, 1])
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q

    def turned(g: Gaussian) -> Gaussian:
        return Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T)

    assert frechet_distance(turned(a), turned(b)) == pytest.approx(frechet_distance(a, b))
    # Equal variances, correlations r and 0: the roots of 1 + r and 1 - r are what is shared.
    r = 0.8
    correlated = Gaussian(torch.zeros(2).double(), torch.tensor([[1, r], [r, 1]], dtype=torch.float64))
    expected = 4 - 2 * (math.sqrt(1 + r) + math.sqrt(1 - r))
    assert frechet_distance(correlated, gaussian([0, 0], [1, 1])) == pytest.approx(expected)


def test_one_point_against_a_gaussian_is_its_variance() -> None:
    """All of one set in a point: no root of a covariance that is 0 may fail."""
    assert frechet_distance(gaussian([0, 0], [0, 0]), gaussian([3, 0], [2, 5])) == pytest.approx(9 + 7)


def test_the_same_features_are_at_no_distance_and_shifted_ones_at_the_shift_squared() -> None:
    features = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 16)
    shift = torch.zeros(16)
    shift[3] = 2.0

    assert frechet_distance(fit_gaussian(features), fit_gaussian(features)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(fit_gaussian(features), fit_gaussian(features + shift)) == pytest.approx(4, rel=1e-4)


def test_the_covariance_is_unbiased() -> None:
    fitted = fit_gaussian(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))

    assert fitted.mean.tolist() == [1, 2]
    assert fitted.covariance.tolist() == [[2, 4], [4, 8]]


def test_the_kernel_distance_by_hand() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [-1.0]])

    within = (1 * 2 + 1) ** 3 + (0 * -1 + 1) ** 3
    between = (1 + 1 + (1 - 1) ** 3 + (1 - 2) ** 3) / 4
    assert kernel_distance(a, b) == pytest.approx(within - 2 * between)
    assert kernel_distance(a, b, mean_kernel(b)) == kernel_distance(a, b)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=rng), torch.randn(31, 4, generator=rng) + 1
    whole = kernel_distance(a, b)
    monkeypatch.setattr(distances, "BLOCK", 7)

    assert kernel_distance(a, b) == pytest.approx(whole)


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
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))

    found = [kernel_distance(features, other + shift) for shift in (0, 0.5, 1)]
    assert abs(found[0]) < 0.1 * found[1] < 0.1 * found[2]
