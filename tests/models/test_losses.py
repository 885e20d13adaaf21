"""Losses against their closed forms, their optima and the direction they pull in."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from src.models.losses import LSGANLoss, NonSaturatingLoss
from src.models.mnist_gan_model import GENERATOR
from src.utils.instantiate import instantiate
from tests.conftest import compose_config

LOSSES = [LSGANLoss(), NonSaturatingLoss()]
REAL = torch.tensor([[0.5], [-2.0], [3.0]])
FAKE = torch.tensor([[1.5], [0.0], [-1.0]])


def test_least_squares_by_hand() -> None:
    loss = LSGANLoss()
    real, fake = loss.discriminator(REAL, FAKE)
    assert real.item() == pytest.approx((0.25 + 9 + 4) / 3)
    assert fake.item() == pytest.approx((2.25 + 0 + 1) / 3)
    assert loss.generator(FAKE).item() == pytest.approx((0.25 + 1 + 4) / 3)


def test_non_saturating_is_cross_entropy_on_logits() -> None:
    loss = NonSaturatingLoss()
    real, fake = loss.discriminator(REAL, FAKE)
    ones, zeros = torch.ones(3, 1), torch.zeros(3, 1)
    torch.testing.assert_close(real, bce(REAL, ones))
    torch.testing.assert_close(fake, bce(FAKE, zeros))
    torch.testing.assert_close(loss.generator(FAKE), bce(FAKE, ones))


def test_non_saturating_still_pulls_where_d_is_sure() -> None:
    fake = torch.tensor([[-50.0]], requires_grad=True)
    NonSaturatingLoss().generator(fake).backward()
    assert fake.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize(("loss", "threshold"), [(LSGANLoss(), 0.5), (NonSaturatingLoss(), 0.0)])
def test_the_best_score_for_images_nobody_can_tell_apart(loss, threshold: float) -> None:
    scores = torch.linspace(-3, 3, 601)
    costs = torch.stack([sum(loss.discriminator(s, s)) for s in scores.view(-1, 1, 1)])
    assert scores[costs.argmin()].item() == pytest.approx(threshold, abs=0.005)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_networks_pull_scores_in_opposite_directions(loss) -> None:
    real, fake, by_g = (torch.full((4, 1), 0.5, requires_grad=True) for _ in range(3))
    sum(loss.discriminator(real, fake)).backward()
    loss.generator(by_g).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # descent raises D's scores on real, lowers them on fake
    assert (by_g.grad < 0).all()  # and G raises them


def test_a_line_of_yaml_changes_what_is_trained() -> None:
    gradients = {}
    batch = torch.zeros(4, 1, 32, 32), torch.arange(4)
    for kind in (LSGANLoss, NonSaturatingLoss):
        torch.manual_seed(0)
        target = f"model.loss._target_=src.models.losses.{kind.__name__}"
        model = instantiate(compose_config("train", target), "model").eval()
        torch.manual_seed(1)
        fake = model.generator(model.draw_noise(4), batch[1])
        expected = kind().generator(model.discriminator(fake, batch[1]))
        torch.manual_seed(1)
        _, loss = model.step(batch, 0, GENERATOR)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        gradients[kind] = model.generator.model[0].weight.grad
    assert not torch.allclose(*gradients.values())
