"""Gradient penalties against discriminators whose gradients are known."""

import pytest
import torch
from torch import Tensor

from src.models.mnist_gan_model import DISCRIMINATOR
from src.models.penalties import R1, R2, GradientPenalty
from tests.conftest import build, build_model, compose_config

LABELS = torch.tensor([0, 1, 2])
REAL, FAKE = (torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
R1_EVERY_4 = "model.penalties.r1={_target_: src.models.penalties.R1, gamma: 3.0, every: 4}"


def quadratic(images: Tensor, labels: Tensor) -> Tensor:
    """|x|^2 / 2, whose gradient is x."""
    return images.square().sum(dim=(1, 2, 3)).unsqueeze(1) / 2


def linear(slope: float):
    """The slope times the first pixel, whose gradient's norm is |slope|."""
    return lambda images, labels: slope * images[:, :1, 0, 0]


def test_r1_is_the_squared_gradient_on_real_images() -> None:
    value = R1(gamma=3.0)(quadratic, REAL, FAKE, LABELS)
    torch.testing.assert_close(value, 3 / 2 * REAL.square().sum(dim=(1, 2, 3)).mean())


def test_r2_is_the_squared_gradient_on_generated_images() -> None:
    value = R2(gamma=3.0)(quadratic, REAL, FAKE, LABELS)
    torch.testing.assert_close(value, 3 / 2 * FAKE.square().sum(dim=(1, 2, 3)).mean())


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 0.0), (-1.0, 0.0), (3.0, 40.0), (0.0, 10.0)])
def test_the_gradient_penalty_wants_a_slope_of_one(slope: float, expected: float) -> None:
    value = GradientPenalty(weight=10.0)(linear(slope), REAL, FAKE, LABELS)
    assert value.item() == pytest.approx(expected, abs=1e-4)


def test_the_gradient_penalty_looks_between_real_and_generated_images() -> None:
    seen = []

    def spy(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images.detach())
        return quadratic(images, labels)

    torch.manual_seed(0)
    GradientPenalty()(spy, REAL, FAKE, LABELS)
    share = (seen[0] - FAKE) / (REAL - FAKE)
    assert torch.allclose(share, share[:, :, :1, :1].expand_as(share), atol=1e-4)  # one place for all of an image
    assert len(set(share[:, 0, 0, 0].tolist())) == 3  # another for each
    assert share.min() >= 0 and share.max() <= 1


@pytest.mark.parametrize("penalty", [R1(), R2(), GradientPenalty()])
def test_descent_flattens_the_discriminator(penalty) -> None:
    slope = torch.tensor(3.0, requires_grad=True)
    penalty(lambda images, labels: slope * images[:, :1, 0, 0], REAL, FAKE, LABELS).backward()
    assert slope.grad > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(R1, gamma=0.0), "gamma must be a positive number"),
        (lambda: build(R2, gamma=-1.0), "gamma must be a positive number"),
        (lambda: build(GradientPenalty, weight=0.0), "weight must be a positive number"),
        (lambda: build(R1, every=0), "every must be a whole number of at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_lazy_penalty_is_as_many_times_as_strong() -> None:
    torch.manual_seed(0)
    model = build_model(compose_config("train", R1_EVERY_4)).eval()
    batch = torch.rand(4, 1, 32, 32) * 2 - 1, torch.arange(4)
    losses, objective = model.step(batch, 0, DISCRIMINATOR)
    expected = R1(gamma=3.0)(model.discriminator, batch[0], batch[0], batch[1])
    torch.testing.assert_close(losses["penalty_r1"], expected.detach())
    torch.testing.assert_close(objective, losses["d_loss"] + 4 * expected / 2)
    assert "penalty_r1" not in model.step(batch, 0)[0]  # nothing is optimised
