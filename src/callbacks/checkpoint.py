"""When a checkpoint is written, and what is checked about it before hours are spent."""

import logging
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from src.models.mnist_gan_model import DivergedError
from src.utils.errors import UserError
from src.utils.instantiate import check_types

log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, after every epoch and when the run is stopped; arguments as there.

    It keeps the last good checkpoint when training has diverged or the disk is full.
    """

    def __init__(self, **kwargs: Any) -> None:
        check_types(ModelCheckpoint, kwargs)
        # Without a version counter `last.ckpt` is rewritten in place instead of growing a `last-v1.ckpt`.
        super().__init__(save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, DivergedError):
            return
        try:
            super().on_exception(trainer, pl_module, exception)
        except OSError as error:
            log.warning("the last moment could not be saved (%s); earlier checkpoints stand as they were", error)


class RequiredMetric(Callback):
    """Refuses a metric that nobody logs as soon as that shows, be it in the sanity check, instead of after hours.

    Args:
        key: where the metric is configured.
        metric: its name.
    """

    def __init__(self, key: str, metric: str) -> None:
        self.key = key
        self.metric = metric

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric.startswith("val/") and trainer.limit_val_batches == 0:
            raise UserError(
                f"{self.key}={self.metric} needs the validation that trainer.limit_val_batches=0 switches off: set"
                f" {self.key}=null"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric.startswith("val/"):
            check_logged(trainer.callback_metrics, self.key, self.metric)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.metric.startswith(("val/", "test/")):  # not every epoch has a validation
            check_logged(trainer.callback_metrics, self.key, self.metric)


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
