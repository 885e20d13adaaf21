"""The kernel distance against its definition and its expectation."""

import pytest
import torch

from src.metrics import kid
from src.metrics.kid import kernel_distance, mean_kernel


def test_by_hand() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [-1.0]])

    within = (1 * 2 + 1) ** 3 + (0 * -1 + 1) ** 3
    between = (1 + 1 + (1 - 1) ** 3 + (1 - 2) ** 3) / 4
    assert kernel_distance(a, b) == pytest.approx(within - 2 * between)
    assert kernel_distance(a, b, mean_kernel(b)) == kernel_distance(a, b)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=rng), torch.randn(31, 4, generator=rng) + 1
    whole = kernel_distance(a, b)
    monkeypatch.setattr(kid, "BLOCK", 7)

    assert kernel_distance(a, b) == pytest.approx(whole)


def test_unbiased_even_for_few_images() -> None:
    """Over many small pairs of sets from one distribution the mean is 0, as half of the estimates are below it."""
    rng = torch.Generator().manual_seed(0)
    estimates = torch.tensor(
        [kernel_distance(torch.randn(5, 2, generator=rng), torch.randn(10, 2, generator=rng)) for _ in range(2_000)]
    )

    standard_error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean()) < 3 * standard_error
    assert (estimates < 0).any()


def test_grows_with_a_shift() -> None:
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))

    distances = [kernel_distance(features, other + shift) for shift in (0, 0.5, 1)]
    assert abs(distances[0]) < 0.1 * distances[1] < 0.1 * distances[2]
