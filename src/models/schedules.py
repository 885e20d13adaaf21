"""How the learning rates change over a run. Each class maps progress, from 0 to 1, to a factor of the base rate."""

import math
from abc import ABC, abstractmethod

from src.config.types import Share


class Schedule(ABC):
    """A rise, a plateau and a fall. Shares are of the run's batches.

    Args:
        warmup: share over which the rate rises from 0.
        hold: share after which it falls.
        final: the factor at the end.

    Raises:
        ValueError: `warmup` ends after `hold`.
    """

    def __init__(self, warmup: Share = 0.0, hold: Share = 0.5, final: Share = 0.0) -> None:
        if warmup > hold:
            raise ValueError(f"warmup is {warmup}, after hold, which is {hold}: set hold to {warmup} or more")
        self.warmup = warmup
        self.hold = hold
        self.final = final

    def __call__(self, progress: float) -> float:
        """The factor after the share `progress` of all batches."""
        if progress < self.warmup:
            return progress / self.warmup
        if progress <= self.hold:
            return 1.0
        fallen = min(1.0, (progress - self.hold) / (1 - self.hold))
        return self.final + (1 - self.final) * self.fall(fallen)

    @abstractmethod
    def fall(self, share: float) -> float:
        """From 1 at `share` 0 to 0 at 1."""


class LinearSchedule(Schedule):
    """Falls in a straight line; arguments as in `Schedule`."""

    def fall(self, share: float) -> float:
        return 1 - share


class CosineSchedule(Schedule):
    """Falls along half a cosine (Loshchilov & Hutter 2017); arguments as in `Schedule`."""

    def fall(self, share: float) -> float:
        return (1 + math.cos(math.pi * share)) / 2
