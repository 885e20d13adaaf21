"""The conditional GAN: two networks, one loss, and the step that trains them in turn."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import clip_grad_norm_, get_total_norm, parametrizations, parametrize
from torch.optim import Adam, Optimizer

from src.errors import DivergedError, UserError
from src.models.gan_alarms import gan_alarms
from src.models.gan_curves import gan_curves, gan_tables
from src.models.image_model import ImageModel
from src.models.losses import LSGANLoss
from src.models.modules.ema import EMA
from src.models.penalties import Penalty
from src.models.schedules import Schedule

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
OptimizerFactory = Callable[[Iterator[nn.Parameter]], Optimizer]
Augmentation = Callable[[Tensor, float], Tensor]  # images, progress of the run from 0 to 1 -> images
GENERATOR, DISCRIMINATOR = 0, 1  # optimizer_idx


@runtime_checkable
class AdversarialLoss(Protocol):
    """What `src/models/losses.py` offers and a loss of your own must offer too.

    It may also say of itself, with class attributes, that its G loss takes the scores of real images as a second
    argument (`paired`), the score above which D takes an image for real (`threshold`), that it pulls scores to targets
    which can be smoothed (`has_targets`), or that it makes no sense unless D is Lipschitz (`needs_lipschitz`).
    """

    @property
    def generator(self) -> Callable[..., Tensor]: ...

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]: ...


class MNISTGANModel(ImageModel):
    """A conditional GAN; despite its name it knows nothing of MNIST but its default sizes.

    Args:
        generator: `forward(noise [N, latent_dim], labels [N])` -> images [N, channels, img_size, img_size] in [-1, 1].
        discriminator: `forward(images, labels)` -> scores [N, 1].
        loss: one of `src/models/losses.py`; None: least squares.
        optimizer_g: makes G's optimizer from its parameters; None: Adam(2e-4, betas 0.5, 0.999).
        optimizer_d: the same for D.
        n_classes: number of classes; labels are 0 to n_classes - 1.
        latent_dim: length of the noise vector.
        channels: image channels.
        img_size: height and width of the images in pixels.
        ema_half_life: half-life in images of G's moving average, which then draws the samples; None: no average.
        penalties: on D's gradients, by name (`src/models/penalties.py`); one that is None is left out.
        augment: what is done to all images before D sees them in training, by name and in this order
            (`src/models/augment.py`); one that is None is left out.
        schedule: of both learning rates (`src/models/schedules.py`); None: constant.
        schedule_batches: batches over which `schedule` and `augment` run their course; None: those of the whole run.
        d_steps: D's steps for each step of G, which then is trained on every `d_steps`-th batch.
        spectral_norm: whether every weight matrix of D is divided by its largest singular value (Miyato et al. 2018).
        spectral_norm_g: the same for G (Zhang et al. 2019), but for its embeddings.
        label_smoothing: how far D's target for real images is moved towards that for generated ones (one-sided,
            Salimans et al. 2016).
        mismatched_labels: as many real images, as a share of the batch, are shown to D once more with a wrong label,
            and it is to take them for generated ones, with that weight (Reed et al. 2016): so D must read the label.
        clip_grad_norm: largest norm of each network's gradients; None: any.

    Raises:
        ValueError: a number is out of range, an optimizer refuses its arguments, or options contradict each other.
    """

    progress_metrics = ("train/g_loss", "train/d_loss")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss | None = None,
        optimizer_g: OptimizerFactory | None = None,
        optimizer_d: OptimizerFactory | None = None,
        n_classes: int = 10,
        latent_dim: int = 100,
        channels: int = 1,
        img_size: int = 32,
        ema_half_life: float | None = None,
        penalties: Mapping[str, Penalty | None] | None = None,
        augment: Mapping[str, Augmentation | None] | None = None,
        schedule: Schedule | None = None,
        schedule_batches: int | None = None,
        d_steps: int = 1,
        spectral_norm: bool = False,
        spectral_norm_g: bool = False,
        label_smoothing: float = 0.0,
        mismatched_labels: float = 0.0,
        clip_grad_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # Lightning steps several optimizers only by hand
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss or LSGANLoss()
        default_optimizer = partial(Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
        self.optimizer_g = optimizer_g or default_optimizer
        self.optimizer_d = optimizer_d or default_optimizer
        self.n_classes = n_classes
        self.noise_shape = (latent_dim,)
        self.channels = channels
        self.img_size = img_size
        self.penalties = {name: penalty for name, penalty in (penalties or {}).items() if penalty is not None}
        self.augment = {name: each for name, each in (augment or {}).items() if each is not None}
        self.schedule = schedule
        self.schedule_batches = schedule_batches
        self.d_steps = d_steps
        self.spectral_norm = spectral_norm
        self.label_smoothing = label_smoothing
        self.mismatched_labels = mismatched_labels
        self.clip_grad_norm = clip_grad_norm
        self._check_options()
        if spectral_norm:
            bound("spectral_norm", "discriminator", discriminator, (nn.Linear, nn.Embedding, _ConvNd))
        if spectral_norm_g:
            bound("spectral_norm_g", "generator", generator, (nn.Linear, _ConvNd))
        self.ema = None if ema_half_life is None else EMA(generator, ema_half_life)
        self.configure_optimizers()  # would otherwise be refused only after the data is loaded
        self._scored: Tensor | None = None  # D's scores of real and generated images in the last step, [2, N]
        self._judged: list[Tensor] = []  # the same of each batch of a validation
        self._fakes: Batch | None = None  # G's step leaves its images here for D's step on the same batch
        self._latest: dict[str, Tensor] = {}  # what each step found last: not every one is made on every batch
        self._last_batch = math.inf  # of what `schedule` and `augment` follow

    def _check_options(self) -> None:
        counts = {
            name: getattr(self, name) for name in ("n_classes", "channels", "img_size", "d_steps", "schedule_batches")
        }
        for name, value in (counts | {"latent_dim": self.noise_shape[0]}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be a number from 0 to below 0.5, not {self.label_smoothing}")
        if not 0 <= self.mismatched_labels <= 1:
            raise ValueError(f"mismatched_labels must be a number from 0 to 1, not {self.mismatched_labels}")
        if self.mismatched_labels and self.n_classes == 1:
            raise ValueError(
                f"mismatched_labels is {self.mismatched_labels}, but with one class no label is wrong: set it to 0"
            )
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be a positive number or null, not {self.clip_grad_norm}")
        loss = type(self.loss).__name__
        if self.label_smoothing and not getattr(self.loss, "has_targets", False):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but {loss} has no targets to smooth: set it to 0"
            )
        if getattr(self.loss, "needs_lipschitz", False) and not (self.penalties or self.spectral_norm):
            raise ValueError(
                f"loss is {loss}, which needs a Lipschitz discriminator: use model/objective=wasserstein, which has a"
                " gradient penalty, or set model.spectral_norm=true"
            )
        if self.penalties and any(isinstance(module, _BatchNorm) for module in self.discriminator.modules()):
            raise ValueError(
                f"penalties ({', '.join(self.penalties)}) cannot be used with BatchNorm in the discriminator, as an"
                " image's score then has no gradient of its own: set them to null, or use another network"
            )
        for group in ("penalties", "augment"):
            for name, part in getattr(self, group).items():
                if not callable(part):
                    raise ValueError(
                        f"{group} must hold parts with a _target_ (src/models/{group}.py) or null, but {name} is"
                        f" {part!r}"
                    )
        for name, augmentation in self.augment.items():
            try:
                augmentation(torch.zeros(2, self.channels, self.img_size, self.img_size), 0.0)
            except ValueError as error:
                raise ValueError(f"augment cannot use {name}: {error}") from error

    @property
    def has_average(self) -> bool:  # type: ignore[override]
        """Whether there is a moving average of G."""
        return self.ema is not None

    def start_average(self) -> None:
        if self.ema is not None:
            self.ema.network.load_state_dict(self.generator.state_dict())

    def alarms(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return gan_alarms(metrics)

    @property
    def curves(self) -> list[dict[str, Any]]:
        return gan_curves(getattr(self.loss, "threshold", None))

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        return gan_tables(getattr(self.loss, "threshold", None))

    # What draws --------------------------------------------------------------------------------------------------

    def sampler(self, average: bool) -> nn.Module:
        return self.ema.network if average and self.ema is not None else self.generator

    # Training -------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizers = []
        for name, network in [("optimizer_g", self.generator), ("optimizer_d", self.discriminator)]:
            try:
                optimizer = getattr(self, name)(network.parameters())
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} cannot be built: {error}") from error
            if not isinstance(optimizer, Optimizer):
                raise ValueError(f"{name} must make an optimizer of torch, not a {type(optimizer).__name__}")
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]  # what the schedule scales
            optimizers.append(optimizer)
        return optimizers, []

    def on_train_start(self) -> None:
        """Finds out how long the run is.

        Raises:
            UserError: something follows the run's progress, but the run has no end; or the precision does not suit an
                option.
        """
        batches = self.trainer.estimated_stepping_batches
        self._last_batch = self.schedule_batches or batches
        if math.isinf(self._last_batch) and self.follows_progress:
            raise UserError(
                "model.schedule and model.augment follow the run's progress, but it has no end: set"
                " trainer.max_epochs, trainer.max_steps or model.schedule_batches"
            )
        timed = any(isinstance(callback, Timer) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if timed and self.follows_progress and not self.schedule_batches:
            log.warning(
                "trainer.max_time may end the run before model.schedule and model.augment have run their course over"
                " its %s batches: set model.schedule_batches to how many there will be",
                batches,
            )
        every = {f"penalties.{name}.every": penalty.every for name, penalty in self.penalties.items()}
        for key, n in {"d_steps": self.d_steps, **every}.items():
            if n > batches:
                log.warning("model.%s=%s is never reached, as the run has only %s batches", key, n, batches)
        if self.clip_grad_norm is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                "model.clip_grad_norm cannot be used with trainer.precision=16-mixed, which scales gradients: use"
                " trainer.precision=bf16-mixed"
            )
        self._latest = {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.schedule is None:
            return
        factor = self.schedule(self.progress)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    @property
    def follows_progress(self) -> bool:
        """Whether anything changes over the run, so that a run of another length is another run."""
        parts = self.augment.values()
        return self.schedule is not None or any(getattr(part, "follows_progress", False) for part in parts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Of the optimizers' states, the moments are resumed; torch would also take the rates of the file.
        for saved, optimizer in zip(
            checkpoint.get("optimizer_states", ()), self.configure_optimizers()[0], strict=False
        ):
            for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                theirs |= {key: value for key, value in ours.items() if key != "params"}

    @property
    def progress(self) -> float:
        """How much of `schedule` and `augment` has run its course, from 0 to 1, a function of the batches alone."""
        return min(1.0, self.trainer.global_step / self._last_batch) if self._trainer else 0.0

    def step(self, batch: Batch, batch_idx: int, optimizer_idx: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The objective on one batch.

        Generated images share the batch's labels: every class is then as frequent among them as among real images,
        and both networks are told the same.

        Args:
            batch: images [N, C, H, W] in [-1, 1] and labels int64 [N].
            batch_idx: the batch's number; it seeds the noise where nothing is being optimised.
            optimizer_idx: 0 while G is optimised, 1 while D is, None otherwise.

        Returns:
            The losses and D's mean scores that were computed, detached, under `g_loss`, `d_loss`, `d_real_loss`,
            `d_fake_loss`, `d_real`, `d_fake`, with `d_pair_accuracy`, the share of pairs of a label whose real image
            has the higher score, `d_mismatched`, D's mean score of real images with wrong labels, and
            `penalty_<name>` of each penalty that was due; and the loss of the network being optimised, penalties
            included, or the sum of both.
        """
        real, labels = batch
        losses: dict[str, Tensor] = {}
        objective = torch.zeros((), device=real.device)

        if optimizer_idx in (GENERATOR, None):
            # Where nothing is optimised the same noise comes each time: curves compare, and the noise of
            # training stays what it would have been without validation.
            rng = None if optimizer_idx == GENERATOR else torch.Generator(real.device).manual_seed(batch_idx)
            fake = self.generator(self.draw_noise(len(real), rng), labels)
            scores = [self._scores(self._as_seen(fake, optimizer_idx), labels)]
            if getattr(self.loss, "paired", False):
                with torch.no_grad():
                    scores.append(self._scores(self._as_seen(real, optimizer_idx), labels))
            g_loss = self.loss.generator(*scores)
            losses["g_loss"] = g_loss.detach()
            objective = objective + g_loss
            self._fakes = fake.detach(), labels

        if optimizer_idx in (DISCRIMINATOR, None):
            # One pass over all costs less than several; without BatchNorm in D the scores are the same.
            shown, their_labels = [real, self._take_fakes(labels)], [labels, labels]
            if self.mismatched_labels and optimizer_idx == DISCRIMINATOR:
                n = math.ceil(self.mismatched_labels * len(real))
                shown.append(real[:n])
                shift = torch.randint(1, self.n_classes, (n,), device=labels.device)
                their_labels.append((labels[:n] + shift) % self.n_classes)
            images = self._as_seen(torch.cat(shown), optimizer_idx)
            all_scores = self._scores(images, torch.cat(their_labels))
            d_real, d_fake, *d_mismatched = all_scores.split([len(part) for part in shown])
            d_real_loss, d_fake_loss = self.loss.discriminator(d_real, d_fake)
            for mismatched in d_mismatched:
                _, their_loss = self.loss.discriminator(d_real[: len(mismatched)], mismatched)
                weight = len(mismatched) / len(real)  # each image counts alike
                d_fake_loss = (d_fake_loss + weight * their_loss) / (1 + weight)
                losses["d_mismatched"] = mismatched.detach().mean()
            if self.label_smoothing:
                _, taken_for_fake = self.loss.discriminator(d_real, d_real)
                d_real_loss = torch.lerp(d_real_loss, taken_for_fake, self.label_smoothing)
            d_loss = (d_real_loss + d_fake_loss) / 2
            losses["d_loss"] = d_loss.detach()
            losses["d_real_loss"], losses["d_fake_loss"] = d_real_loss.detach(), d_fake_loss.detach()
            losses["d_real"], losses["d_fake"] = d_real.detach().mean(), d_fake.detach().mean()
            losses["d_pair_accuracy"] = (d_real > d_fake).float().mean()
            if optimizer_idx is None:
                self._scored = torch.stack([d_real.detach().flatten(), d_fake.detach().flatten()])
            objective = objective + d_loss
            if optimizer_idx == DISCRIMINATOR:
                real_seen, fake_seen = images[: len(real)], images[len(real) : 2 * len(real)]
                for name, penalty in self._penalties_on(real_seen, fake_seen, labels):
                    losses[f"penalty_{name}"] = penalty.detach()
                    # Halved as the losses are. Lazily, it makes up for the batches that it leaves out.
                    objective = objective + self.penalties[name].every * penalty / 2

        return losses, objective

    def _scores(self, images: Tensor, labels: Tensor) -> Tensor:
        """D's scores, never in half precision: losses are differences of them."""
        return self.discriminator(images, labels).to(self.dtype)

    def _as_seen(self, images: Tensor, optimizer_idx: int | None) -> Tensor:
        """What D is shown of images: while training, distorted by `augment`."""
        if optimizer_idx is not None:
            for augmentation in self.augment.values():
                images = augmentation(images, self.progress)
        return images

    def _penalties_on(self, real: Tensor, fake: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The penalties that are due on this batch."""
        batches = self.trainer.global_step + 1 if self._trainer else 0
        for name, penalty in self.penalties.items():
            if batches % penalty.every == 0:
                # Squared gradients overflow or vanish in half precision.
                with torch.autocast(real.device.type, enabled=False):
                    yield name, penalty(self.discriminator, real.to(self.dtype), fake.to(self.dtype), labels)

    def _take_fakes(self, labels: Tensor) -> Tensor:
        """The images of G's step on this batch, so that G runs once a batch; drawn where G had no step."""
        left, self._fakes = self._fakes, None
        if left is not None and left[1] is labels:
            return left[0]
        with torch.no_grad():
            return self.generator(self.draw_noise(len(labels)), labels)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        # Reading numbers out costs time, on a GPU most of all: only where Lightning will log them.
        log_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        until_due = -(self.trainer.global_step + 1) % log_every if log_every > 0 else math.inf
        due = until_due == 0
        metrics: dict[str, Tensor | float] = {}

        trains_g = (self.trainer.global_step + 1) % self.d_steps == 0
        for optimizer_idx, (name, optimizer) in enumerate(zip("gd", optimizers, strict=True)):
            if optimizer_idx == GENERATOR and not trains_g:
                continue
            assert isinstance(optimizer, LightningOptimizer)
            self.toggle_optimizer(optimizer)  # the other network needs no gradients
            losses, loss = self.step(batch, batch_idx, optimizer_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._latest |= losses
            if self.clip_grad_norm is not None:
                self._latest[f"grad_norm_{name}"] = clip_grad_norm_(parameters, self.clip_grad_norm)
            elif until_due < (self.d_steps if optimizer_idx == GENERATOR else 1):  # the network's last step before it
                norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
                self._latest[f"grad_norm_{name}"] = norm
            if due:
                metrics[f"lr_{name}"] = optimizer.param_groups[0]["lr"]
            if optimizer_idx < len(optimizers) - 1:
                # Lightning counts optimizer steps. Only D's goes through its counter, so that `global_step`,
                # `max_steps` and every logger count batches.
                self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=_no_closure)
            else:
                optimizer.step()
            self.untoggle_optimizer(optimizer)

        if self.ema is not None and trains_g:
            self.ema.update(self.generator, len(batch[0]) * self.d_steps * self.trainer.world_size)
        if due:
            metrics |= self._latest
            self.log_dict({f"train/{key}": value for key, value in metrics.items()}, batch_size=len(batch[0]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._judged = []

    def on_test_epoch_start(self) -> None:
        self._judged = []

    def on_validation_epoch_end(self) -> None:
        self._judge("val")

    def on_test_epoch_end(self) -> None:
        self._judge("test")

    def _judge(self, split: str) -> None:
        """How often D is right; where its loss has no threshold, one midway between its mean scores."""
        if not self._judged:
            return
        ours = torch.cat(self._judged, dim=1)  # [2, N]
        scores = self.all_gather(ours)
        assert isinstance(scores, Tensor)
        scores = scores.view(-1, *ours.shape)  # [processes, 2, N]
        threshold = getattr(self.loss, "threshold", scores.mean())
        taken_for_real = (scores > threshold).sum(dim=(0, 2))
        n = scores.shape[0] * scores.shape[2]
        counts = torch.stack([taken_for_real, n - taken_for_real], dim=1).cpu()
        self.confusions = {"d_confusion": counts}
        accuracy = float(counts.trace()) / (2 * n)
        self.log(f"{split}/d_accuracy", accuracy, batch_size=n, sync_dist=True)

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        losses, _ = self.step(batch, batch_idx)
        assert self._scored is not None
        self._judged.append(self._scored)
        metrics = {f"{split}/{key}": value for key, value in losses.items()}
        self.log_dict(metrics, batch_size=len(batch[0]), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        # Lightning 2 dropped the hook that people still write; this keeps it, once an epoch of training.
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Once an epoch, before the checkpoint is written: refuses to go on with broken weights.

        Raises:
            DivergedError: a weight is infinite or not a number.
        """
        if not all(bool(p.isfinite().all()) for p in self.parameters()):
            raise DivergedError(
                f"training diverged in epoch {self.current_epoch}: weights are no longer finite; lower"
                " model.optimizer_g.lr and model.optimizer_d.lr, or resume from an earlier checkpoint"
            )


def bound(option: str, name: str, network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Puts spectral norm on all layers of these kinds.

    Raises:
        ValueError: a layer has a norm of its own; names the option.
    """
    for module in [*network.modules()]:
        if isinstance(module, kinds):
            if parametrize.is_parametrized(module, "weight") or hasattr(module, "weight_orig"):
                raise ValueError(f"{option} is true, but the {name} brings its own: set it to false")
            parametrizations.spectral_norm(module)


def _no_closure() -> None:
    return None
