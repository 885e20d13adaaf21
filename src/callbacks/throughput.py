"""How fast training goes."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


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
            self._since, self._images = time.perf_counter(), 0
            return
        self._images += len(batch[0]) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and trainer.global_step % every == 0:
            now = time.perf_counter()
            pl_module.log("train/images_per_s", self._images / (now - self._since), batch_size=len(batch[0]))
            self._since, self._images = now, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["seconds"]
