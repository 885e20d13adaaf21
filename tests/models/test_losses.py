"""Losses against their closed forms, their optima and the direction they pull in."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from src.models.losses import HingeLoss, LSGANLoss, NonSaturatingLoss, RelativisticLoss, WassersteinLoss
from src.models.mnist_gan_model import DISCRIMINATOR, GENERATOR
from tests.conftest import build_model, compose_config

LOSSES = [LSGANLoss(), NonSaturatingLoss(), HingeLoss(), WassersteinLoss()]
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


def test_hinge_by_hand() -> None:
    real, fake = HingeLoss().discriminator(REAL, FAKE)
    assert real.item() == pytest.approx((0.5 + 3 + 0) / 3)
    assert fake.item() == pytest.approx((2.5 + 1 + 0) / 3)
    assert HingeLoss().generator(FAKE).item() == pytest.approx(-0.5 / 3)


def test_wasserstein_is_the_difference_of_the_means() -> None:
    loss = WassersteinLoss()
    assert sum(loss.discriminator(REAL, FAKE)).item() == pytest.approx(0.5 / 3 - 1.5 / 3)
    assert loss.generator(FAKE).item() == pytest.approx(-0.5 / 3)
    shifted = [value + 7 for value in (REAL, FAKE)]
    torch.testing.assert_close(sum(loss.discriminator(*shifted)), sum(loss.discriminator(REAL, FAKE)))


def test_relativistic_compares_each_pair() -> None:
    loss = RelativisticLoss()
    differences = REAL - FAKE
    for_d, again = loss.discriminator(REAL, FAKE)
    torch.testing.assert_close(for_d + again, bce(differences, torch.ones(3, 1)))
    torch.testing.assert_close(loss.generator(FAKE, REAL), bce(differences, torch.zeros(3, 1)))
    assert for_d == again
    assert not torch.isclose(for_d, loss.discriminator(REAL, FAKE.flip(0))[0])  # who is paired with whom counts


def test_relativistic_pairs_share_a_label_and_train_one_network_each() -> None:
    torch.manual_seed(0)
    model = build_model(compose_config("train", "model/objective=relativistic")).eval()
    images, labels = torch.rand(4, 1, 32, 32) * 2 - 1, torch.tensor([3, 1, 4, 1])
    seen = []
    model.discriminator.register_forward_hook(lambda _, inputs, scores: seen.append((inputs[1], scores)))

    losses, g_loss = model.step((images, labels), 0, GENERATOR)
    (fake_labels, fake), (real_labels, real) = seen
    assert torch.equal(fake_labels, labels) and torch.equal(real_labels, labels)
    torch.testing.assert_close(g_loss, RelativisticLoss().generator(fake, real))
    assert not real.requires_grad

    seen.clear()
    losses, _ = model.step((images, labels), 0, DISCRIMINATOR)
    both, scores = seen[0]
    assert torch.equal(both, torch.cat([labels, labels]))
    torch.testing.assert_close(losses["d_loss"], RelativisticLoss().discriminator(*scores.chunk(2))[0].detach())


@pytest.mark.parametrize("loss", [LSGANLoss(), NonSaturatingLoss()])
def test_label_smoothing_moves_the_best_score_for_real_images(loss) -> None:
    """To 1 - s for least squares; to the logit of 1 - s for cross-entropy."""
    torch.manual_seed(0)
    smoothing = 0.2
    target = f"model.loss._target_=src.models.losses.{type(loss).__name__}"
    config = compose_config("train", target, f"model.label_smoothing={smoothing}")
    model = build_model(config)
    best = 1 - smoothing if isinstance(loss, LSGANLoss) else torch.logit(torch.tensor(1 - smoothing)).item()
    scores = torch.tensor([best - 0.1, best, best + 0.1])
    costs = []
    for score in scores:
        model.discriminator = torch.nn.Module()
        model.discriminator.forward = lambda images, labels, score=score: score.expand(len(images), 1)
        losses, _ = model.step((torch.zeros(4, 1, 32, 32), torch.arange(4)), 0, DISCRIMINATOR)
        costs.append(losses["d_real_loss"].item())
    assert costs[1] < min(costs[0], costs[2])


@pytest.mark.parametrize(("loss", "threshold"), [(LSGANLoss(), 0.5), (NonSaturatingLoss(), 0.0)])
def test_the_best_score_for_images_nobody_can_tell_apart(loss, threshold: float) -> None:
    scores = torch.linspace(-3, 3, 601)
    costs = torch.stack([sum(loss.discriminator(s, s)) for s in scores.view(-1, 1, 1)])
    assert scores[costs.argmin()].item() == pytest.approx(threshold, abs=0.005)
    assert loss.threshold == threshold


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
    for kind in (LSGANLoss, HingeLoss):
        torch.manual_seed(0)
        target = f"model.loss._target_=src.models.losses.{kind.__name__}"
        model = build_model(compose_config("train", target)).eval()
        torch.manual_seed(1)
        fake = model.generator(model.draw_noise(4), batch[1])
        expected = kind().generator(model.discriminator(fake, batch[1]))
        torch.manual_seed(1)
        _, loss = model.step(batch, 0, GENERATOR)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        gradients[kind] = model.generator.model[0].weight.grad
    assert not torch.allclose(*gradients.values())
