"""A trained generator as a program of torch.export, which torch alone draws images with."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from src.export.to_onnx import N_CHECKED, difference, plain_copy, tolerance
from src.models.image_model import ImageModel
from src.sampling.sampler import About


def export_program(model: ImageModel, path: Path, about: About, more: Mapping[str, str] | None = None) -> float:
    """Writes a model's sampler to a file, and tries the file.

    `torch.export.load(path).module()` takes noise, float32 [N, ...], and labels, int64 [N], and returns images, float32
    [N, C, H, W] in [-1, 1]. N is free. What is known of the generator is JSON under the name `metadata.json`:
    `torch.export.load(path, extra_files=found)` puts it into the dictionary `found` where that has the name as a key.

    The format is torch's own: another version may not read it, and reading may unpickle, so that only files of people
    one trusts should be loaded. ONNX has neither drawback.

    Args:
        model: trained.
        path: of the file.
        about: `about.weights` says whether to export the moving average.
        more: further metadata.

    Returns:
        The largest difference between an image that the file draws and the model's, both in [-1, 1].

    Raises:
        ValueError: the file draws other images than the model.
    """
    average = about.weights == "ema"
    rng = torch.Generator().manual_seed(0)
    noise = model.draw_noise(N_CHECKED, rng).float()
    labels = torch.arange(N_CHECKED) % model.n_classes
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(
        plain_copy(model.sampler(average)), (noise[:2], labels[:2]), dynamic_shapes=(batch, batch)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    metadata = about.to_metadata() | {"range": "[-1, 1]"} | dict(more or {})
    file = io.BytesIO()  # torch would hide what the system says of a disk that is full
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    path.write_bytes(file.getbuffer())

    draw = torch.export.load(io.BytesIO(path.read_bytes())).module()
    start = noise.to(model.dtype)
    with torch.no_grad():
        largest = max(
            difference(
                draw(noise[:n], labels[:n]).numpy(), model.generate(labels[:n], noise=start[:n], average=average)
            )
            for n in (1, N_CHECKED)
        )
    if not largest <= tolerance(model):
        raise ValueError("the exported program does not draw what the model draws")
    return largest
