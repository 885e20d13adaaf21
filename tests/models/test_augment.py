"""What D sees of images."""

import pytest
import torch

from src.models.augment import DiffAugment, InstanceNoise
from tests.conftest import build

IMAGES = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
PLAIN = {"translation": 0.0}


@pytest.mark.parametrize(("progress", "std"), [(0.0, 0.4), (0.25, 0.2), (0.5, 0.0), (1.0, 0.0)])
def test_instance_noise_fades_out(progress: float, std: float) -> None:
    torch.manual_seed(0)
    noise = InstanceNoise(std=0.4, until=0.5)(IMAGES, progress) - IMAGES
    assert noise.std().item() == pytest.approx(std, rel=0.05)
    assert noise.mean().abs() < 0.02


def test_translation_moves_an_image_by_whole_pixels_and_fills_with_background() -> None:
    torch.manual_seed(0)
    images = torch.full((500, 1, 8, 8), -1.0)
    images[:, 0, 4, 3] = 1.0
    moved = DiffAugment(translation=0.25)(images, 0.0)
    assert moved.unique().tolist() == [-1, 1]
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 8, places % 8
    assert set(rows.tolist()) == {2, 3, 4, 5, 6} and set(columns.tolist()) == {1, 2, 3, 4, 5}
    assert len(set(places.tolist())) == 25  # up and sideways, independently, each image for itself


@pytest.mark.parametrize("amounts", [{}, {"cutout": 0.5}, {"brightness": 0.5, "contrast": 0.5}])
def test_nothing_is_ever_mirrored(amounts: dict[str, float]) -> None:
    """A bright bar left of a dim one stays left of it, wherever both can be seen."""
    torch.manual_seed(0)
    images = torch.full((500, 1, 8, 8), -1.0)
    images[..., 3], images[..., 5] = 1.0, 0.0
    seen = DiffAugment(translation=0.25, **amounts)(images, 0.0)[:, 0]
    row = seen.max(dim=1).values  # [N, W]
    bright = row.argmax(1)
    whole = bright + 2 < 8
    dim = row.gather(1, (bright + 2).clamp(max=7).unsqueeze(1)).squeeze(1)[whole]
    background = row.min(dim=1).values[whole]
    if "cutout" not in amounts:
        assert (dim > background).all()
    before = row.gather(1, (bright - 2).clamp(min=0).unsqueeze(1)).squeeze(1)[whole]
    assert (dim >= before).all()


def test_cutout_removes_a_square() -> None:
    torch.manual_seed(0)
    cut = DiffAugment(**PLAIN, cutout=0.5)(torch.ones(500, 2, 8, 8), 0.0) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    assert cut[:, 0].sum(dim=(1, 2)).max() == 16
    assert (cut[:, 0].any(1).sum(1) <= 4).all() and (cut[:, 0].any(2).sum(1) <= 4).all()
    assert cut.any(dim=0).all()  # everywhere, the corners too


def test_brightness_shifts_all_pixels_alike() -> None:
    torch.manual_seed(0)
    shift = DiffAugment(**PLAIN, brightness=0.3)(IMAGES, 0.0) - IMAGES
    of_each = shift[:, 0, 0, 0]
    assert torch.allclose(shift, of_each.view(-1, 1, 1, 1).expand_as(shift), atol=1e-6)
    assert of_each.abs().max() <= 0.3 and of_each.std() > 0.1


def test_contrast_keeps_an_images_mean_and_saturation_each_pixels() -> None:
    torch.manual_seed(0)
    contrast = DiffAugment(**PLAIN, contrast=0.5)(IMAGES, 0.0)
    torch.testing.assert_close(contrast.mean(dim=(1, 2, 3)), IMAGES.mean(dim=(1, 2, 3)))
    assert (contrast.std(dim=(1, 2, 3)) / IMAGES.std(dim=(1, 2, 3))).std() > 0.1

    saturation = DiffAugment(**PLAIN, saturation=0.5)(IMAGES, 0.0)
    torch.testing.assert_close(saturation.mean(dim=1), IMAGES.mean(dim=1))
    assert not torch.allclose(saturation, IMAGES)


@pytest.mark.parametrize("name", ["translation", "cutout", "brightness", "contrast", "saturation"])
def test_gradients_pass_through(name: str) -> None:
    torch.manual_seed(0)
    images = IMAGES.clone().requires_grad_()
    DiffAugment(**(PLAIN | {name: 0.5}))(images, 0.0).square().sum().backward()
    assert images.grad.isfinite().all() and (images.grad != 0).float().mean() > 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(InstanceNoise, std=0.0), "std must be a positive number"),
        (lambda: build(InstanceNoise, until=0.0), "until must be a number above 0 and up to 1"),
        (lambda: build(DiffAugment, translation=2.0), "translation must be a number from 0 to 1"),
        (lambda: DiffAugment(translation=0.0), "translation is 0, and so are all others"),
        (lambda: DiffAugment(saturation=0.5)(IMAGES[:, :1], 0.0), "saturation is 0.5, but the images have no colour"),
    ],
)
def test_what_would_do_nothing_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
