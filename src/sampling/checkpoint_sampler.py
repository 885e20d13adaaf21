"""Draws with a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.request import Request
from src.run.checkpoints import build_model, read_checkpoint
from src.run.files import sha256_of
from src.sampling.sampler import BLOCK, About, Sampler


class CheckpointSampler(Sampler):
    """Draws with the model that a checkpoint holds.

    Args:
        path: the checkpoint.
        weights: `ema`: the moving average of the weights where there is one; `raw`: the weights themselves.
        trusted: packages other than ours whose classes it may name, each with a dot at its end.
        drawing: how to draw, where another way than the model's own is wanted, by the keys of `ImageModel.drawing`.

    Raises:
        UserError: the checkpoint cannot be used, its model draws no images of classes, or it cannot draw that way.
    """

    def __init__(
        self,
        path: Path,
        weights: str = "ema",
        trusted: Sequence[str] = (),
        drawing: Mapping[str, Any] | None = None,
    ) -> None:
        checkpoint = read_checkpoint(path)
        model: Any = build_model(checkpoint, path, trusted)
        if not isinstance(model, ImageModel):
            raise UserError(
                f"ckpt_path={path} holds a {type(model).__name__}, which draws no images of classes: choose another one"
            )
        try:
            model.draw_with(drawing or {})
        except ValueError as error:
            raise UserError(f"{error}, or choose another ckpt_path") from error
        if model.images_at_once is not None:
            self.block = min(BLOCK, model.images_at_once)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.trusted = trusted
        # As the file has it, not to be trusted: how the data were served, and which they were.
        self.datamodule, self.data = checkpoint["config"].get("datamodule"), checkpoint.get("data")
        self._average = weights == "ema"
        trainer = checkpoint["config"].get("trainer")
        self.trained_in_bfloat16 = isinstance(trainer, Mapping) and trainer.get("precision") == "bf16-mixed"
        self.bfloat16 = False  # draws in single precision, alike on every machine
        self.about = about_model(
            model,
            weights,
            run=checkpoint["config"].get("name"),
            data=checkpoint.get("data") or {"source": checkpoint["config"].get("data_source")},
            commit=checkpoint.get("commit", "unknown"),
            path=path,
        )

    def run(self, request: Request[np.ndarray]) -> np.ndarray:
        tensors = request.map(torch.from_numpy)
        tensors = replace(tensors, noise=tensors.noise.to(self.model.dtype))
        return self.model.draw(tensors, self._average, self.bfloat16).float().cpu().numpy()


def about_model(model: ImageModel, weights: str, run: Any, data: Any, commit: Any, path: Path | None) -> About:
    """Describes a trained model for the files that are made of it.

    Args:
        model: the trained model.
        weights: `ema` or `raw`; without a moving average, both are `raw`.
        run: the name of the run that trained it.
        data: what `run.json` says of its data: `source` and `classes`, if known.
        commit: the code that trained it.
        path: the checkpoint; None: it was never written.
    """
    data = data if isinstance(data, Mapping) else {}
    names = data.get("classes")
    if not isinstance(names, list) or len(names) != model.n_classes:
        names = list(range(model.n_classes))  # data modules of one's own need not name them
    return About(
        n_classes=model.n_classes,
        class_names=tuple(map(str, names)),
        channels=model.channels,
        img_size=model.img_size,
        noise_shape=model.noise_shape,
        reads_text=bool(model.condition_shape),
        prompts=tuple(model.prompts_of_classes),
        drawing=dict(model.drawing),
        weights="ema" if weights == "ema" and model.has_average else "raw",
        run=str(run),
        data=str(data.get("source") or ""),
        commit=str(commit),
        checkpoint=path.name if path else "none",
        checkpoint_sha256=sha256_of(path) if path else "none",
    )
