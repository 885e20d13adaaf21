"""Shapes and ranges of the networks, and that the label counts."""

import pytest
import torch

from src.models.modules.discriminators import Discriminator
from src.models.modules.generators import Generator

SIZES = pytest.mark.parametrize(("channels", "img_size"), [(c, s) for c in (1, 3) for s in (28, 32, 64)])
LABELS = torch.tensor([0, 1, 2, 3])


@SIZES
def test_generator(channels: int, img_size: int) -> None:
    torch.manual_seed(0)
    network = Generator(n_classes=4, latent_dim=6, channels=channels, img_size=img_size).eval()
    noise = torch.randn(4, 6)
    images = network(noise, LABELS)
    assert images.shape == (4, channels, img_size, img_size)
    assert not torch.allclose(images, network(noise, LABELS.flip(0)))
    assert not torch.allclose(images, network(noise + 1, LABELS))


def test_generator_stays_in_range() -> None:
    torch.manual_seed(0)
    images = Generator(n_classes=4, latent_dim=6, channels=1, img_size=28).eval()(torch.randn(4, 6) * 1e4, LABELS)
    assert images.min() >= -1 and images.max() <= 1
    assert images.min() < -0.99 and images.max() > 0.99  # and uses all of it


@SIZES
def test_discriminator(channels: int, img_size: int) -> None:
    torch.manual_seed(0)
    network = Discriminator(n_classes=4, channels=channels, img_size=img_size).eval()
    images = torch.rand(4, channels, img_size, img_size) * 2 - 1
    scores = network(images, LABELS)
    assert scores.shape == (4, 1)
    assert not torch.allclose(scores, network(images, LABELS.flip(0)))
    assert not torch.allclose(scores, network(-images, LABELS))


def test_a_score_is_of_one_image_alone() -> None:
    """The training step relies on it: it scores real and generated images in one pass."""
    torch.manual_seed(0)
    network = Discriminator(n_classes=4, channels=1, img_size=28).train()
    torch.manual_seed(1)
    images = torch.randn(4, 1, 28, 28)
    others = torch.cat([images[:2], torch.full((2, 1, 28, 28), 100.0)])
    torch.manual_seed(2)
    scores = network(images, LABELS)
    torch.manual_seed(2)  # the same dropout
    torch.testing.assert_close(scores[:2], network(others, LABELS)[:2])


def test_scores_are_unbounded() -> None:
    torch.manual_seed(0)
    network = Discriminator(n_classes=4, channels=1, img_size=28).eval()
    assert network(torch.randn(4, 1, 28, 28) * 1e4, LABELS).abs().max() > 10
