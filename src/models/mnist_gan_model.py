"""The conditional GAN: two networks, one loss, and the step that trains them in turn."""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from typing import Annotated

import torch
from pydantic import Field
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from src.config.types import Count, Positive, Share
from src.models.averaged_gradients import can_wait
from src.models.compatibility import check_options, check_run
from src.models.gan_confusion import DiscriminatorConfusion
from src.models.gan_curves import gan_alarms, gan_curves, gan_tables
from src.models.losses import AdversarialLoss, LSGANLoss
from src.models.modules.ema import EMA
from src.models.modules.spectral_norm import add_spectral_norm
from src.models.penalties import Penalty
from src.models.scheduled_model import Augmentation, OptimizerFactory, ScheduledModel, make_optimizer
from src.models.schedules import Schedule

Batch = tuple[Tensor, Tensor]
Losses = dict[str, Tensor]
HalfLife = Annotated[float | None, Field(gt=0, description="a number or null for no average, above 0, in images")]
GENERATOR, DISCRIMINATOR = 0, 1  # optimizer_idx


class MNISTGANModel(ScheduledModel):
    """A conditional GAN; despite its name it knows nothing of MNIST but its default sizes.

    Args:
        generator: `forward(noise [N, latent_dim], labels [N])` -> images [N, channels, img_size, img_size] in [-1, 1].
        discriminator: `forward(images, labels)` -> scores [N, 1]; with a true attribute `minibatch_std`, where a score
            depends on the other images, `forward(images, labels, batches)`: see `ResidualDiscriminator`.
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
        schedule: how both learning rates change (`src/models/schedules.py`); None: constant.
        schedule_batches: batches over which `schedule` and `augment` run their course; None: those of the whole run.
        d_steps: D's steps for each step of G, which then trains on every `d_steps`-th batch.
        spectral_norm: divides every weight matrix of D by its largest singular value (Miyato et al. 2018).
        spectral_norm_g: the same for G (Zhang et al. 2019), except for its embeddings.
        label_smoothing: how far D's target for real images moves towards that for generated ones (one-sided,
            Salimans et al. 2016).
        mismatched_labels: shows D this share of the real images once more with a wrong label, which it must take for
            generated, with that weight (Reed et al. 2016): so D must read the label.
        clip_grad_norm: largest norm of each network's gradients; None: any.

    Raises:
        ValueError: an optimizer refuses its arguments, or options contradict each other.
    """

    progress_metrics = ("train/g_loss", "train/d_loss")
    learning_rates = "model.optimizer_g.lr and model.optimizer_d.lr"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss | None = None,
        optimizer_g: OptimizerFactory | None = None,
        optimizer_d: OptimizerFactory | None = None,
        n_classes: Count = 10,
        latent_dim: Count = 100,
        channels: Count = 1,
        img_size: Count = 32,
        ema_half_life: HalfLife = None,
        penalties: Mapping[str, Penalty | None] | None = None,
        augment: Mapping[str, Augmentation | None] | None = None,
        schedule: Schedule | None = None,
        schedule_batches: Count | None = None,
        d_steps: Count = 1,
        spectral_norm: bool = False,
        spectral_norm_g: bool = False,
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
        mismatched_labels: Share = 0.0,
        clip_grad_norm: Positive | None = None,
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
        check_options(self)
        if spectral_norm:
            add_spectral_norm("spectral_norm", "discriminator", discriminator, embeddings=True)
        if spectral_norm_g:
            add_spectral_norm("spectral_norm_g", "generator", generator, embeddings=False)
        self.ema = None if ema_half_life is None else EMA(generator, ema_half_life)
        self.has_average = self.ema is not None
        self.configure_optimizers()  # would otherwise be refused only after the data is loaded
        threshold = getattr(self.loss, "threshold", None)
        self.curves, self.tables = gan_curves(threshold), gan_tables(threshold)
        self._confusion = DiscriminatorConfusion(threshold)
        self._scores_seen: tuple[Tensor, Tensor]  # D's scores of the last step's real and generated images
        # G's step leaves its images here for D's step on the same batch, with D's scores where nothing is optimised.
        self._fakes: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._latest: dict[str, Tensor] = {}  # what each step found last: not every one is made on every batch

    # What others ask of it

    def sampler(self, average: bool) -> nn.Module:
        return self.ema.network if average and self.ema is not None else self.generator

    def start_average(self) -> None:
        if self.ema is not None:
            self.ema.network.load_state_dict(self.generator.state_dict())

    def alarms(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return gan_alarms(metrics)

    # The objective

    def step(self, batch: Batch, batch_idx: int, optimizer_idx: int | None = None) -> tuple[Losses, Tensor]:
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
        losses: Losses = {}
        objectives = []
        if optimizer_idx in (GENERATOR, None):
            objectives.append(self.generator_loss(batch, batch_idx, optimizer_idx, losses))
        if optimizer_idx in (DISCRIMINATOR, None):
            objectives.append(self.discriminator_loss(batch, optimizer_idx, losses))
        return losses, reduce(operator.add, objectives)

    def generator_loss(self, batch: Batch, batch_idx: int, optimizer_idx: int | None, losses: Losses) -> Tensor:
        """G's loss; adds it to `losses`."""
        real, labels = batch
        # Where nothing is optimised the same noise comes each time: curves compare, and the noise of training stays
        # what it would have been without validation.
        rng = None if optimizer_idx == GENERATOR else torch.Generator(real.device).manual_seed(batch_idx)
        fake = self.generator(self.draw_noise(len(real), rng), labels)
        scores = [self._scores(self._as_seen(fake, optimizer_idx), labels)]
        if getattr(self.loss, "paired", False):
            with torch.no_grad():
                scores.append(self._scores(self._as_seen(real, optimizer_idx), labels))
        g_loss = self.loss.generator(*scores)
        losses["g_loss"] = g_loss.detach()
        self._fakes = fake.detach(), labels, scores[0] if optimizer_idx is None else None
        return g_loss

    def discriminator_loss(self, batch: Batch, optimizer_idx: int | None, losses: Losses) -> Tensor:
        """D's loss, with penalties while D is optimised; adds it, its parts and D's mean scores to `losses`."""
        real, labels = batch
        fakes, d_fake = self._take_fakes(labels)
        # One pass over all costs less than several, and without BatchNorm in D the scores are the same.
        shown, their_labels = [real], [labels]
        if d_fake is None:
            shown.append(fakes)
            their_labels.append(labels)
        batches = [len(part) for part in shown]  # what has a wrong label is of the first of them
        if self.mismatched_labels and optimizer_idx == DISCRIMINATOR:
            n = math.ceil(self.mismatched_labels * len(real))
            shown.append(real[:n])
            shift = torch.randint(1, self.n_classes, (n,), device=labels.device)
            their_labels.append((labels[:n] + shift) % self.n_classes)
        images = self._as_seen(torch.cat(shown), optimizer_idx)
        all_scores = self._scores(images, torch.cat(their_labels), batches)
        d_real, *others = all_scores.split([len(part) for part in shown])
        d_fake = others.pop(0) if d_fake is None else d_fake
        d_real_loss, d_fake_loss = self.loss.discriminator(d_real, d_fake)
        for mismatched in others:
            _, their_loss = self.loss.discriminator(d_real[: len(mismatched)], mismatched)
            weight = len(mismatched) / len(real)  # each image counts alike
            d_fake_loss = (d_fake_loss + weight * their_loss) / (1 + weight)
            losses["d_mismatched"] = mismatched.detach().mean()
        if self.label_smoothing:
            _, taken_for_fake = self.loss.discriminator(d_real, d_real)
            d_real_loss = torch.lerp(d_real_loss, taken_for_fake, self.label_smoothing)
        objective = d_loss = (d_real_loss + d_fake_loss) / 2
        losses["d_loss"] = d_loss.detach()
        losses["d_real_loss"], losses["d_fake_loss"] = d_real_loss.detach(), d_fake_loss.detach()
        losses["d_real"], losses["d_fake"] = d_real.detach().mean(), d_fake.detach().mean()
        losses["d_pair_accuracy"] = (d_real > d_fake).float().mean()
        self._scores_seen = d_real.detach(), d_fake.detach()
        if optimizer_idx == DISCRIMINATOR:
            n_batches = self.trainer.global_step + 1 if self._trainer else 0
            seen = images.to(self.dtype).split(len(real))
            for name, penalty in self.penalties.items():
                if n_batches % penalty.every == 0:
                    # Squared gradients overflow or vanish in half precision.
                    with torch.autocast(real.device.type, enabled=False):
                        value = penalty(self.discriminator, seen[0], seen[1], labels)
                    losses[f"penalty_{name}"] = value.detach()
                    # Halved as the losses are. Lazily, it makes up for the batches that it leaves out.
                    objective = objective + penalty.every * value / 2
        return objective

    def _scores(self, images: Tensor, labels: Tensor, batches: Sequence[int] = ()) -> Tensor:
        """D's scores, never in half precision: losses are differences of them.

        Args:
            images, labels: of several batches one after the other, or of one.
            batches: how many images each has, for a D that looks at all images of a batch.
        """
        if batches and getattr(self.discriminator, "minibatch_std", False):
            return self.discriminator(images, labels, batches).to(self.dtype)
        return self.discriminator(images, labels).to(self.dtype)

    def _as_seen(self, images: Tensor, optimizer_idx: int | None) -> Tensor:
        """What D is shown of images: while training, distorted by `augment`."""
        if optimizer_idx is not None:
            for augmentation in self.augment.values():
                images = augmentation(images, self.progress)
        return images

    def _take_fakes(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images of G's step on this batch, so that G runs once a batch, and their scores, if they hold for D.

        Images are drawn where G had no step.
        """
        left, self._fakes = self._fakes, None
        if left is not None and left[1] is labels:
            return left[0], left[2]
        with torch.no_grad():
            return self.generator(self.draw_noise(len(labels)), labels), None

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        return [
            make_optimizer("optimizer_g", self.optimizer_g, self.generator),
            make_optimizer("optimizer_d", self.optimizer_d, self.discriminator),
        ]

    def on_train_start(self) -> None:
        super().on_train_start()
        check_run(self)

    def on_train_end(self) -> None:
        super().on_train_end()
        self._latest = {}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        # Reading numbers out costs time, on a GPU most of all: only where Lightning will log them.
        log_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        until_due = -(self.trainer.global_step + 1) % log_every if log_every > 0 else math.inf

        n_batches = self.trainer.global_step + 1
        trains_g = n_batches % self.d_steps == 0
        networks = (GENERATOR, DISCRIMINATOR) if trains_g else (DISCRIMINATOR,)
        if self._graph is None:
            self._train_in_turn(networks, batch, batch_idx, until_due)
        else:
            due = (name for name, penalty in self.penalties.items() if n_batches % penalty.every == 0)
            self._latest |= self._graph((networks, *due), batch, partial(self._with_gradients, networks))
            for optimizer_idx in networks:
                self._take_step(optimizer_idx, until_due)

        if self.ema is not None and trains_g:
            self.ema.update(self.generator, len(batch[0]) * self.d_steps * self.trainer.world_size)
        if until_due == 0:
            rates = {f"lr_{name}": self._optimizer(i).param_groups[0]["lr"] for i, name in enumerate("gd")}
            metrics = rates | self._latest
            self.log_dict({f"train/{key}": value for key, value in metrics.items()}, batch_size=len(batch[0]))

    def _train_in_turn(self, networks: Sequence[int], batch: Batch, batch_idx: int, until_due: float) -> None:
        """Trains each of these networks on a batch, `until_due` batches before metrics are logged."""
        # D sees the images that G drew for its own loss, so it learns the same from this batch before and after G's
        # step. Several processes let that wait, and average the gradients of both networks at once.
        strategy, waits = self.trainer.strategy, GENERATOR in networks and can_wait(self.trainer)
        ready: list[int] = []
        for optimizer_idx in networks:
            optimizer = self._optimizer(optimizer_idx)
            with self._other_frozen(optimizer_idx):
                losses, loss = self.step(batch, batch_idx, optimizer_idx)
                optimizer.zero_grad()
                waits = waits and optimizer_idx == GENERATOR
                blocked = strategy.block_backward_sync() if waits else nullcontext()  # type: ignore[attr-defined]
                with blocked, self.outside_autocast():
                    self.manual_backward(loss)
            self._latest |= losses
            ready.append(optimizer_idx)
            if not waits:
                for each in ready:
                    self._take_step(each, until_due)
                ready = []

    def _with_gradients(self, networks: Sequence[int], batch: Batch) -> Losses:
        """Computes the gradients of these networks, before either takes a step: as above, to the bit."""
        found: Losses = {}
        for optimizer_idx in networks:
            with self._other_frozen(optimizer_idx):
                losses, loss = self.step(batch, 0, optimizer_idx)
                with self.outside_autocast():
                    loss.backward()
            found |= losses
        return found

    @contextmanager
    def _other_frozen(self, optimizer_idx: int) -> Iterator[None]:
        """The network that the other optimizer trains needs no gradients meanwhile.

        Lightning's `toggle_optimizer` goes through all parameters five times as slowly.
        """
        frozen = [p for p in _parameters(self._optimizer(1 - optimizer_idx)) if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad = True

    def _optimizer(self, optimizer_idx: int) -> LightningOptimizer:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        optimizer = optimizers[optimizer_idx]
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _take_step(self, optimizer_idx: int, until_due: float) -> None:
        """Steps one optimizer, `until_due` batches before metrics are logged."""
        optimizer, name = self._optimizer(optimizer_idx), f"grad_norm_{'gd'[optimizer_idx]}"
        if self.clip_grad_norm is not None:
            self._latest[name] = clip_grad_norm_(_parameters(optimizer), self.clip_grad_norm)
        elif until_due < (self.d_steps if optimizer_idx == GENERATOR else 1):  # the network's last step before it
            gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
            self._latest[name] = self.norm_of(gradients, optimizer)
        if optimizer_idx == GENERATOR:
            # Lightning counts optimizer steps. Only D's goes through its counter, so that `global_step`, `max_steps`
            # and every logger count batches.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)
        else:
            optimizer.step()

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        super()._evaluate(split, batch, batch_idx)
        self._confusion.add(*self._scores_seen)

    def on_validation_epoch_end(self) -> None:
        self.confusions = self._confusion.count(self, "val")

    def on_test_epoch_end(self) -> None:
        self.confusions = self._confusion.count(self, "test")


def _parameters(optimizer: LightningOptimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
