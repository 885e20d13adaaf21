"""Measures one input beside the real images."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from torch import Tensor

from src.evaluate.copies import Nearest, copied, nearest_training_images
from src.evaluate.inputs import Input
from src.metrics.alarms import Quality
from src.metrics.evaluator import N_NEAREST, Evaluator
from src.metrics.feature_net import Embedded

COPIES, FEW = 0.05, 5  # an alarm is raised above this share of copies and this many more images


class Real(NamedTuple):
    """Real images, served at one size."""

    evaluator: Evaluator
    sha256: str  # of the data
    nearest: Nearest  # of the first 1,000 of the evaluator's held-out images


@dataclass
class Result:
    """What is found about an input."""

    source: Input
    pixels: Tensor  # uint8 [N, C, H, W], of the first 1,000
    embedded: Embedded
    quality: Quality
    nearest: Nearest
    metrics: dict[str, float]
    floors: dict[str, float]
    alarms: dict[str, str]
    seconds: float


def measure(source: Input, real: Real, cas: bool, console: Console) -> Result:
    """Everything about one input; `cas` trains a classifier on its images, too."""
    evaluator = real.evaluator
    floors = evaluator.floor.metrics | {"copied": copied(real.nearest, real.nearest)}
    if cas:
        floors["cas"] = evaluator.cas_floor
    begun = time.perf_counter()
    pixels = source.images(evaluator.labels, "test", console)
    with console.status(f"measuring {escape(source.name)}"):
        embedded = evaluator.net.embed(pixels, evaluator.labels)
        quality = evaluator.measure(embedded)
        nearest = nearest_training_images(embedded.features[:N_NEAREST], evaluator.real["train"].features)
        found = quality.metrics | {"copied": copied(nearest, real.nearest)}
    if cas:
        found["cas"] = evaluator.cas(source.images(evaluator.cas_labels, "cas", console))
    raised = evaluator.alarms(quality) | (source.checkpoint.model.alarms(found) if source.checkpoint else {})
    share = found["copied"]
    if share > COPIES + FEW / len(nearest.closeness):
        text = f"training images are copied ({share:.1%} of the images are nearer to one than 99% of real images are)"
        raised.setdefault("copies", text)
    if source.data_sha256 not in (None, real.sha256):
        raised["data"] = (
            f"it was trained on other images than these of {evaluator.datamodule.source}, or on other splits of them:"
            " it may have seen what it is tested on"
        )
    seconds = round(time.perf_counter() - begun, 1)
    return Result(source, pixels[:N_NEAREST], embedded, quality, nearest, found, floors, raised, seconds)
