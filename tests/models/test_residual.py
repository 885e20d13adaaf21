"""The residual pair: shapes, what a score and an image depend on, and that every weight counts."""

import pytest
import torch
from torch import Tensor

from src.models.modules.residual import ConditionalNorm, ResidualDiscriminator, ResidualGenerator, within_class_std

SIZES = pytest.mark.parametrize(("channels", "img_size"), [(c, s) for c in (1, 3) for s in (28, 32, 64)])
LABELS = torch.tensor([0, 1, 2, 3])


def generator(channels: int = 1, img_size: int = 28) -> ResidualGenerator:
    torch.manual_seed(0)
    return ResidualGenerator(n_classes=4, latent_dim=6, channels=channels, img_size=img_size, width=8)


def discriminator(channels: int = 1, img_size: int = 28, **more: bool) -> ResidualDiscriminator:
    torch.manual_seed(0)
    return ResidualDiscriminator(n_classes=4, channels=channels, img_size=img_size, width=8, features=16, **more)


@SIZES
def test_generator_makes_images_of_noise_and_label(channels: int, img_size: int) -> None:
    network = generator(channels, img_size).eval()
    noise = torch.randn(4, 6)
    images = network(noise, LABELS)
    assert images.shape == (4, channels, img_size, img_size)
    assert images.abs().max() <= 1
    for other in (network(noise, LABELS.flip(0)), network(noise.flip(0), LABELS)):
        assert ((images - other).abs().flatten(1).max(dim=1).values > 1e-3).all()


@SIZES
def test_discriminator_scores_image_and_label(channels: int, img_size: int) -> None:
    network = discriminator(channels, img_size)
    images = torch.rand(4, channels, img_size, img_size) * 2 - 1
    scores = network(images, LABELS)
    assert scores.shape == (4, 1)
    for other in (network(images, LABELS.flip(0)), network(images.flip(0), LABELS)):
        assert ((scores - other).abs() > 1e-4).all()


def test_every_pixel_counts_for_the_score() -> None:
    images = torch.rand(4, 1, 28, 28).requires_grad_()
    discriminator()(images, LABELS).sum().backward()
    assert isinstance(images.grad, Tensor) and (images.grad != 0).all()


@pytest.mark.parametrize(("img_size", "minibatch_std"), [(28, False), (64, True)])
def test_every_weight_gets_a_gradient(img_size: int, minibatch_std: bool) -> None:
    """DDP waits forever for one that does not."""
    g, d = generator(img_size=img_size), discriminator(img_size=img_size, minibatch_std=minibatch_std)
    d(g(torch.randn(8, 6), LABELS.repeat(2)), LABELS.repeat(2)).square().sum().backward()
    for name, parameter in [*g.named_parameters(), *d.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_score_is_of_one_image_alone() -> None:
    network = discriminator().train()
    images = torch.randn(4, 1, 28, 28)
    others = torch.cat([images[:2], torch.full((2, 1, 28, 28), 100.0)])
    torch.testing.assert_close(network(images, LABELS)[:2], network(others, LABELS)[:2])


def test_within_class_std_is_the_spread_around_the_mean_of_each_class() -> None:
    features, labels = torch.randn(9, 5) * 3 + 2, torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])
    squares = sum((of - of.mean(dim=0)).square().sum(dim=0) for of in (features[labels == c] for c in (0, 1, 3)))
    torch.testing.assert_close(within_class_std(features, labels, 4), (squares / (9 - 3)).sqrt())
    assert within_class_std(features[:4], torch.arange(4), 4).max() < 0.01  # one of each


def test_with_minibatch_std_a_score_tells_how_much_its_batch_varies() -> None:
    network = discriminator(minibatch_std=True)
    images, labels = torch.randn(12, 1, 28, 28), LABELS.repeat(3)
    alike = images[:4].repeat(3, 1, 1, 1)  # of each class one image, three times
    assert (network(images, labels)[0] - network(alike, labels)[0]).abs() > 1e-3

    # Batches one after the other are scored as they are alone; what is left over belongs to the first.
    scores = network(torch.cat([images, alike, images[:3]]), torch.cat([labels, labels, labels[:3]]), [12, 12])
    expected = [network(images, labels), network(alike, labels), network(images, labels)[:3]]
    torch.testing.assert_close(scores, torch.cat(expected))


def test_an_image_is_of_one_noise_alone_once_trained() -> None:
    network = generator().eval()
    noise = torch.randn(4, 6)
    torch.testing.assert_close(network(noise, LABELS)[:2], network(noise[:2], LABELS[:2]))


def test_conditional_norm_is_batch_norm_scaled_and_shifted() -> None:
    norm = ConditionalNorm(condition_dim=2, channels=3)
    torch.nn.init.zeros_(norm.scale_and_shift.weight)
    with torch.no_grad():
        norm.scale_and_shift.weight[0, 0] = 2.0  # the first channel's scale follows the first entry,
        norm.scale_and_shift.weight[4, 1] = 5.0  # the second channel's shift the second
    features = torch.randn(64, 3, 4, 4) * 7 + 1
    out = norm(features, torch.tensor([1.0, 1.0]).expand(64, 2))
    mean, std = out.mean(dim=(0, 2, 3)), out.std(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean, torch.tensor([0.0, 5.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor([3.0, 1.0, 1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("img_size", [3, 6, 9, 30])
def test_sizes_that_cannot_be_halved_are_refused(img_size: int) -> None:
    with pytest.raises(ValueError, match=f"img_size must be .* such as 28, 32 or 64, not {img_size}"):
        generator(img_size=img_size)
    with pytest.raises(ValueError, match=f"img_size must be .* such as 28, 32 or 64, not {img_size}"):
        discriminator(img_size=img_size)


def test_number_of_parameters() -> None:
    """Counted by hand for 28 pixels: 7x7 with 16 channels, 14x14 with 8."""
    condition = 2 * 6
    norms = sum(condition * 2 * c + 2 * c for c in (16, 8, 8))
    convs = (16 * 8 * 9 + 8) + (8 * 8 * 9 + 8) + (16 * 8 + 8) + (8 * 4 * 9 + 4)
    assert count(generator()) == 4 * 6 + (condition * 16 * 49 + 16 * 49) + norms + convs
    convs = (4 * 8 * 9 + 8) + (8 * 8 * 9 + 8) + (8 * 16 * 9 + 16) + (8 * 16 + 16)
    assert count(discriminator()) == convs + (16 * 49 * 16 + 16) + (16 + 1) + 4 * 16


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
