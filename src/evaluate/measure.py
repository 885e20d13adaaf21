"""Measures inputs beside real images, and says which is the best and how sure that is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.errors import UserError
from src.evaluate.inputs import Input
from src.metrics.alarms import Quality
from src.metrics.copies import N_NEAREST
from src.metrics.evaluator import Evaluator
from src.metrics.feature_net import Embedded
from src.metrics.references import LEAST, load_references
from src.pictures.pixels import to_pixels
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER

GROUPS = 10  # each of which is left out once
SURE = 2  # standard errors that a difference must exceed to be called one


@dataclass
class Real:
    """Real images, served at one size."""

    evaluator: Evaluator
    sha256: str  # of the data
    floors: dict[str, float]
    clip: Callable[[Tensor, Tensor], float] | None  # the CLIP score of images uint8 [N, C, H, W] of labels [N]


@dataclass
class Result:
    """What is found about an input."""

    source: Input
    real: Real
    pixels: Tensor  # uint8 [N, C, H, W], of the first 1,000
    embedded: Embedded
    quality: Quality
    metrics: dict[str, float]
    alarms: dict[str, str]
    seconds: float


def measure_real(
    datamodule: ImageDataModule,
    counts: Tensor | None,
    config: DictConfig,
    clip: Callable[[Tensor, Tensor], float] | None = None,
) -> Real:
    """The reference and the floor: held-out images, no more of a class than every input has.

    Raises:
        UserError: the inputs have too few images, or the features mean too little.
    """
    cpu = torch.device("cpu")
    references = load_references(datamodule, Path(config.data_dir).expanduser() / "features", cpu)
    evaluator = Evaluator(datamodule, references, config.n, cpu, counts)
    if evaluator.n < LEAST:
        raise UserError(
            f"ckpt_path has too few images of the classes of {datamodule.source!r}: every input has {evaluator.n}, but"
            f" at least {LEAST} are needed"
        )
    floors = dict(evaluator.floor.metrics)
    if config.cas:
        floors["cas"] = evaluator.cas_floor
    if clip is not None:
        real, _ = datamodule.references["val"].__getitems__(evaluator.held_out[:N_NEAREST].tolist())
        floors["clip_score"] = clip(to_pixels(real), evaluator.labels[:N_NEAREST])
    return Real(evaluator, datamodule.sha256(), floors, clip)


def measure(source: Input, real: Real, console: Console) -> Result:
    """Everything about one input; trains a classifier on its images where the floors have `cas`."""
    evaluator = real.evaluator
    begun = time.perf_counter()
    pixels = source.images(evaluator.labels, "test", console)
    with console.status(f"measuring {escape(source.name)}"):
        embedded = evaluator.net.embed(pixels, evaluator.labels)
        quality = evaluator.measure(embedded)
    found = dict(quality.metrics)
    if "cas" in real.floors:
        found["cas"] = evaluator.cas(source.images(evaluator.cas_labels, "cas", console))
    if real.clip is not None:
        found["clip_score"] = real.clip(pixels[:N_NEAREST], evaluator.labels[:N_NEAREST])
    raised = evaluator.alarms(quality) | (source.checkpoint.model.alarms(found) if source.checkpoint else {})
    if source.data_sha256 not in (None, real.sha256):
        raised["data"] = (
            f"it was trained on other images than these of {evaluator.datamodule.source}, or on other splits of them:"
            " it may have seen what it is tested on"
        )
    seconds = round(time.perf_counter() - begun, 1)
    return Result(source, real, pixels[:N_NEAREST], embedded, quality, found, raised, seconds)


def compare(results: Sequence[Result], console: Console) -> dict[str, dict[str, Any]]:
    """The best input by each metric that ranks images.

    Returns:
        For each metric `best`, the input's name, `ahead`, by how much the next one is worse, `standard_error` of that
        difference, and `sure`, whether it is more than twice as large as the error, for every other input. Empty for
        one input, and for inputs of several sizes, whose floors differ.
    """
    if len(results) < 2 or any(result.real is not results[0].real for result in results):
        return {}
    evaluator = results[0].real.evaluator
    group = torch.arange(evaluator.n) % GROUPS
    estimates: list[list[dict[str, float]]] = [[] for _ in results]
    work = [(i, left_out) for i in range(len(results)) for left_out in range(GROUPS)]
    for i, left_out in track(work, "comparing", console=console):
        images = results[i].embedded.at((group != left_out).nonzero().flatten())
        estimates[i].append(evaluator.measure(images).metrics)
    found = {}
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        if name not in estimates[0][0]:  # `cas` would take as many classifiers
            continue
        sign = 1 if name in HIGHER_IS_BETTER else -1
        values = [sign * result.metrics[name] for result in results]
        best = int(np.argmax(values))
        leads = []
        for value, estimate in [pair for i, pair in enumerate(zip(values, estimates, strict=True)) if i != best]:
            error = standard_error([a[name] - b[name] for a, b in zip(estimates[best], estimate, strict=True)])
            leads.append((values[best] - value, error))
        ahead, error = min(leads)
        sure = all(lead > SURE * its_error for lead, its_error in leads)
        found[name] = {"best": results[best].source.name, "ahead": ahead, "standard_error": error, "sure": sure}
    return found


def standard_error(estimates: Sequence[float]) -> float:
    """The standard error of a number from its values without each of G groups (Tukey 1958; Efron & Stein 1981).

    Given differences of two numbers, it is that of the difference: what both have in common, such as noise and labels,
    does not count.
    """
    n, values = len(estimates), torch.tensor(estimates, dtype=torch.float64)
    return float(((values - values.mean()).square().sum() * (n - 1) / n).sqrt())
