"""Whether an exported file draws what its model draws."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from src.models.image_model import ImageModel
from src.models.request import Request

N_CHECKED = 7  # images; another number than the file was exported with
Draw = Callable[[Request[np.ndarray]], np.ndarray]  # as `Sampler.run`
# The largest difference in images in [-1, 1]: other kernels round differently, a GPU and half precision far more so.
EXACT, COARSE = 1e-4, 5e-2


def examples(model: ImageModel) -> list[Request[Tensor]]:
    """Float32 inputs on the CPU: one request of conditions, and one between conditions."""
    rng = torch.Generator().manual_seed(0)
    noise = model.draw_noise(N_CHECKED, rng).float()
    if model.n_classes:
        condition = model.as_condition(torch.arange(N_CHECKED) % model.n_classes)
    else:
        condition = model.encode([f"picture {i}" for i in range(N_CHECKED)])
    others, weight = condition.flip(0), torch.rand(N_CHECKED, generator=rng)
    return [Request(noise, condition), Request(noise, condition, others, weight)]


def check_agreement(
    draw: Draw, model: ImageModel, average: bool, requests: list[Request[Tensor]], coarse: bool = False
) -> float:
    """The largest difference between images in [-1, 1] that a file and its model draw.

    Args:
        draw: draws with the file.
        model: what was exported.
        average: whether it was the moving average of the weights.
        requests: some of `examples`.
        coarse: whether the file computes less exactly than float32.

    Raises:
        ValueError: they draw other images.
    """
    exact = not coarse and (model.device.type, model.dtype) == ("cpu", torch.float32)
    largest = 0.0
    for request in requests:
        start = replace(request, noise=request.noise.to(model.dtype))
        expected = model.draw(start, average).float().cpu().numpy()
        drawn = draw(request.map(Tensor.numpy))
        difference = np.abs(drawn - expected).max() if drawn.shape == expected.shape else np.inf
        largest = max(largest, float(difference))
    if not largest <= (EXACT if exact else COARSE):
        raise ValueError("the exported file does not draw what the model draws")
    return largest
