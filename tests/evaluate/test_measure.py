"""How sure a difference is."""

import pytest
import torch

from src.evaluate.measure import standard_error


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = (values.sum() - values) / 9
    assert standard_error(without.tolist()) == pytest.approx(float(values.std() / 10**0.5))
