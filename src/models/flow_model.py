"""Flow matching on pixels: a network that takes noise away, of classes or of what a text asks for."""

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from src.config.types import Count, Positive, Share
from src.models.compiled import Compiled
from src.models.modules.ema import EMA
from src.models.prompts import Prompts, check_prompts, to_codes, to_texts
from src.models.scheduled_model import OneLossModel, OptimizerFactory, make_optimizer
from src.models.schedules import Schedule

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
Guidance = Annotated[float, Field(ge=0, le=100)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Solver = Literal["euler", "heun", "multistep"]

LEAST_NOISE = 0.05  # what is divided by where less noise than this is left: alike in the loss and in the sampler
LEVELS = ("most", "much", "half", "little", "least")  # noise in the images of each fifth of a batch


class FlowModel(OneLossModel):
    """Images of a condition, by flow matching (Lipman et al. 2023; Liu et al. 2023).

    On the straight way from noise e to an image x, z = t x + (1 - t) e is at time t, and moves with velocity x - e. The
    network predicts the image, and the loss is on the velocity that follows from it (Li & He 2025).

    Args:
        denoiser: `forward(noisy [N, C, H, W], time [N], vector [N, D])` -> images [N, C, H, W].
        conditioner: makes that vector of labels or of text (`src/models/modules/conditioners.py`).
        prompts: what people type for the classes, where the conditioner reads text; null where it does not.
        optimizer: makes the optimizer of all parameters.
        n_classes: number of classes; labels are 0 to n_classes - 1.
        condition_dim: length of the vector, for the parts in the configuration to refer to.
        channels: image channels.
        img_size: height and width of the images in pixels.
        ema_half_life: half-life in images of the weights' moving average, which then draws; None: no average.
        schedule: how the learning rate changes (`src/models/schedules.py`); None: constant.
        schedule_batches: batches over which `schedule` runs its course; None: those of the whole run.
        time_mean: mean of the normal distribution whose sigmoid is the time (Esser et al. 2024); lower: more noise.
        time_std: its standard deviation.
        condition_dropout: share of the images that are trained on without their condition, for guidance.
        clip_grad_norm: largest norm of the gradients; None: any.
        guidance: how far to go from the images of no condition to those of the condition (Ho & Salimans 2022): 1: that
            far; above 1: further, for images that are more typical and vary less.
        steps: from noise to image. More cost more, and follow the way more closely.
        solver: `euler`: one evaluation a step; `heun`: two, except in the last step; `multistep`: one, and what the
            step before has found.
        shift: how much shorter than even steps those are where there is most noise (Esser et al. 2024); 1: even.
        compile: whether torch compiles the denoiser for training.

    Raises:
        ValueError: the optimizer refuses its arguments, or parts do not fit each other.
    """

    progress_metrics = ("train/loss",)
    learning_rates = "model.optimizer.lr"
    curves = [
        {
            "title": "Loss",
            "note": "Of the weights themselves, without the moving average; a mean over all levels of noise.",
            "unit": "loss, no unit",
            "lines": {"train/loss": "training", "val/loss": "validation"},
            "log": True,
            "compare": True,
        },
        {
            "title": "Loss by noise level",
            "note": "In validation, each of a fifth of the images. Shapes are decided where there is most noise,"
            " details where there is least.",
            "unit": "loss, no unit",
            "lines": {f"val/loss_{level}": level for level in LEVELS},
            "log": True,
        },
        {
            "title": "Gradient norm",
            "note": "Of all weights together, before clipping.",
            "unit": "norm, no unit",
            "lines": {"train/grad_norm": "norm"},
            "log": True,
        },
    ]

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: nn.Module,
        prompts: Prompts | None = None,
        optimizer: OptimizerFactory | None = None,
        n_classes: int = 10,
        condition_dim: Count = 128,
        channels: Count = 1,
        img_size: Count = 32,
        ema_half_life: Positive | None = 50_000,
        schedule: Schedule | None = None,
        schedule_batches: Count | None = None,
        time_mean: float = -0.8,
        time_std: Positive = 0.8,
        condition_dropout: Share = 0.1,
        clip_grad_norm: Positive | None = None,
        guidance: Guidance = 1.5,
        steps: Steps = 4,
        solver: Solver = "heun",
        shift: Positive = 1.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if prompts is not None and len(prompts.names) != n_classes:
            raise ValueError(f"prompts.names has {len(prompts.names)} classes, but n_classes is {n_classes}")
        self.network = ConditionedDenoiser(denoiser, conditioner)
        self.prompts = prompts
        self.optimizer = optimizer or partial(AdamW, lr=1e-3, weight_decay=0.0, fused=True)
        self.n_classes = n_classes
        self.channels = channels
        self.img_size = img_size
        self.noise_shape = (channels, img_size, img_size)
        self.condition_shape = tuple(conditioner.condition_shape)  # type: ignore[arg-type]
        self.not_exported = getattr(conditioner, "not_exported", "")
        self.schedule = schedule
        self.schedule_batches = schedule_batches
        self.time_mean = time_mean
        self.time_std = time_std
        self.condition_dropout = condition_dropout
        self.clip_grad_norm = clip_grad_norm
        self.shift = shift
        self.compiles = compile
        self._compiled: Compiled | None = None  # for training: other shapes, and modes, would be compiled again
        self.drawing: dict[str, Any] = {"guidance": guidance, "steps": steps, "solver": solver}
        if self.condition_shape:
            self.drawing["negative"] = ""
        self.ema = None if ema_half_life is None else EMA(self.network, ema_half_life)
        self.has_average = self.ema is not None
        self.canonical: Tensor | None
        self.register_buffer("canonical", None, persistent=False)
        if prompts is not None:
            self.prompts_of_classes = prompts.canonical()
            self.canonical = self.encode(self.prompts_of_classes)
        self.configure_optimizers()  # would otherwise be refused only after the data is loaded

    # What others ask of it

    def sampler(self, average: bool) -> nn.Module:
        network: Any = self.ema.network if average and self.ema is not None else self.network
        options = dict(self.drawing)
        negative = options.pop("negative", "")
        encoded = self.encode([negative])[0] if negative else None
        return FlowSampler(network, **options, shift=self.shift, negative=encoded)

    def expect(self, captions: Iterable[Tensor] = ()) -> None:
        if hasattr(self.network.conditioner, "expect"):
            texts = self.prompts.phrases() if self.prompts is not None else []
            codes = to_codes(texts), *(each.cpu().numpy() for each in captions)
            self.network.conditioner.expect([text for each in codes for text in to_texts(each)])

    def start_average(self) -> None:
        if self.ema is not None:
            self.ema.network.load_state_dict(self.network.state_dict())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        if not self.condition_shape:
            return super().encode(prompts)
        check_prompts(prompts)
        return torch.from_numpy(to_codes(prompts)).to(self.device)

    def draw_with(self, options: Mapping[str, Any]) -> None:
        super().draw_with(options)
        if negative := self.drawing.get("negative"):
            try:
                check_prompts([negative])
            except ValueError as error:
                raise ValueError(f"negative: {error}") from error

    def as_condition(self, labels: Tensor) -> Tensor:
        return self.canonical[labels] if self.canonical is not None and labels.dim() == 1 else labels

    # The objective

    @property
    def why_no_graph(self) -> str:
        in_memory = getattr(self.network.conditioner, "in_main_memory", False)
        return "its text encoder reads prompts in main memory" if in_memory else super().why_no_graph

    def prepared(self, batch: Batch) -> Batch:
        return batch[0], self._prompts_for(batch[1])

    def objective(self, batch: Batch, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """The objective on one batch.

        Args:
            batch: images [N, C, H, W] in [-1, 1], and labels int64 [N] or prompts int64 [N, LENGTH].
            batch_idx: the batch's number; it seeds the noise where nothing is being optimised.

        Returns:
            The loss, detached, as `loss`, and as `loss_<level>` for each fifth of the batch by how noisy its images
            were; and the loss.
        """
        images, condition = batch
        rng = None if self.training else torch.Generator(images.device).manual_seed(batch_idx)
        condition = self.as_condition(condition)
        if self.training:
            dropped = torch.rand(len(images), device=images.device) < self.condition_dropout
            condition = self.network.without(condition, dropped)
        time = self._times(len(images), rng)
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        at = time[:, None, None, None]
        denoise = self._compiled if self.training and self._compiled is not None else self.network
        predicted = denoise(torch.lerp(noise, images, at), time, self.network.conditioner(condition))
        errors = ((predicted.to(images.dtype) - images) / (1 - at).clamp(min=LEAST_NOISE)).square().flatten(1).mean(1)
        losses = {"loss": errors.detach().mean()}
        if len(errors) >= len(LEVELS):
            fifths = errors.detach().tensor_split(len(LEVELS))
            losses |= {f"loss_{level}": fifth.mean() for level, fifth in zip(LEVELS, fifths, strict=True)}
        return losses, errors.mean()

    def _times(self, n: int, rng: torch.Generator | None) -> Tensor:
        """Times [n] in rising order, one from each n-th of their distribution (Kingma et al. 2021)."""
        share = (torch.arange(n, device=self.device) + torch.rand(n, generator=rng, device=self.device)) / n
        return (self.time_mean + self.time_std * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))).sigmoid()

    def _prompts_for(self, condition: Tensor) -> Tensor:
        """A new prompt for each label, and captions in other words; labels stay where the model reads no text."""
        if self.prompts is None:
            return condition
        rng = random.Random(int(torch.randint(2**62, ())))  # torch's state is what a resumed run restores
        if condition.dim() == 1:
            return torch.from_numpy(to_codes(self.prompts.draw(condition.tolist(), rng))).to(condition.device)
        captions = to_texts(condition.cpu().numpy())
        varied = self.prompts.vary(captions, rng)
        other = [i for i, (old, new) in enumerate(zip(captions, varied, strict=True)) if old != new]
        condition = condition.clone()
        condition[other] = torch.from_numpy(to_codes([varied[i] for i in other])).to(condition.device)
        return condition

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        return [make_optimizer("optimizer", self.optimizer, self.network)]

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.compiles:
            log.info("compiling the network: the first step takes up to a minute")
            self._compiled = Compiled(self.network.denoiser.forward, "model.compile")

    def on_train_end(self) -> None:
        super().on_train_end()
        self._compiled = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._n_images = len(batch[0])
        return super().training_step(batch, batch_idx)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:  # here, as callbacks that write checkpoints come before `on_train_batch_end`
            self.ema.update(self.network, self._n_images * self.trainer.world_size)


