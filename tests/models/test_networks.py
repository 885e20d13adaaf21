"""Shapes and ranges of the networks, and that the label counts."""

import pytest
import torch

from src.models.modules.dcgan import DCGANDiscriminator, DCGANGenerator
from src.models.modules.discriminators import Discriminator
from src.models.modules.generators import Generator

GENERATORS = pytest.mark.parametrize("kind", [Generator, DCGANGenerator])
DISCRIMINATORS = pytest.mark.parametrize("kind", [Discriminator, DCGANDiscriminator])
SIZES = pytest.mark.parametrize(("channels", "img_size"), [(c, s) for c in (1, 3) for s in (28, 32, 64)])
LABELS = torch.tensor([0, 1, 2, 3])


@GENERATORS
@SIZES
def test_generator(kind, channels: int, img_size: int) -> None:
    torch.manual_seed(0)
    network = kind(n_classes=4, latent_dim=6, channels=channels, img_size=img_size).eval()
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


@DISCRIMINATORS
@SIZES
def test_discriminator(kind, channels: int, img_size: int) -> None:
    torch.manual_seed(0)
    network = kind(n_classes=4, channels=channels, img_size=img_size).eval()
    images = torch.rand(4, channels, img_size, img_size) * 2 - 1
    scores = network(images, LABELS)
    assert scores.shape == (4, 1)
    assert not torch.allclose(scores, network(images, LABELS.flip(0)))
    assert not torch.allclose(scores, network(-images, LABELS))


@DISCRIMINATORS
def test_a_score_is_of_one_image_alone(kind) -> None:
    """The training step relies on it: it scores real and generated images in one pass."""
    torch.manual_seed(0)
    network = kind(n_classes=4, channels=1, img_size=28).train()
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


@pytest.mark.parametrize("kind", [DCGANGenerator, DCGANDiscriminator])
@pytest.mark.parametrize("img_size", [9, 30, 3])
def test_dcgan_refuses_sizes_it_cannot_halve(kind, img_size: int) -> None:
    arguments = {"latent_dim": 6} if kind is DCGANGenerator else {}
    with pytest.raises(ValueError, match=f"img_size must be .* such as 28, 32 or 64, not {img_size}"):
        kind(n_classes=4, channels=1, img_size=img_size, **arguments)


def test_dcgan_has_these_parameters() -> None:
    """Counted by hand, without the embeddings: one class."""
    sizes = {"n_classes": 1, "channels": 1, "img_size": 28, "width": 8}
    generator = 1 * 6 + 12 * 16 * 49 + 2 * 16 + 16 * 8 * 16 + 2 * 8 + 8 * 1 * 16 + 1
    discriminator = 28**2 + (2 * 8 * 16 + 8) + (8 * 16 * 16 + 16) + (16 * 49 + 1)
    assert sum(p.numel() for p in DCGANGenerator(latent_dim=6, **sizes).parameters()) == generator
    assert sum(p.numel() for p in DCGANDiscriminator(**sizes).parameters()) == discriminator
