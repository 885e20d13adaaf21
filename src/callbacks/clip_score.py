"""The CLIP score of a run, for captions as well as for classes."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from src.callbacks.quality import draw, is_whole, on_rank_zero, require_images
from src.config.types import Count
from src.metrics.clip_score import ClipScore
from src.metrics.evaluator import SEEDS, choice
from src.models.prompts import to_texts
from src.pictures.pixels import to_pixels


class LogClipScore(Callback):
    """Logs after the test `test/clip_score` (see `ClipScore`) of images of the test split's captions or classes.

    With `_floor` that of the test split's own images. A class is asked for by its canonical prompt, or by its name
    where the model reads no text. A test that `trainer.limit_test_batches` shortens is left out.

    Args:
        weights: a folder that holds a CLIP model, or its name on the Hugging Face hub.
        n: images drawn; fewer if the test split has fewer.
    """

    def __init__(self, weights: str | None = None, n: Count = 1_000) -> None:
        self.weights = weights
        self.n = n
        self._score: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out before training whether the weights can be had."""
        require_images("callbacks.clip_score", pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        if self._score is None:
            on_rank_zero(trainer, lambda: self._load(trainer.strategy.root_device))

    def _load(self, device: torch.device) -> None:
        self._score = ClipScore(self.weights, "callbacks.clip_score.weights", device)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not is_whole(trainer):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = choice(len(data.sets["test"]), self.n)
        real, condition = data.sets["test"].__getitems__(rows.tolist())
        if condition.dim() > 1:
            said = condition.any(1)
            real, condition = real[said], condition[said]
            texts = to_texts(condition.numpy())
        else:
            texts = [(pl_module.prompts_of_classes or data.class_names)[label] for label in condition.tolist()]
        drawn = draw(trainer, pl_module, condition, SEEDS["test"])
        found = on_rank_zero(trainer, lambda: [self._score(each, texts) for each in (drawn, to_pixels(real))])
        logged = dict(zip(("test/clip_score", "test/clip_score_floor"), found, strict=True))
        pl_module.log_dict(logged, batch_size=len(texts), sync_dist=True)
