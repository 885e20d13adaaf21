"""A trained generator as a program of torch.export, which torch alone draws images with."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.export.agreement import Draw, check_agreement, examples
from src.export.to_onnx import plain_copy
from src.models.image_model import ImageModel
from src.models.request import Request
from src.sampling.sampler import About


def export_program(model: ImageModel, path: Path, about: About, more: Mapping[str, str] | None = None) -> float:
    """Writes a model's sampler to a file, and tries the file.

    `torch.export.load(path).module()` takes noise, float32 [N, ...], and labels, int64 [N], or prompts, int64
    [N, LENGTH], and returns images, float32 [N, C, H, W] in [-1, 1]. N is free. What is known of the generator is JSON
    under the name `metadata.json`:
    `torch.export.load(path, extra_files=found)` puts it into the dictionary `found` where that has the name as a key.

    The format is torch's own: another version may not read it, and reading may unpickle, so that only files of people
    one trusts should be loaded. ONNX has neither drawback.

    Args:
        model: trained.
        path: the file.
        about: `about.weights` says whether to export the moving average.
        more: further metadata.

    Returns:
        The largest difference between an image that the file draws and the model's, both in [-1, 1].

    Raises:
        ValueError: the file draws other images than the model.
    """
    average = about.weights == "ema"
    request, _ = examples(model)
    batch = {0: torch.export.Dim("batch", min=1)}
    inputs = request.noise[:2], request.condition[:2]
    program = torch.export.export(plain_copy(model.sampler(average)), inputs, dynamic_shapes=(batch, batch))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    metadata = about.to_metadata() | {"range": "[-1, 1]"} | dict(more or {})
    file = io.BytesIO()  # torch would hide what the system says of a full disk
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    path.write_bytes(file.getbuffer())
    return check_agreement(program_run(path), model, average, [request[:1], request])


def program_run(path: Path) -> Draw:
    """Draws with an exported program of one's own."""
    return drawing(torch.export.load(io.BytesIO(path.read_bytes())).module())


def drawing(network: Callable[..., Tensor]) -> Draw:
    """Draws with a network that torch runs on the CPU in float32."""

    @torch.inference_mode()
    def draw(request: Request[np.ndarray]) -> np.ndarray:
        return network(torch.from_numpy(request.noise), torch.from_numpy(request.condition)).numpy()

    return draw
