"""What the numbers of a run mean, and which direction is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SPLITS = ("test", "val")


@dataclass(frozen=True)
class Measure:
    """A number that says how good images are; with `_floor` behind its name it is that of as many real images."""

    name: str
    title: str
    better: Literal["higher ↑", "lower ↓", "near 1", "near real"]
    pattern: str
    meaning: str

    def show(self, value: float | None) -> str:
        """The number as it is written; "" where there is none."""
        return "" if value is None else self.pattern.format(value)

    def is_better(self, a: float, b: float) -> bool:
        if self.better == "near 1":
            return abs(a - 1) < abs(b - 1)
        return a > b if self.better == "higher ↑" else a < b


MEASURES = (
    Measure("label_accuracy", "Label accuracy", "higher ↑", "{:.2%}", "images taken for the class that was asked for"),
    Measure("worst_class_accuracy", "Worst class", "higher ↑", "{:.2%}", "the same, of the class that does worst"),
    Measure("fd", "FD", "lower ↓", "{:.3f}", "Fréchet distance: how far the images, as a whole, are from real ones"),
    Measure("kid", "KID", "lower ↓", "{:z.4f}", "kernel distance: the same question, without assuming a bell curve"),
    Measure("precision", "Precision", "higher ↑", "{:.3f}", "images that look like some real one"),
    Measure("density", "Density", "higher ↑", "{:.3f}", "how many real ones they look like; may exceed 1"),
    Measure("recall", "Recall", "higher ↑", "{:.3f}", "real images that look like some generated one: variety"),
    Measure("coverage", "Coverage", "higher ↑", "{:.3f}", "real images with a generated one near by"),
    Measure(
        "within_class_variance",
        "Variance in class",
        "near 1",
        "{:.2f}",
        "do images of a class differ as real ones do (1), or is it one image (0)?",
    ),
    Measure(
        "nearest_train",
        "Nearest training image",
        "near real",
        "{:.2f}",
        "mean distance to it",
    ),
    Measure(
        "copied",
        "Copies",
        "near real",
        "{:.1%}",
        "images nearer to a training image than 99 % of real ones are",
    ),
    Measure("cas", "CAS", "higher ↑", "{:.2%}", "how well a classifier that saw nothing but samples reads real images"),
    Measure(
        "prompt_accuracy_seen",
        "Prompts in known words",
        "higher ↑",
        "{:.2%}",
        "label accuracy of prompts in phrasings that training has seen",
    ),
    Measure(
        "prompt_accuracy_held_out", "Prompts in new words", "higher ↑", "{:.2%}", "of phrasings that it has never seen"
    ),
    Measure("prompt_accuracy_typo", "Prompts with a typo", "higher ↑", "{:.2%}", "of those, with a typo in the name"),
    Measure("clip_score", "CLIP score", "higher ↑", "{:.2f}", "how well images fit their texts, as CLIP sees both"),
    Measure("inception_fid", "Inception FID", "lower ↓", "{:.2f}", "the Fréchet distance of papers, on Inception"),
    Measure("inception_kid", "Inception KID", "lower ↓", "{:z.4f}", "the kernel distance of papers, on Inception"),
    Measure("inception_score", "Inception Score", "higher ↑", "{:.2f}", "sure of the class, and all classes there"),
)


def split_of(*runs: Mapping[str, float]) -> str | None:
    """Where the quality of all runs that were measured is read: `test`, else `val`; None: there is no such split."""
    measured = [{split for split in SPLITS for each in MEASURES if f"{split}/{each.name}" in run} for run in runs]
    return next((split for split in SPLITS if any(measured) and all(split in each for each in measured if each)), None)


def duration(seconds: float | None) -> str:
    """Seconds for people: `13 min 4 s`."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
