"""What a reviewer sees of a model that reads text. For other models, these callbacks do nothing."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from src.callbacks.quality import draw, evaluator_of, is_whole
from src.callbacks.wandb_callbacks import InARow, when_due
from src.config.types import Count
from src.errors import UserError
from src.metrics.evaluator import SEEDS
from src.metrics.scores import class_accuracy
from src.models.image_model import ImageModel
from src.models.prompts import check_prompts, to_texts
from src.pictures.pixels import to_grid
from src.pictures.prompts import beside_rows
from src.run.loggers import show

GAP = 24  # pixels between images with and without an adapter
ROWS = 10  # prompts that are chosen where none are given


class LogPromptGrid(Callback):
    """A grid of images of prompts: one row a prompt, one column a seed.

    It goes to `pictures/prompt_imgs/epoch_NNNN.png` in the run folder, and as `prompt_imgs` to every logger that takes
    pictures. The prompts stand beside the rows, as far as there is room, and in the caption. Where a published model is
    fine-tuned, its own images of the same noise stand at the right of those.

    Args:
        prompts: what to draw; None: phrasings of classes that training never sees, or captions of validation images.
        n_per_prompt: images a row.
        seed: determines the noise, and which phrasings are chosen.

    Raises:
        ValueError: a prompt is empty or too long.
    """

    def __init__(
        self,
        prompts: Sequence[str] | None = None,
        n_per_prompt: InARow = 10,
        every_n_epochs: Count = 1,
        seed: int = 0,
    ) -> None:
        check_prompts(prompts or ())
        self.prompts = prompts
        self.n_per_prompt = n_per_prompt
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._before: np.ndarray | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses prompts for a model that reads none."""
        if self.prompts and not reads_text(pl_module):
            raise UserError(
                "callbacks.prompt_grid.prompts are for a model that reads text, and this one does not: set"
                " callbacks.prompt_grid.prompts=null, or train another, such as experiment=train_mnist_text2image"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        when = when_due(trainer, self.every_n_epochs)
        if not when or not reads_text(pl_module):
            return
        prompts = self.prompts or some_prompts(pl_module, trainer.datamodule, self.seed)  # type: ignore[attr-defined]
        if not prompts:
            return
        noise = pl_module.draw_noise(self.n_per_prompt, torch.Generator().manual_seed(self.seed))
        noise = noise.repeat(len(prompts), *[1] * (noise.dim() - 1))
        codes = pl_module.encode(prompts)
        pl_module.expect([codes])
        condition = codes.repeat_interleave(self.n_per_prompt, 0)
        cells, beside = to_grid(pl_module.generate(condition, noise=noise), self.n_per_prompt), ""
        if pl_module.has_base:
            if self._before is None:  # it stays the same
                with pl_module.as_base():
                    self._before = to_grid(pl_module.generate(condition, noise=noise), self.n_per_prompt)
            gap = np.full((len(cells), GAP, 3), 255, np.uint8)
            cells, beside = np.concatenate([cells, gap, self._before], 1), ", at the right without the adapter"
        path = f"pictures/prompt_imgs/epoch_{trainer.current_epoch:04d}.png"
        show(trainer, "prompt_imgs", beside_rows(cells, prompts), f"{when}{beside}: {'; '.join(prompts)}", path)


class LogPromptAccuracy(Callback):
    """Logs after the test how often the classifier of `LogQuality` sees the class that a prompt asks for.

    - `test/prompt_accuracy_seen`: phrasings that training has seen.
    - `test/prompt_accuracy_held_out`: others.
    - `test/prompt_accuracy_typo`: those others, with a typo in the name of the class.

    Each stands beside the accuracy on real held-out images, with `_floor`. All classes count alike. Prompts and noise
    are always the same. It leaves out models without phrasings for classes, runs without `LogQuality`, and
    tests that `trainer.limit_test_batches` shortens.

    Args:
        n: images of each kind of prompt.
    """

    def __init__(self, n: Count = 500) -> None:
        self.n = n

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        evaluator, prompts = evaluator_of(trainer, "test"), getattr(pl_module, "prompts", None)
        if evaluator is None or prompts is None or not prompts.templates or not is_whole(trainer):
            return
        labels = torch.arange(self.n) % pl_module.n_classes
        floor = float(class_accuracy(evaluator.floor.confusion).nanmean())
        logged = {}
        for kind in ("seen", "held_out", "typo") if prompts.held_out else ("seen",):
            rng = random.Random(0)
            condition = pl_module.encode([prompts.phrase(label, kind, rng) for label in labels.tolist()])
            pl_module.expect([condition])
            pixels = draw(trainer, pl_module, condition, SEEDS["test"])
            logged[f"test/prompt_accuracy_{kind}"] = evaluator.net.embed(pixels, labels).accuracy
            logged[f"test/prompt_accuracy_{kind}_floor"] = floor
        pl_module.log_dict(logged, batch_size=self.n, sync_dist=True)  # every process has measured the same images


def reads_text(model: Any) -> bool:
    return isinstance(model, ImageModel) and bool(model.condition_shape)


def some_prompts(model: ImageModel, datamodule: Any, seed: int) -> list[str]:
    """At most `ROWS` prompts: of classes, in words that are held out where there are any, else captions; or none."""
    if model.prompts is not None and model.prompts.templates and model.n_classes:  # else it learns from captions
        rng = random.Random(seed)
        n = model.n_classes
        classes = [i * n // min(n, ROWS) for i in range(min(n, ROWS))]
        return [model.prompts.phrase(label, "held_out" if model.prompts.held_out else "seen", rng) for label in classes]
    data = datamodule.sets["val"]
    _, condition = data.__getitems__([i * len(data) // min(len(data), ROWS) for i in range(min(len(data), ROWS))])
    texts = to_texts(condition.numpy()) if condition.dim() > 1 else []
    return [text for text in dict.fromkeys(texts) if text]
