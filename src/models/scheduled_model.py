"""Models whose learning rates and augmentation change over a run."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer

from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.schedules import Schedule

log = logging.getLogger(__name__)

Augmentation = Callable[[Tensor, float], Tensor]  # images, progress of the run from 0 to 1 -> images
OptimizerFactory = Callable[[Iterator[nn.Parameter]], Optimizer]


class ScheduledModel(ImageModel):
    """Follows the progress of the run by the batch, a function of the number of batches alone.

    Attributes:
        schedule: how the learning rates change; None: constant.
        augment: what is done to images in training, by name.
        schedule_batches: batches over which both run their course; None: those of the whole run.
    """

    schedule: Schedule | None = None
    augment: Mapping[str, Augmentation] = {}
    schedule_batches: int | None = None
    _last_batch: float = math.inf

    @property
    def progress(self) -> float:
        """How much of the schedule has passed, from 0 to 1."""
        return min(1.0, self.trainer.global_step / self._last_batch) if self._trainer else 0.0

    @property
    def follows_progress(self) -> bool:
        """Whether anything changes over the run, so that a run of another length is another run."""
        parts = self.augment.values()
        return self.schedule is not None or any(getattr(part, "follows_progress", False) for part in parts)

    def on_train_start(self) -> None:
        """Finds out how long the run is.

        Raises:
            UserError: something follows the run's progress, but the run has no end.
        """
        batches = self.trainer.estimated_stepping_batches
        self._last_batch = self.schedule_batches or batches
        if not self.follows_progress:
            return
        if math.isinf(self._last_batch):
            raise UserError(
                "model.schedule and model.augment follow the run's progress, but it has no end: set"
                " trainer.max_epochs, trainer.max_steps or model.schedule_batches"
            )
        timed = any(isinstance(callback, Timer) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if timed and not self.schedule_batches:
            log.warning(
                "trainer.max_time may end the run before model.schedule and model.augment have run their course over"
                " its %s batches: set model.schedule_batches to how many there will be",
                batches,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.schedule is None:
            return
        factor = self.schedule(self.progress)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A resumed run takes the optimizers' moments; torch would also take the learning rates of the file.
        optimizers: Any = self.configure_optimizers()
        for saved, optimizer in zip(checkpoint.get("optimizer_states", ()), optimizers, strict=False):
            for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                theirs |= {key: value for key, value in ours.items() if key != "params"}


def make_optimizer(option: str, factory: OptimizerFactory, network: nn.Module) -> Optimizer:
    """A network's optimizer, with the rates that the schedule scales.

    Args:
        option: the model's option that describes it, for the message.
        factory: makes it from the parameters.
        network: what it optimises.

    Raises:
        ValueError: the factory refuses its arguments, or makes something else.
    """
    try:
        optimizer = factory(network.parameters())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option} cannot be built: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{option} must make an optimizer of torch, not a {type(optimizer).__name__}")
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer
