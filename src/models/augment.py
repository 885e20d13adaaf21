"""What is done to every image before D sees it, real or generated, in a way that gradients pass through.

G is never asked to draw the distortions, as D sees real images distorted alike.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from src.config.types import Positive, Share


class InstanceNoise:
    """Normal noise on D's input (Sonderby et al. 2017, Arjovsky & Bottou 2017), which fades out in a straight line.

    Args:
        std: its standard deviation at the start; pixels are in [-1, 1].
        until: share of the run's batches after which it is gone.
    """

    follows_progress = True

    def __init__(self, std: Positive = 0.1, until: Annotated[float, Field(gt=0, le=1)] = 0.5) -> None:
        self.std = std
        self.until = until

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """Images [N, C, H, W] -> the same with noise, after the share `progress` of all batches."""
        std = self.std * (1 - progress / self.until)
        return images + std * torch.randn_like(images) if std > 0 else images


class DiffAugment:
    """Random shifts, cut-outs and changes of colour, drawn for each image (Zhao et al. 2020).

    It never mirrors an image: a mirrored digit is not a digit. An amount of 0 leaves a distortion out.

    Args:
        translation: largest shift, as a share of the image's size; what comes in from outside is background (-1).
        cutout: side of the square that is cut out, as a share of the image's size.
        brightness: largest change of all pixels; pixels are in [-1, 1].
        contrast: largest change of the factor by which pixels differ from the image's mean.
        saturation: largest change of the factor by which colours differ from grey; for colour images.

    Raises:
        ValueError: all amounts are 0.
    """

    def __init__(
        self,
        translation: Share = 0.125,
        cutout: Share = 0.0,
        brightness: Share = 0.0,
        contrast: Share = 0.0,
        saturation: Share = 0.0,
    ) -> None:
        if not any((translation, cutout, brightness, contrast, saturation)):
            raise ValueError("translation is 0, and so are all others: set one, or the augmentation to null")
        self.translation = translation
        self.cutout = cutout
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] -> the same, distorted; `progress` does not matter.

        Raises:
            ValueError: `saturation` is set, but the images have no colour.
        """
        if self.saturation and images.shape[1] == 1:
            raise ValueError(f"saturation is {self.saturation}, but the images have no colour: set it to 0")
        if self.brightness:
            images = images + _uniform(images, self.brightness)
        if self.saturation:
            grey = images.mean(dim=1, keepdim=True)
            images = grey + (images - grey) * (1 + _uniform(images, self.saturation))
        if self.contrast:
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            images = mean + (images - mean) * (1 + _uniform(images, self.contrast))
        if self.translation:
            images = _shifted(images, self.translation)
        if self.cutout:
            images = _cut_out(images, self.cutout)
        return images


def _uniform(images: Tensor, amount: float) -> Tensor:
    """A number between -amount and amount for each image, [N, 1, 1, 1]."""
    return (torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype) * 2 - 1) * amount


def _shifted(images: Tensor, share: float) -> Tensor:
    n, _, height, width = images.shape
    device = images.device
    most_y, most_x = (max(1, round(size * share)) for size in (height, width))
    # Of the padded image, a window at a random place; gathering keeps it one differentiable operation.
    padded = pad(images, (most_x, most_x, most_y, most_y), value=-1)
    y = torch.randint(2 * most_y + 1, (n, 1, 1), device=device) + torch.arange(height, device=device).view(1, -1, 1)
    x = torch.randint(2 * most_x + 1, (n, 1, 1), device=device) + torch.arange(width, device=device).view(1, 1, -1)
    return padded.movedim(1, -1)[torch.arange(n, device=device).view(-1, 1, 1), y, x].movedim(-1, 1)


def _cut_out(images: Tensor, share: float) -> Tensor:
    n, _, height, width = images.shape
    inside = []
    for size, dim in [(height, 2), (width, 3)]:
        side = max(1, round(size * share))
        # Centres may lie so near the edge that only a part is cut out.
        start = torch.randint(size + 1, (n, 1), device=images.device) - side // 2
        at = torch.arange(size, device=images.device)
        inside.append(((at >= start) & (at < start + side)).view(n, 1, *([size, 1] if dim == 2 else [1, size])))
    return images.masked_fill(inside[0] & inside[1], 0.0)
