"""The exported file draws what the model draws, whatever the network, and the model stays as it was."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from src.export.agreement import EXACT
from src.export.to_onnx import export_generator, plain_copy
from src.models.image_model import ImageModel
from src.models.mnist_gan_model import MNISTGANModel
from src.models.request import Request
from src.sampling.checkpoint_sampler import about_model
from src.sampling.onnx_sampler import OnnxSampler
from tests.conftest import build_model, compose_config, needs_onnx


def model_with(*overrides: str) -> MNISTGANModel:
    """A small model whose BatchNorm has seen something, so that evaluation mode makes a difference."""
    model = build_model(compose_config("train", "model.latent_dim=8", *overrides))
    labels = torch.arange(32) % 10
    for _ in range(3):
        model.generator(torch.randn(32, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1, labels)
    return model


def export(model: MNISTGANModel, path: Path, weights: str = "ema") -> float:
    """Exports it under what there is to say about it."""
    return export_generator(model, path, about_model(model, weights, "a run", {"source": "digits"}, "0123", None))


def draw_with(path: Path, request: Request) -> Tensor:
    """Images by the file."""
    return torch.from_numpy(OnnxSampler(path).run(request.map(Tensor.numpy)))


def drawn_by(model: ImageModel, path: Path, n: int) -> tuple[Tensor, Tensor]:
    """`n` images by the file, and the same by the model."""
    noise, labels = torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 10
    return draw_with(path, Request(noise, labels)), model.generate(labels, noise=noise)


@needs_onnx
@pytest.mark.parametrize(
    "overrides",
    [
        ["model/networks=mlp"],
        ["model/networks=dcgan"],
        ["model/networks=residual", "datamodule.img_size=28", "model.channels=3"],
        ["model/networks=residual", "model.spectral_norm_g=true", "model.ema_half_life=100"],
    ],
    ids=["mlp", "dcgan", "residual", "spectral-norm-and-average"],
)
def test_the_file_draws_what_the_model_draws(overrides: list[str], tmp_path: Path) -> None:
    model = model_with(*overrides)

    largest = export(model, tmp_path / "generator.onnx")

    assert largest <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["generator.onnx"]  # no second file with the weights
    for n in (1, 2, 11):
        theirs, ours = drawn_by(model, tmp_path / "generator.onnx", n)
        assert theirs.shape == (n, model.channels, model.img_size, model.img_size)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@needs_onnx
def test_it_is_the_average_of_the_weights_that_is_exported(tmp_path: Path) -> None:
    model = model_with("model.ema_half_life=100")
    with torch.no_grad():
        for weight in model.generator.parameters():
            weight.mul_(2)  # the average still has what was

    export(model, tmp_path / "generator.onnx")

    theirs, ours = drawn_by(model, tmp_path / "generator.onnx", 5)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (theirs - model.generate(torch.arange(5), average=False)).abs().max() > 0.1


@needs_onnx
def test_the_file_draws_between_classes_as_the_model_does(tmp_path: Path) -> None:
    model = model_with("model/networks=residual", "model.ema_half_life=100")
    path = tmp_path / "generator.onnx"
    export(model, path)
    noise, labels = torch.randn(6, 8), torch.arange(6)
    others, weight = torch.tensor([9, 8, 7, 6, 5, 4]), torch.tensor([0.0, 1.0, 0.5, 0.25, 0.75, 0.5])

    theirs = draw_with(path, Request(noise, labels, others, weight))

    torch.testing.assert_close(theirs, model.interpolate(labels, others, weight, noise), atol=1e-5, rtol=0)
    ends = model.generate(torch.stack([labels[0], others[1]]), noise=noise[:2])
    torch.testing.assert_close(theirs[:2], ends, atol=1e-5, rtol=0)


@needs_onnx
def test_the_weights_without_their_average_can_be_exported(tmp_path: Path) -> None:
    model = model_with("model.ema_half_life=100")
    with torch.no_grad():
        for weight in model.generator.parameters():
            weight.mul_(2)
    path = tmp_path / "generator.onnx"

    export(model, path, weights="raw")

    noise, labels = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    theirs = draw_with(path, Request(noise, labels))
    # Doubled in every layer, rounding grows with the images: 1e-5 is what it comes to.
    torch.testing.assert_close(theirs, model.generate(labels, noise=noise, average=False), atol=EXACT, rtol=0)
    assert (theirs - model.generate(labels, noise=noise)).abs().max() > 0.1


def test_a_plain_copy_computes_the_same_and_leaves_the_original_alone() -> None:
    model = model_with("model/networks=residual", "model.spectral_norm_g=true", "model.ema_half_life=100").eval()
    noise, labels = torch.randn(4, 8), torch.arange(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(noise, labels)

    plain = plain_copy(model.generator)

    torch.testing.assert_close(plain(noise, labels), expected, atol=1e-6, rtol=0)
    assert not any(map(parametrize.is_parametrized, plain.modules()))
    # Original, average and their spectral norm still work, and learn.
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model.train()(noise, labels).sum().backward()
    assert all(parameter.grad is not None for parameter in model.generator.parameters())
    assert torch.equal(model.eval()(noise, labels), model(noise, labels))


@needs_onnx
def test_a_file_that_draws_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with()
    other = model_with("seed=1")
    torch.nn.init.normal_(other.generator.model[0].weight)
    monkeypatch.setattr(model, "draw", other.draw)

    with pytest.raises(ValueError, match="does not draw what the model draws"):
        export(model, tmp_path / "generator.onnx")