class ConditionedDenoiser(nn.Module):
    """A denoiser and what reads its condition: the weights that are trained and averaged."""

    def __init__(self, denoiser: nn.Module, conditioner: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner: Any = conditioner

    def without(self, condition: Tensor, dropped: Tensor) -> Tensor:
        """The condition [N, ...] with nothing in the rows that are `dropped`, bool [N]."""
        return torch.where(dropped.view(-1, *[1] * (condition.dim() - 1)), self.conditioner.nothing, condition)

    def forward(self, noisy: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        """Noisy images [N, C, H, W], their times [N] and conditions [N, D] -> predicted images."""
        return self.denoiser(noisy, time, vector)


class FlowSampler(nn.Module):
    """Follows the velocity from noise to an image, in a fixed number of steps.

    Heun's method averages the velocities at both ends of a step. The multistep method integrates the flow exactly for
    an image that changes with time as the last two predictions do (Lu et al. 2022, DPM-Solver++).

    Args:
        network: trained.
        guidance, steps, solver, shift: as in `FlowModel`.
        negative: the condition to move away from; None: no condition.
    """

    def __init__(
        self,
        network: "ConditionedDenoiser",
        guidance: float,
        steps: int,
        solver: str,
        shift: float = 1.0,
        negative: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.guidance = guidance
        self.solver = solver
        self.times = [i / (i + shift * (steps - i)) for i in range(steps + 1)]
        self.negative: Tensor
        nothing = network.conditioner.nothing
        self.register_buffer("negative", nothing if negative is None else negative, persistent=False)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Noise [N, C, H, W] and condition int64 [N] or [N, LENGTH] -> images [N, C, H, W] in [-1, 1]."""
        return self.follow(noise, self.network.conditioner(condition))

    def between(self, noise: Tensor, condition: Tensor, others: Tensor, weight: Tensor) -> Tensor:
        """Images from `condition` (weight 0) to `others` (weight 1), as `forward`."""
        vectors = self.network.conditioner(condition), self.network.conditioner(others)
        return self.follow(noise, torch.lerp(*vectors, weight[:, None].to(vectors[0])))

    def follow(self, images: Tensor, vector: Tensor) -> Tensor:
        """Noise [N, C, H, W] and conditions [N, D] -> images in [-1, 1]."""
        n = images.shape[0]
        if self.guidance != 1:
            nothing = self.network.conditioner(self.negative[None]).expand(n, -1)
            vector = torch.cat([vector, nothing])

        def velocity(at: Tensor, time: float) -> Tensor:
            if self.guidance != 1:
                at = torch.cat([at, at])
            predicted = self.network(at, torch.full_like(at[:, 0, 0, 0], time), vector).clamp(-1, 1)
            velocities = (predicted - at) / max(1 - time, LEAST_NOISE)
            if self.guidance == 1:
                return velocities
            return torch.lerp(velocities[n:], velocities[:n], self.guidance)

        before: tuple[Tensor, float] | None = None
        for time, then in pairwise(self.times):
            first = velocity(images, time)
            moved = images + first * (then - time)
            if self.solver == "heun" and then < 1:
                moved = images + (first + velocity(moved, then)) * ((then - time) / 2)
            elif self.solver == "multistep":
                predicted = images + first * (1 - time)
                if before is not None and then < 1:
                    per_time = (predicted - before[0]) / (time - before[1])
                    moved = moved + per_time * (then - time - (1 - then) * math.log((1 - time) / (1 - then)))
                before = predicted, time
            images = moved
        return images.clamp(-1, 1)
