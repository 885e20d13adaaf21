"""A trained generator as one ONNX file, which draws images without this project and without torch."""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from src.export.agreement import check_agreement, examples
from src.models.image_model import ImageModel
from src.models.modules.mixing import draw_between
from src.sampling.onnx_sampler import OnnxSampler
from src.sampling.sampler import About

# Export needs these besides torch; drawing needs onnxruntime alone.
REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def export_generator(model: ImageModel, path: Path, about: About, more: Mapping[str, str] | None = None) -> float:
    """Writes a model's sampler to a file, and tries the file.

    Its inputs are `noise`, float32 [N, ...], standard normal, and `labels`, int64 [N], or `prompts`, int64 [N, LENGTH],
    as `to_codes` makes them; its output is `images`, float32 [N, C, H, W] in [-1, 1]. N is free. Two more inputs may be
    left out: `others`, what to go to, and `weight`, float32 [N], how far, from 0 to 1. The model is left as it is.

    Args:
        model: trained.
        path: the file.
        about: kept as the file's metadata; `about.weights` says whether to export the moving average.
        more: further metadata.

    Returns:
        The largest difference between an image that the file draws and the model's, both in [-1, 1].

    Raises:
        ValueError: the file draws other images than the model.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    import onnx_ir

    average = about.weights == "ema"
    requests = examples(model)
    inputs = requests[1][:2]
    batch = {0: "batch"}
    for name in ("onnxscript", "onnx_ir"):  # they tell each step
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how torch names the axis
        program = torch.onnx.export(
            Interpolating(plain_copy(model.sampler(average))),
            (inputs.noise, inputs.condition, inputs.others, inputs.weight),
            dynamo=True,
            input_names=["noise", "prompts" if about.reads_text else "labels", "others", "weight"],
            output_names=["images"],
            dynamic_shapes=(batch,) * 4,
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    nothing = np.zeros((1, *model.condition_shape), np.int64)
    optional: dict[str, Any] = {"others": nothing, "weight": np.zeros(1, np.float32)}
    for value, (name, default) in zip(graph.inputs[2:], optional.items(), strict=True):
        # An input with a value may be left out: that one value then stands for every image.
        value.shape = onnx_ir.Shape(["batch_or_1", *default.shape[1:]])
        value.const_value = onnx_ir.tensor(default, name=name)
        graph.initializers[name] = value
    for node in graph:
        node.metadata_props.clear()  # where in the sources it comes from, with paths of this machine
        for value in node.outputs:
            if model.condition_shape and not value.is_graph_output():
                value.shape = None  # torch takes `others` to have N rows, and ONNX Runtime would believe it
    program.model.metadata_props.update(about.to_metadata() | {"range": "[-1, 1]"} | dict(more or {}))
    program.save(path, external_data=False)  # one file, weights and all

    opened = OnnxSampler(path, providers=["CPUExecutionProvider"])
    return check_agreement(opened.run, model, average, requests)


class Interpolating(nn.Module):
    """A sampler with two more inputs: what to go to, and how far."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noise: Tensor, condition: Tensor, others: Tensor, weight: Tensor) -> Tensor:
        """Noise [N, ...], condition and others int64 [N, ...], weight [N] -> images [N, C, H, W]."""
        return draw_between(self.network, noise, condition, others, weight)


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
