"""A 3x3 convolution whose weights' gradient is as fast for small images as for large ones, in bfloat16 on a CPU."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

SMALL = 8  # pixels of width; a wider row is as fast alone


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(channels, channels_out, 3, padding=1)`, and the same numbers, faster in training.

    The gradient of its weights is a matrix product over the pixels of a row. oneDNN takes a row of one image at a
    time, and a row of four pixels fills an eighth of what the CPU multiplies at once in bfloat16. So images lie side by
    side for it, a column of zeros between them.
    """

    bias: nn.Parameter

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__(channels, channels_out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, C, H, W] -> [N, C_out, H, W]."""
        small = features.device.type == "cpu" and features.shape[3] <= SMALL and torch.is_grad_enabled()
        if small and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return _SideBySide.apply(*(each.bfloat16() for each in (features, self.weight, self.bias)))
        return super().forward(features)


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return conv2d(features, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, weight = ctx.saved_tensors
        of_features = _backward(gradient, features, weight, [True, False, False])[0]
        rows = _side_by_side(gradient), _side_by_side(features)
        _, of_weight, of_bias = _backward(*rows, weight, [False, True, True])
        return of_features, of_weight, of_bias


def _backward(gradient: Tensor, features: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    ones, bias = [1, 1], [len(weight)]
    convolution = torch.ops.aten.convolution_backward
    return convolution(gradient, features, weight, bias, ones, ones, ones, False, [0, 0], 1, wanted)


def _side_by_side(features: Tensor) -> Tensor:
    """Features [N, C, H, W] -> [N / k, C, H, k (W + 1)], in channels-last format."""
    # More than sixteen gain nothing.
    columns = pad(features.permute(0, 2, 3, 1), (0, 0, 0, 1))
    rows = columns.unflatten(0, (-1, math.gcd(len(features), 16))).transpose(1, 2).flatten(2, 3)
    return rows.permute(0, 3, 1, 2)
