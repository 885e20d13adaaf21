"""What the numbers of a run mean, and which direction is better."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "near one", "not far below"]
SPLITS = ("test", "val")
IN_WORDS: dict[Better, str] = {
    "higher": "higher ↑",
    "lower": "lower ↓",
    "near one": "near 1",
    "not far below": "not far below real",
}


@dataclass(frozen=True)
class Measure:
    """A number that says how good images are; with `_floor` behind its name it is that of as many real images."""

    name: str
    title: str
    better: Better
    pattern: str
    meaning: str

    def show(self, value: float | None) -> str:
        """The number as it is written; "" where there is none."""
        return "" if value is None else self.pattern.format(value)

    def show_difference(self, value: float) -> str:
        """A difference with its sign."""
        shown = self.show(abs(value))
        sign = "+" if value > 0 else "\N{MINUS SIGN}"
        return f"{sign}{shown}" if shown.strip("0.%") else shown

    def is_better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        if self.better == "near one":
            return abs(a - 1) < abs(b - 1)
        return a > b if self.better == "higher" else a < b


MEASURES = (
    Measure("label_accuracy", "Label accuracy", "higher", "{:.2%}", "images taken for the class that was asked for"),
    Measure("worst_class_accuracy", "Worst class", "higher", "{:.2%}", "the same, of the class that does worst"),
    Measure("fd", "FD", "lower", "{:.3f}", "Fréchet distance: how far the images, as a whole, are from real ones"),
    Measure("kid", "KID", "lower", "{:z.4f}", "kernel distance: the same question, without assuming a bell curve"),
    Measure("precision", "Precision", "higher", "{:.3f}", "images that look like some real one"),
    Measure("density", "Density", "higher", "{:.3f}", "how many real ones they look like; may exceed 1"),
    Measure("recall", "Recall", "higher", "{:.3f}", "real images that look like some generated one: variety"),
    Measure("coverage", "Coverage", "higher", "{:.3f}", "real images with a generated one near by"),
    Measure(
        "within_class_variance",
        "Variance in class",
        "near one",
        "{:.2f}",
        "do images of a class differ as real ones do (1), or is it one image (0)?",
    ),
    Measure(
        "nearest_train",
        "Nearest training image",
        "not far below",
        "{:.2f}",
        "mean distance to it; far below that of real images, they are copies",
    ),
    Measure("cas", "CAS", "higher", "{:.2%}", "how well a classifier that saw nothing but samples reads real images"),
    Measure("inception_fid", "Inception FID", "lower", "{:.2f}", "the Fréchet distance of papers, on Inception"),
    Measure("inception_kid", "Inception KID", "lower", "{:z.4f}", "the kernel distance of papers, on Inception"),
    Measure("inception_score", "Inception Score", "higher", "{:.2f}", "sure of the class, and all classes there"),
)


def split_of(metrics: Mapping[str, float]) -> str | None:
    """Where a run's quality is read: `test`, else `val`; None where it was not measured."""
    return next((split for split in SPLITS if _is_measured(metrics, split)), None)


def common_split(many: Iterable[Mapping[str, float]]) -> str | None:
    """The split in which all runs that were measured were measured: their numbers compare."""
    measured = [metrics for metrics in many if split_of(metrics)]
    return next((split for split in SPLITS if measured and all(_is_measured(each, split) for each in measured)), None)


def _is_measured(metrics: Mapping[str, float], split: str) -> bool:
    return any(f"{split}/{measure.name}" in metrics for measure in MEASURES)


def duration(seconds: float | None) -> str:
    """Seconds for people: `13 min 4 s`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
