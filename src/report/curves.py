"""Which curves the page shows, of one run or of several laid over each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.report.figures import Figure, Level, Line, draw
from src.report.run_folder import Run
from src.report.verdict import threshold_of

EPOCH = "epoch, from 0"
BATCH = "batches"
REAL = "Dashed: what as many real images get."
LOSSES = "In training. They rank no samples: look for what runs away or breaks off."
PAIRS = "A real and a generated image. 50%: D cannot tell; 100%: it has won, and G learns little from it."


def curves_of_one(run: Run) -> list[Figure]:
    """The curves of one run, those of quality first."""
    threshold = threshold_of(run)
    limit = "" if threshold is None else " Dashed: above it, D takes an image for real."
    page = _Figures([run], [0], [""])
    page.quality("Fréchet distance", f"Lower is better. {REAL}", {"fd": "FD"}, "FD, no unit", log=True)
    page.quality(
        "Label accuracy",
        f"Images of the class that was asked for: of all, and of the class that does worst. Higher is better. {REAL}",
        {"label_accuracy": "all", "worst_class_accuracy": "worst"},
        "share of images",
        percent=True,
    )
    page.quality(
        "Variety",
        "Real images with a like among the generated. Higher is better. Dashed: recall of as many real images.",
        {"recall": "recall", "coverage": "coverage"},
        "share of real images",
        percent=True,
    )
    page.quality(
        "Variance within classes",
        "1: images of a class differ as real ones do; 0: one image a class.",
        {"within_class_variance": "generated"},
        "share of that of real images",
    )
    page.training("Losses", LOSSES, {"train/g_loss": "G", "train/d_loss": "D"}, "loss, no unit")
    page.training(
        "D's scores",
        f"Means in training. The further apart, the better D tells them apart.{limit}",
        {"train/d_real": "real", "train/d_fake": "generated"},
        "score, no unit",
        levels=[] if threshold is None else [Level(threshold, "limit")],
    )
    page.by_epoch("Pairs that D puts in order", PAIRS, {"val/d_pair_accuracy": "D"}, "share of pairs", percent=True)
    page.training(
        "Gradient norms",
        "Of all weights of a network together, before clipping.",
        {"train/grad_norm_g": "G", "train/grad_norm_d": "D"},
        "norm, no unit",
        log=True,
    )
    page.training("Speed", "In training, without validation.", {"train/images_per_s": "both"}, "images per second")
    return page.drawn


def curves_of_several(runs: Sequence[Run], styles: Sequence[int], letters: Sequence[str]) -> list[Figure]:
    """One metric a figure, all runs in it.

    Args:
        runs: what to show.
        styles: for each run, how its lines look.
        letters: for each run, what stands at the end of its lines.
    """
    page = _Figures(runs, styles, letters)
    page.quality("Fréchet distance", f"Lower is better. {REAL}", {"fd": ""}, "FD, no unit", log=True)
    for title, name in (("Label accuracy", "label_accuracy"), ("Accuracy of the worst class", "worst_class_accuracy")):
        page.quality(title, f"Higher is better. {REAL}", {name: ""}, "share of images", percent=True)
    note = f"Real images with a like among the generated. Higher is better. {REAL}"
    page.quality("Recall", note, {"recall": ""}, "share of real images", percent=True)
    page.quality(
        "Variance within classes",
        "1: images of a class differ as real ones do; 0: one image a class.",
        {"within_class_variance": ""},
        "share of that of real images",
    )
    page.by_epoch("Pairs that D puts in order", PAIRS, {"val/d_pair_accuracy": ""}, "share of pairs", percent=True)
    page.training("Loss of the generator", LOSSES, {"train/g_loss": ""}, "loss, no unit")
    page.training("Loss of the discriminator", LOSSES, {"train/d_loss": ""}, "loss, no unit")
    page.training("Speed", "In training, without validation.", {"train/images_per_s": ""}, "images per second")
    return page.drawn


class _Figures:
    """Draws figures one after the other; one that would be empty is left out."""

    def __init__(self, runs: Sequence[Run], styles: Sequence[int], letters: Sequence[str]) -> None:
        self.runs = list(zip(runs, styles, letters, strict=True))
        self.drawn: list[Figure] = []

    def quality(self, title: str, note: str, names: dict[str, str], y_label: str, **options: Any) -> None:
        """What validations found, over epochs, with the floor of the first metric."""
        floor = f"val/{next(iter(names))}_floor"
        floors = [run.metrics[floor] for run, _, _ in self.runs if floor in run.metrics]
        levels = [Level(float(np.mean(floors)), "real")] if floors else []
        found = {f"val/{name}": label for name, label in names.items()}
        self.by_epoch(title, note, found, y_label, levels=levels, **options)

    def by_epoch(self, title: str, note: str, names: dict[str, str], y_label: str, **options: Any) -> None:
        self._draw(title, note, self._lines(names, "epochs"), EPOCH, y_label, **options)

    def training(self, title: str, note: str, names: dict[str, str], y_label: str, **options: Any) -> None:
        self._draw(title, note, self._lines(names, "steps"), BATCH, y_label, **options)

    def _lines(self, names: dict[str, str], axis: str) -> list[Line]:
        found = []
        for run, style, letter in self.runs:
            for i, (name, label) in enumerate(names.items()):
                curve = run.curves.get(name)
                if curve is not None:
                    x = getattr(curve, axis)
                    kept = np.isfinite(x)
                    found.append(Line(x[kept], curve.values[kept], letter or label, style + i))
        return found

    def _draw(self, title: str, note: str, lines: list[Line], x_label: str, y_label: str, **options: Any) -> None:
        options |= {"number": len(self.drawn) + 1, "bands": len(self.runs) == 1}
        figure = draw(title, note, lines, x_label, y_label, **options)
        if figure:
            self.drawn.append(figure)
