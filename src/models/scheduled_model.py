"""Models whose learning rates and augmentation change over a run, and those that one optimizer trains."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.schedules import Schedule
from src.models.step_graph import StepGraph, fits

log = logging.getLogger(__name__)

Augmentation = Callable[[Tensor, float], Tensor]  # images, progress of the run from 0 to 1 -> images
OptimizerFactory = Callable[[Iterator[nn.Parameter]], Optimizer]


class ScheduledModel(ImageModel):
    """Follows the progress of the run by the batch, a function of the number of batches alone.

    Attributes:
        schedule: how the learning rates change; None: constant.
        augment: what is done to images in training, by name.
        schedule_batches: batches over which both run their course; None: those of the whole run.
        clip_grad_norm: largest norm of the gradients; None: any.
    """

    schedule: Schedule | None = None
    augment: Mapping[str, Augmentation] = {}
    schedule_batches: int | None = None
    clip_grad_norm: float | None = None
    _last_batch: float = math.inf
    _graph: StepGraph | None = None

    def __init__(self) -> None:
        super().__init__()
        self._evaluated: dict[str, tuple[Tensor | float, int]] = {}  # sums over images, and how many images, by loss

    @abstractmethod
    def step(self, batch: Any, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """The objective on one batch: its parts, detached, by name; and the loss."""

    @property
    def why_no_graph(self) -> str:
        """Why a CUDA graph cannot hold its step, to complete "as ..."; "" where one can."""
        following = [name for name, part in self.augment.items() if getattr(part, "follows_progress", False)]
        return f"model.augment.{following[0]} changes from batch to batch" if following else ""

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
        """Finds out how long the run is, and whether its steps run as a CUDA graph.

        Raises:
            UserError: something follows the run's progress, but the run has no end; gradients are clipped and
                scaled; or there can be no graph.
        """
        if self.clip_grad_norm is not None and self._scale(*self.trainer.optimizers) is not None:
            raise UserError(
                "model.clip_grad_norm cannot be used with trainer.precision=16-mixed, which scales gradients: use"
                " trainer.precision=bf16-mixed"
            )
        self._graph = StepGraph(self.parameters()) if fits(self) else None
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

    def on_train_end(self) -> None:
        if self._graph is not None:  # the test needs its memory
            self._graph = None
            self.zero_grad()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.schedule is None:
            return
        factor = self.schedule(self.progress)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        """Adds up the losses of each batch, and logs their means, each image alike, with the last.

        Logged by the batch, they would take longer than they do to compute. At the end of the epoch, callbacks would
        see those of the one before.
        """
        if batch_idx == 0:
            self._evaluated = {}
        n = len(batch[0])
        for name, loss in self.step(batch, batch_idx)[0].items():
            total, n_images = self._evaluated.get(name, (0.0, 0))
            self._evaluated[name] = total + loss * n, n_images + n
        if self.trainer._evaluation_loop.batch_progress.is_last_batch:
            for name, (total, n_images) in self._evaluated.items():
                self.log(f"{split}/{name}", total / n_images, batch_size=n_images, sync_dist=True)

    def outside_autocast(self) -> torch.autocast:
        """For a backward pass inside `training_step`, around the whole of which Lightning puts its autocast.

        What was computed in float32, such as a penalty, then has its gradients in float32, too.
        """
        return torch.autocast(self.device.type, enabled=False)

    def norm_of(self, gradients: Iterable[Tensor], optimizer: Any) -> Tensor:
        """The norm of all gradients together, without the factor by which float16 scales them."""
        scale = self._scale(optimizer)
        return get_total_norm(gradients) / (1.0 if scale is None else scale)

    def _scale(self, *optimizers: Any) -> float | None:
        """The factor that gradients have now, where there is one: Lightning takes it out before, but not for all."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        by_themselves = any(getattr(each, "_step_supports_amp_scaling", False) for each in optimizers)
        return scaler.get_scale() if scaler and (by_themselves or not self.automatic_optimization) else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A resumed run takes the optimizers' moments; torch would also take the learning rates of the file.
        optimizers: Any = self.configure_optimizers()
        for saved, optimizer in zip(checkpoint.get("optimizer_states", ()), optimizers, strict=False):
            for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                theirs |= {key: value for key, value in ours.items() if key != "params"}


class OneLossModel(ScheduledModel):
    """One loss, one optimizer, and Lightning's automatic optimisation."""

    def step(self, batch: Any, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """The objective on one batch, which is prepared in training: its parts, detached, by name; and the loss."""
        return self.objective(self.prepared(batch) if self.training else batch, batch_idx)

    def prepared(self, batch: Any) -> Any:
        """A batch to train on, with what is decided in main memory: all that a CUDA graph cannot hold."""
        return batch

    @abstractmethod
    def objective(self, batch: Any, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """What `step` returns, of a batch that is prepared.

        In training, the arithmetic must not depend on the batch's number: a CUDA graph has one for all.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self._graph is None:
            losses, loss = self.step(batch, batch_idx)
        else:
            losses, loss = self._graph("step", self.prepared(batch), self._with_gradients)
        self._log_due({f"train/{name}": value for name, value in losses.items()}, len(batch[0]))
        return loss

    def _with_gradients(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        losses, loss = self.objective(batch, 0)
        with self.outside_autocast():
            loss.backward()
        return losses, loss.detach()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._graph is None or loss.requires_grad:  # a training step of its own has no graph
            super().backward(loss, *args, **kwargs)
        else:
            self._graph.put_back_gradients()  # Lightning has put them away since

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_grad_norm is not None:
            norm = clip_grad_norm_(parameters, self.clip_grad_norm)
        else:
            norm = self.norm_of([p.grad for p in parameters], optimizer)
        self._log_due({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]}, 1)

    def _log_due(self, metrics: Mapping[str, Tensor | float], batch_size: int) -> None:
        """Logs where Lightning writes it down: reading numbers out costs time."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and (self.trainer.global_step + 1) % every == 0:
            self.log_dict(dict(metrics), batch_size=batch_size)


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
