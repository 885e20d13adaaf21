"""When a checkpoint is written, and what is checked about it before hours are spent."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from src.models.mnist_gan_model import DivergedError
from src.utils.errors import UserError


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, after every epoch and when the run is stopped; arguments as there.

    It refuses a metric that nobody logs (Lightning would save nothing and say nothing), and keeps the last good
    checkpoint when training has diverged or the disk is full.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Without a version counter `last.ckpt` is rewritten in place instead of growing a `last-v1.ckpt`.
        super().__init__(save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor and self.monitor.startswith("val/"):
            check_logged(trainer.callback_metrics, "callbacks.model_checkpoint.monitor", self.monitor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor:
            check_logged(trainer.callback_metrics, "callbacks.model_checkpoint.monitor", self.monitor)
        super().on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, DivergedError):
            return
        try:
            super().on_exception(trainer, pl_module, exception)
        except OSError as error:
            rank_zero_warn(f"the last moment could not be saved ({error}); {self.last_model_path} stands as it was")
        else:
            if self.best_model_path:
                rank_zero_info(f"saved {self.best_model_path}")


def check_logged(metrics: Mapping[str, Any], key: str, metric: str) -> None:
    """Refuses a metric that should have been logged by now and was not.

    Args:
        metrics: what has been logged.
        key: where the metric was configured.
        metric: its name.

    Raises:
        UserError: the metric is missing; names those there are.
    """
    if metric not in metrics:
        raise UserError(f"{key}={metric} is logged by nobody: choose one of {', '.join(sorted(metrics))}")
