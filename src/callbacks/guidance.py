"""What guidance and steps are worth: quality against how a model draws."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from rich.progress import track

from src.callbacks.quality import Enough, draw, evaluator_of, is_whole
from src.metrics.evaluator import SEEDS, Evaluator
from src.models.flow_model import Guidance, Steps
from src.models.image_model import ImageModel
from src.pictures.trade_off import draw_trade_off
from src.run.loggers import show
from src.run.run_record import as_recorded, log_record, step_of

MEASURED = ("fd", "label_accuracy", "precision", "recall")
TIMED = 64  # images of a request whose seconds are stated


class LogGuidance(Callback):
    """After the test, quality against guidance at the model's number of steps, and against steps at its guidance.

    Guidance makes images more typical and lets them vary less; steps cost time. For each value: `fd`,
    `label_accuracy`, `precision` and `recall` of `LogQuality`, with `_floor` for as many real images, and the
    `seconds` that 64 images took in one request. They are pictures, `guidance` and `steps`, in every logger that takes
    pictures; tables of W&B, `by_guidance` and `by_steps`; and the same in the run's record, of which the report draws
    curves.

    With the defaults it costs 177 evaluations of the network times `n`, of which a third are for 16 steps: as much as
    drawing 13 times `n` images as a model with 4 steps of Heun's method and guidance draws them. It leaves out models
    without a guidance in `drawing`, runs without `LogQuality`, and tests that `trainer.limit_test_batches` shortens.
    Images are those of the test's first labels and noise. No random number of the run is used.

    Args:
        guidances: weights of guidance to measure; 1: none.
        steps: numbers of steps to measure.
        n: images drawn for each; fewer if the test draws fewer.
    """

    def __init__(
        self,
        guidances: Sequence[Guidance] = (1, 1.25, 1.5, 2, 3, 4),
        steps: Sequence[Steps] = (1, 2, 4, 8, 16),
        n: Enough = 1_000,
    ) -> None:
        self.values: dict[str, list[float]] = {"guidance": sorted(guidances), "steps": sorted(steps)}
        self.n = n

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        evaluator = evaluator_of(trainer, "test")
        if evaluator is None or "guidance" not in pl_module.drawing or not is_whole(trainer):
            return
        usual = pl_module.drawing
        settings = {option: [{**usual, option: value} for value in values] for option, values in self.values.items()}
        console = Console(stderr=True)
        todo = [each for some in settings.values() for each in some]
        todo = [each for i, each in enumerate(todo) if each not in todo[:i]]
        shown = console.is_terminal and trainer.is_global_zero
        found = []
        try:
            for setting in track(todo, "guidance and steps", console=console, transient=True, disable=not shown):
                pl_module.drawing = setting
                found.append(self._measure(trainer, pl_module, evaluator))
        finally:
            pl_module.drawing = usual
        if not trainer.is_global_zero:
            return
        held_out = evaluator.held_out[: self.n]
        real = evaluator.measure(evaluator.real["val"].at(held_out)).metrics
        floor = {f"{name}_floor": as_recorded(real[name]) for name in MEASURED}
        for option, some in settings.items():
            rows = [{option: each[option], **found[todo.index(each)], **floor} for each in some]
            log_record(trainer, f"by_{option}", rows)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    data = [list(row.values()) for row in rows]
                    logger.log_table(f"by_{option}", [*rows[0]], data, step=step_of(trainer))
            said = [f"{key} {value}" for key, value in usual.items() if key != option and value not in ("", None)]
            caption = f"the test, {len(held_out):,} images a point: {', '.join(said)}"
            show(trainer, option, draw_trade_off(option, rows), caption, f"pictures/{option}.png")

    def _measure(self, trainer: Trainer, model: ImageModel, evaluator: Evaluator) -> dict[str, float]:
        """The quality of images as the model now draws them, and how long 64 take; nothing but on the first process."""
        labels = evaluator.labels[: self.n]
        pixels = draw(trainer, model, labels, SEEDS["test"])
        if not trainer.is_global_zero:
            return {}
        request = torch.arange(TIMED) % model.n_classes
        seconds = []
        for seed in range(2):  # the quicker one: other processes disturb
            begun = time.perf_counter()
            model.generate(request, torch.Generator().manual_seed(seed)).cpu()
            seconds.append(time.perf_counter() - begun)
        metrics = evaluator.measure(evaluator.net.embed(pixels, labels)).metrics
        return {"seconds": as_recorded(min(seconds))} | {name: as_recorded(metrics[name]) for name in MEASURED}
