"""A small U-Net that predicts an image from a noisy one, made to be cheap on a CPU."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle, silu

from src.config.types import Count
from src.models.modules.convolution import Conv3x3
from src.models.modules.sizes import halvings


class ModulatedBlock(nn.Module):
    """Two 3x3 convolutions with a skip; scale and shift of the second norm follow a condition (Perez et al. 2018)."""

    def __init__(self, condition_dim: int, channels: int, channels_out: int, group: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(channels // group, channels)
        self.conv1 = Conv3x3(channels, channels_out)
        self.norm2 = nn.GroupNorm(channels_out // group, channels_out, affine=False)
        self.scale_and_shift = nn.Linear(condition_dim, 2 * channels_out)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.skip = nn.Conv2d(channels, channels_out, 1) if channels != channels_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # each block begins as its skip
        nn.init.zeros_(self.conv2.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Features [N, C, H, W] and condition [N, condition_dim] -> [N, C_out, H, W]."""
        residual = self.norm2(self.conv1(silu(self.norm1(features))))
        scale, shift = self.scale_and_shift(condition)[:, :, None, None].chunk(2, dim=1)
        return self.skip(features) + self.conv2(silu(torch.addcmul(shift, residual, 1 + scale)))


class FoldedUNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) that folds each 2x2 pixels into channels first (Shi et al. 2016).

    Skips are added, not concatenated, which halves the widest convolutions.

    Args:
        channels: image channels.
        img_size: height and width of the images in pixels, 4 to 7 doubled several times.
        condition_dim: length of the condition.
        width: channels at half the image's size; they double with each halving, up to four times.
        depth: blocks at each size, on the way down and up.

    Raises:
        ValueError: `img_size` does not suit.
    """

    GROUP = 16  # channels that a norm takes together

    def __init__(
        self, channels: int, img_size: int, condition_dim: Count = 128, width: Count = 48, depth: Count = 2
    ) -> None:
        super().__init__()
        if width % self.GROUP:
            raise ValueError(f"width is {width}, but must be a multiple of {self.GROUP}")
        widths = [width * min(2**i, 4) for i in range(halvings(img_size))]

        def stage(first: int, last: int) -> nn.ModuleList:
            sizes = pairwise([first] + [last] * depth)
            return nn.ModuleList(ModulatedBlock(condition_dim, i, o, self.GROUP) for i, o in sizes)

        self.time = nn.Sequential(nn.Linear(64, condition_dim), nn.SiLU(), nn.Linear(condition_dim, condition_dim))
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(1000), 32)), persistent=False)
        self.start = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(stage(widths[max(i - 1, 0)], each) for i, each in enumerate(widths))
        self.up = nn.ModuleList(stage(each, each) for each in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.norm = nn.GroupNorm(width // self.GROUP, width)
        self.end = nn.Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.end.weight)
        self.to(memory_format=torch.channels_last)  # faster on a CPU: docs/step_cost.md

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Noisy images [N, C, H, W], their time [N] (0: noise, 1: image) and condition [N, D] -> images, unbounded."""
        angles = time[:, None] * self.frequencies
        condition = silu(self.time(torch.cat([angles.cos(), angles.sin()], 1)) + condition)
        features = self.start(pixel_unshuffle(noisy, 2))
        skips: list[Tensor] = []
        blocks: Any
        for i, blocks in enumerate(self.down):
            features = avg_pool2d(features, 2) if i else features
            for block in blocks:
                features = block(features, condition)
            skips.append(features)
        for i in reversed(range(len(skips))):
            if i < len(skips) - 1:
                features = skips[i] + interpolate(self.narrow[i](features), scale_factor=2.0)
            blocks = self.up[i]
            for block in blocks:
                features = block(features, condition)
        return pixel_shuffle(self.end(silu(self.norm(features))), 2)
