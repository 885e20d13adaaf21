"""What a reviewer sees of a run besides numbers."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from src.models.image_model import ImageModel
from src.utils.images import to_grid
from src.utils.loggers import log_picture
from src.utils.numbers import is_whole


class LogSampleGrid(Callback):
    """Once an epoch, a grid of generated images, one row a class, always from the same noise.

    It goes to `samples/epoch_NNNN.png` in the run folder, and as `gen_imgs` to W&B and to every other logger that
    takes pictures. The noise is kept in the checkpoint, so that a resumed run draws the same grid.

    Args:
        n_per_class: images a row.
        every_n_epochs: how often.
        seed: of the noise.
    """

    def __init__(self, n_per_class: int = 10, every_n_epochs: int = 1, seed: int = 0) -> None:
        for name, value in [("n_per_class", n_per_class), ("every_n_epochs", every_n_epochs)]:
            if not is_whole(value, least=1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.n_per_class = n_per_class
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.noise: Tensor | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:  # type: ignore[override]
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.on_epoch_end(trainer, pl_module)

    def on_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Draws the grid and hands it out. Lightning no longer calls this by itself."""
        labels = torch.arange(pl_module.n_classes).repeat_interleave(self.n_per_class)
        if self.noise is None or len(self.noise) != len(labels):
            self.noise = pl_module.draw_noise(len(labels), torch.Generator().manual_seed(self.seed))
        if not trainer.is_global_zero:
            return
        grid = to_grid(pl_module.generate(labels, noise=self.noise), self.n_per_class)
        path = Path(trainer.default_root_dir) / "samples" / f"epoch_{trainer.current_epoch:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)
        last = pl_module.n_classes - 1
        caption = f"epoch {trainer.current_epoch}, batch {trainer.global_step:,}: one row a class, 0 to {last}"
        for logger in trainer.loggers:
            # Lightning numbers a batch's metrics from 0; this is the epoch's last batch.
            log_picture(logger, "gen_imgs", grid, caption, trainer.global_step - 1, path)

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.noise = state["noise"]
