"""How long drawing takes, by one way and another."""

import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch.utils.benchmark import Timer

from src.export.agreement import Draw
from src.export.to_onnx import plain_copy
from src.export.to_torch import drawing, program_run
from src.models.compiled import Compiled
from src.models.request import Request
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.onnx_sampler import OnnxSampler
from src.sampling.sampler import About, Noise

BATCHES = (1, 16, 256)
ROUNDS = 5


def ways_to_draw(sampler: CheckpointSampler, made: Mapping[str, Path], compiled: bool) -> dict[str, Draw]:
    """The model as torch runs it and the files that were made, each on as many threads as torch has, by name.

    Args:
        sampler: the model.
        made: its files, by format.
        compiled: whether to have torch compile it, too.

    Raises:
        UserError: torch cannot compile it.
    """
    network = plain_copy(sampler.model.sampler(sampler.about.weights == "ema"))

    ways = {"torch eager": drawing(network)}
    if compiled:
        way = ways["torch compiled"] = drawing(Compiled(network, "compile"))
        way(request_for(sampler.about, 1))
    if "torch" in made:
        ways["torch.export"] = program_run(made["torch"])
    for each, name in (("onnx", "float32"), ("int8", "int8")):
        if each in made:
            opened = OnnxSampler(made[each], torch.get_num_threads())
            there = opened.session.get_providers()
            on = next((f", {each}" for each in ("Tensorrt", "CUDA") if f"{each}ExecutionProvider" in there), "")
            ways[f"ONNX {name}{on}"] = opened.run
    return ways


def request_for(about: About, n: int) -> Request[np.ndarray]:
    """A request of n images, as a network reads it."""
    return Request(Noise(about.noise_shape, 0)(n), about.condition(about.examples(n)))


def latencies(ways: Mapping[str, Draw], about: About, seconds: float) -> dict[str, dict[int, float]]:
    """Times each way of drawing, all in turn and several times over, so that a busy machine hits all alike.

    Args:
        ways: what draws, by name.
        about: the model that they draw with.
        seconds: for each way and batch size, at least.

    Returns:
        The median seconds of a batch, by way and then by batch size.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in ways}
    for batch in BATCHES:
        request = request_for(about, batch)
        timers = {
            name: Timer(
                "draw(request)", globals={"draw": draw, "request": request}, num_threads=torch.get_num_threads()
            )
            for name, draw in ways.items()
        }
        rounds = [
            {name: timer.blocked_autorange(min_run_time=seconds / ROUNDS).median for name, timer in timers.items()}
            for _ in range(ROUNDS)
        ]
        for name in ways:
            found[name][batch] = statistics.median(each[name] for each in rounds)
    return found


def rows(found: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """A row a way: its name, and for each batch size the milliseconds of a batch and the images of a second."""
    return [
        [name, *(text for batch in BATCHES for text in (f"{1e3 * each[batch]:,.2f}", f"{batch / each[batch]:,.0f}"))]
        for name, each in found.items()
    ]


def titles() -> list[str]:
    """What stands above the columns of `rows`."""
    return ["drawn by", *(title for batch in BATCHES for title in (f"{batch}: ms", "images/s"))]


def to_table(found: Mapping[str, Mapping[int, float]], title: str) -> Table:
    """The same for the terminal."""
    table = Table(*titles(), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(found):
        table.add_row(*row)
    return table


def threads() -> str:
    """How many threads draw."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}"
