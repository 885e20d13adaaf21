import pytest
import torch
from torch import Tensor, nn

from src.models.modules.convolution import SMALL, Conv3x3, _SideBySide


def gradients(layer: nn.Conv2d, features: Tensor, towards: Tensor) -> list[Tensor]:
    """Of the layer's output times `towards`: by its weights, bias and features."""
    features = features.clone().requires_grad_()
    output = layer(features)
    return list(torch.autograd.grad((output.float() * towards).sum(), [layer.weight, layer.bias, features]))


@pytest.mark.parametrize("n, height, width", [(64, 4, 4), (12, 7, 7), (7, 8, 8), (2, 3, 5), (16, 4, 16)])
def test_gradients_of_small_images_are_those_of_any_convolution(n: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    ours, plain = Conv3x3(16, 24), nn.Conv2d(16, 24, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    features = torch.randn(n, 16, height, width).to(memory_format=torch.channels_last)
    towards = torch.randn(n, 24, height, width)
    with torch.autocast("cpu", torch.bfloat16):
        assert (type(ours(features).grad_fn).__name__ == f"{_SideBySide.__name__}Backward") == (width <= SMALL)
        assert torch.equal(ours(features), plain(features))
        rounded = gradients(ours, features, towards)
    assert [each.dtype for each in rounded] == [torch.float32] * 3
    for ours_, exact in zip(rounded, gradients(plain, features, towards), strict=True):
        assert (ours_ - exact).norm() < 0.01 * exact.norm()


def test_in_float32_it_has_second_derivatives() -> None:
    layer, features = Conv3x3(4, 4), torch.randn(2, 4, 4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(layer(features).square().sum(), features, create_graph=True)
    slope.square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
