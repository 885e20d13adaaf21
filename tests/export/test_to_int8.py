"""The int8 file is a quarter as large, and draws nearly the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.export.to_int8 import quantise
from src.models.request import Request
from src.sampling.onnx_sampler import OnnxSampler
from src.sampling.sampler import Noise
from tests.conftest import needs_onnx
from tests.export.test_to_onnx import export, model_with

pytestmark = needs_onnx


@pytest.mark.parametrize(
    "overrides",
    [
        ["model/networks=mlp"],
        ["model/networks=dcgan"],
        ["model/networks=residual", "datamodule.img_size=28", "model.channels=3"],
    ],
    ids=["mlp", "dcgan", "residual"],
)
def test_it_draws_nearly_the_same(overrides: list[str], tmp_path: Path) -> None:
    source, path = tmp_path / "generator.onnx", tmp_path / "generator.int8.onnx"
    export(model_with(*overrides), source)

    largest, mean = quantise(source, path, 100, 0, {"precision": "int8"})

    assert path.stat().st_size < 0.5 * source.stat().st_size
    exact, small = OnnxSampler(source), OnnxSampler(path)
    assert small.about == exact.about and small.can_interpolate
    labels, noise = np.arange(70) % 10, Noise((8,), 3)(70)
    between = np.flip(labels).copy(), np.linspace(0, 1, 70, dtype=np.float32)
    for given in ((), between):
        expected = exact.run(Request(noise, labels, *given))
        difference = np.abs(small.run(Request(noise, labels, *given)) - expected)
        assert difference.mean() < 0.1 * expected.std()
    assert 0 < mean < largest


def test_plain_backgrounds_stay_plain(tmp_path: Path) -> None:
    """A last layer that goes far beyond what the image shows cannot be rounded: it stays as it is."""
    model = model_with("model/networks=mlp")
    with torch.no_grad():
        last = model.generator.model[-2]
        last.weight.mul_(100)
        last.bias[:512] = -1000.0
    source, path = tmp_path / "generator.onnx", tmp_path / "generator.int8.onnx"
    export(model, source)

    _, mean = quantise(source, path, 100, 0, {})

    assert mean < 0.05
    assert 0.5 < path.stat().st_size / source.stat().st_size < 0.8


def test_what_cannot_be_rounded_is_refused(tmp_path: Path) -> None:
    model = model_with("model/networks=mlp")
    with torch.no_grad():
        model.generator.model[-4].bias[0] = 1e5  # beside it all others are nothing, on one scale
        model.generator.model[-2].weight.mul_(100)[:, 0] = 0
    export(model, tmp_path / "generator.onnx")
    with pytest.raises(ValueError, match=r"the int8 version draws other images .* leave int8 out of formats"):
        quantise(tmp_path / "generator.onnx", tmp_path / "generator.int8.onnx", 100, 0, {})


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "generator.onnx"
    export(model_with("model/networks=mlp"), source)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quantise(source, tmp_path / name, 100, seed, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
