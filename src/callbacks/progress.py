"""How far a run is, and how fast."""

import time
from typing import Annotated, Any

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from rich import print as rich_print


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with the model's metrics and images/s; outside a terminal one line an epoch.

    Args:
        refresh_rate: updates a second; 0: none.
    """

    def __init__(self, refresh_rate: Annotated[int, Field(ge=0)] = 3) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._updated = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning prepares an update every batch, most of which nobody sees, and drawing one takes milliseconds.
        now = time.perf_counter()
        seen = self.refresh_rate > 0 and self._console is not None and self._console.is_terminal
        if trainer.is_last_batch or (seen and now - self._updated >= 1 / self.refresh_rate):
            self._updated = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        keys = [*getattr(pl_module, "progress_metrics", ()), "train/images_per_s"]
        names = {key: key.rpartition("/")[2].replace("_per_", "/") for key in keys if key in trainer.callback_metrics}
        return {name: f"{float(trainer.callback_metrics[key]):,.4g}" for key, name in names.items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self._console is not None and not self._console.is_terminal:
            metrics = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            rich_print(f"epoch {trainer.current_epoch}  batch {trainer.global_step:,}  {metrics}", flush=True)


class Throughput(Callback):
    """Logs `train/images_per_s`: images of all processes by wall-clock, over the batches since it was last logged.

    Validation, sample grids and checkpoints are not counted there; loading data is. `val/seconds` counts everything
    since training began, without the breaks of a run that was stopped and resumed: quality by time.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0
        self._begun = time.perf_counter()
        self._before = 0.0  # seconds of a run that is resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter() - self._before

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/seconds", time.perf_counter() - self._begun)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:  # the epoch's first batch pays for what others do not
            self._since, self._images = _done(pl_module), 0
            return
        self._images += len(batch[0]) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and trainer.global_step % every == 0:
            now = _done(pl_module)
            pl_module.log("train/images_per_s", self._images / (now - self._since), batch_size=len(batch[0]))
            self._since, self._images = now, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["seconds"]


def _done(model: LightningModule) -> float:
    """The time when what was asked of the device so far is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
