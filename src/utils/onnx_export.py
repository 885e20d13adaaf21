"""A trained generator as one ONNX file, which draws images without this project and without torch."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from src.models.image_model import ImageModel

# What export needs besides torch; only onnxruntime is needed to draw.
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
N_CHECKED = 7  # images that the file must draw as the model does; another number than it was exported with
# The largest difference in images in [-1, 1]: other kernels round differently, a GPU and half precision far more so.
EXACT, COARSE = 1e-4, 5e-2


def export_generator(model: ImageModel, path: Path) -> None:
    """Writes what `model.generate` draws with, the average of G's weights where there is one, and tries the file.

    Its inputs are `noise`, float32 [N, ...], standard normal, and `labels`, int64 [N]; its output is `images`, float32
    [N, C, H, W] in [-1, 1]. N is free. The metadata `n_classes` says how many classes there are. The model is left as
    it is.

    Args:
        model: trained; it must hold its network as `generator`, and an average of it as `ema.network`.
        path: of the file.

    Raises:
        ValueError: the model has no such network, or the file draws other images than the model.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    network = plain_copy(generator_of(model))
    noise = model.draw_noise(N_CHECKED, torch.Generator().manual_seed(0)).float()
    labels = torch.arange(N_CHECKED) % model.n_classes
    batch = {0: "batch"}
    for name in ("onnxscript", "onnx_ir"):  # they tell each step
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how torch names the axis
        program = torch.onnx.export(
            network,
            (noise[:2], labels[:2]),
            dynamo=True,
            input_names=["noise", "labels"],
            output_names=["images"],
            dynamic_shapes=(batch, batch),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["n_classes"] = str(model.n_classes)
    program.save(path, external_data=False)  # one file, weights and all

    drawn = draw_with(path, noise, labels)
    expected = model.generate(labels, noise=noise.to(model.dtype)).float().cpu().numpy()
    allowed = EXACT if (model.device.type, model.dtype) == ("cpu", torch.float32) else COARSE
    if drawn.shape != expected.shape or not np.abs(drawn - expected).max() <= allowed:
        raise ValueError("the exported file does not draw what the model draws")


def generator_of(model: ImageModel) -> nn.Module:
    """The network that draws the model's images: `forward(noise, labels)`.

    Raises:
        ValueError: the model does not hold it where it is looked for.
    """
    average = getattr(model, "ema", None)
    network = getattr(model, "generator", None) if average is None else average.network
    if not isinstance(network, nn.Module):
        raise ValueError(f"a {type(model).__name__} has no network called generator, which would be exported")
    return network


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and in evaluation mode, with parametrizations such as spectral norm worked in."""
    plain = copy.deepcopy(network).eval().float().cpu().requires_grad_(False)
    parametrized: list[Any] = [module for module in plain.modules() if parametrize.is_parametrized(module)]
    for module in parametrized:
        weights = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
        # Not `remove_parametrizations`: it takes the weight from the class, which the copy shares with the original.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return plain


def draw_with(path: Path, noise: Tensor, labels: Tensor) -> np.ndarray:
    """What an exported file draws: images float32 [N, C, H, W] in [-1, 1] from noise [N, ...] and labels int64 [N]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})
    return images
