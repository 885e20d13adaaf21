"""A published Stable Diffusion, fine-tuned on captioned pictures: an adapter of low rank, or its whole network."""

import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Optimizer

from src.config.types import Count, Positive, Share
from src.errors import UserError
from src.models.adapter import MODEL_CARD, add_adapter, save_adapter, without_adapter
from src.models.diffusion_base import ALL_SCHEDULERS, KEY, DiffusionBase, find_base
from src.models.diffusion_sampler import DiffusionSampler
from src.models.encoded import Text, Texts, embed, latents_of
from src.models.prompts import LENGTH, Prompts, check_prompts, to_codes, to_texts
from src.models.scheduled_model import OneLossModel, OptimizerFactory, make_optimizer
from src.models.schedules import Schedule

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
Guidance = Annotated[float, Field(ge=0, le=100)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Scheduler = Literal[ALL_SCHEDULERS]  # type: ignore[valid-type]
Targets = Annotated[Sequence[str], Field(min_length=1)] | Literal["all"]
Enlarged = Annotated[float, Field(ge=1)]

PIXELS = 64 * 64 * 64  # drawn at once: 64 images of 64 pixels, or one of 512
PRECISIONS = ("32-true", "bf16-mixed")
GB = 1e9


class StableDiffusionModel(OneLossModel):
    """Images of a text, by a published Stable Diffusion (Rombach et al. 2022; Esser et al. 2024) that is fine-tuned.

    The checkpoint does not hold the base, but its name and checksum. Images go through the base's VAE once, and texts
    through its encoder once; batches hold the results.

    Args:
        base: a folder with the base in diffusers' layout, or a name on the Hugging Face hub.
        sha256: checksum of its files; another base is refused.
        cache_dir: where latents and embeddings are kept.
        prompts: what people type for the classes; where the images have captions of their own, training sees these.
        optimizer: makes the optimizer of what is trained.
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels, 3.
        img_size: height and width of the images in pixels.
        rank: of the adapter's matrices; None: no adapter, the whole network is trained.
        alpha: scales the adapter by alpha / rank; None: by 1.
        dropout: share of an adapter's inputs that are left out in training.
        targets: ends of the names of layers that get an adapter; `all`: every linear layer and convolution; None: the
            queries, keys, values and outputs of attention.
        train_text_encoder: whether the text encoder gets an adapter, too: texts are then embedded in each batch.
        gradient_checkpointing: computes what the backward pass needs a second time, instead of keeping it.
        max_enlargement: by how much pictures may be enlarged to `img_size` at most.
        schedule: how the learning rate changes (`src/models/schedules.py`); None: constant.
        schedule_batches: batches over which `schedule` runs its course; None: those of the whole run.
        condition_dropout: share of the images that are trained on without their text, for guidance.
        clip_grad_norm: largest norm of the gradients; None: any.
        guidance: how far to go from the images of no text to those of the text; 1: that far, and no more.
        steps: from noise to image.
        scheduler: how they are taken; None: as the base does.

    Raises:
        UserError: the base is not there, is another one, or cannot be used.
        ValueError: options do not fit it, or each other.
    """

    condition_shape = (LENGTH,)
    progress_metrics = ("train/loss",)
    learning_rates = "model.optimizer.lr"
    not_exported = "the file would lack its base; use the adapter in the run's lora/ folder with diffusers or ComfyUI"
    curves = [
        {
            "title": "Loss",
            "note": "A mean over all levels of noise, which differ from batch to batch: look at its trend.",
            "unit": "loss, no unit",
            "lines": {"train/loss": "training", "val/loss": "validation"},
            "log": True,
            "compare": True,
        },
        {
            "title": "Gradient norm",
            "note": "Of all weights that are trained, before clipping.",
            "unit": "norm, no unit",
            "lines": {"train/grad_norm": "norm"},
            "log": True,
        },
    ]

    def __init__(
        self,
        base: str | None = None,
        sha256: str | None = None,
        cache_dir: str | Path = "data/embeddings",
        prompts: Prompts | None = None,
        optimizer: OptimizerFactory | None = None,
        n_classes: int = 0,
        channels: Count = 3,
        img_size: Count = 512,
        rank: Count | None = 16,
        alpha: Positive | None = None,
        dropout: Share = 0.0,
        targets: Targets | None = None,
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
        max_enlargement: Enlarged = 1.05,
        schedule: Schedule | None = None,
        schedule_batches: Count | None = None,
        condition_dropout: Share = 0.1,
        clip_grad_norm: Positive | None = 1.0,
        guidance: Guidance = 7.5,
        steps: Steps = 20,
        scheduler: Scheduler | None = None,
    ) -> None:
        super().__init__()
        self.base = DiffusionBase(base) if sha256 is None or not base else find_base(base, sha256)
        self._check_options(channels, img_size, n_classes, prompts, rank, train_text_encoder)
        for part in self.base.tokenizers:
            self.base.tokenizer(part)
        self.cache_dir = Path(cache_dir).expanduser()
        self.prompts = prompts
        self.optimizer = optimizer or partial(AdamW, lr=1e-4, fused=True)
        self.n_classes = n_classes
        self.channels = channels
        self.img_size = img_size
        self.rank = rank
        self.alpha = alpha
        self.max_enlargement = max_enlargement
        self.schedule = schedule
        self.schedule_batches = schedule_batches
        self.condition_dropout = condition_dropout
        self.clip_grad_norm = clip_grad_norm
        side = img_size // self.base.scale
        self.noise_shape = (int(self.base.configs["vae"].get("latent_channels", 4)), side, side)
        self.images_at_once = max(1, PIXELS // img_size**2)
        self.has_base = rank is not None
        own = scheduler or self.base.usual_scheduler
        self.drawing: dict[str, Any] = {"guidance": guidance, "steps": steps, "scheduler": own, "negative": ""}
        self.draw_with({})
        if prompts is not None:
            self.prompts_of_classes = prompts.canonical()

        self.texts = Texts(self.base)
        self.network = Networks(self.base.load(self.base.family.network))
        self._reader: Any = None  # the pipeline around a text encoder that is trained
        if rank is None:
            self.network.requires_grad_(True)
        else:
            how = rank, alpha or float(rank), dropout
            add_adapter(self.network.denoiser, *how, self.base.family.targets if targets is None else targets, KEY)
            if train_text_encoder:
                parts = self.base.text_parts()
                self.network.text_encoder = parts["text_encoder"]
                add_adapter(parts["text_encoder"], *how, ("q_proj", "k_proj", "v_proj", "out_proj"), KEY)
                self._reader = self.base.pipeline(**parts)
        if gradient_checkpointing:
            self.network.denoiser.enable_gradient_checkpointing()
        self._low = False  # whether frozen weights are bfloat16
        self._vae: list[Any] = []  # once it has drawn; no part of the network
        self.drawing_lock = threading.Lock()  # a service draws in several threads, and memory holds one drawing
        self.noise_levels: Tensor
        levels = torch.empty(0) if self.base.family.is_flow else self.base.noise_levels()
        self.register_buffer("noise_levels", levels, persistent=False)
        self.configure_optimizers()  # would otherwise be refused only after the data is loaded
        self._kept = self._kept_by_backward()

    def _check_options(
        self,
        channels: int,
        img_size: int,
        n_classes: int,
        prompts: Prompts | None,
        rank: int | None,
        train_text_encoder: bool,
    ) -> None:
        if channels != self.base.configs["vae"].get("in_channels", 3):
            raise ValueError(
                f"channels is {channels}, but the base draws in colour: choose data in colour, or set"
                " datamodule.channels=3 of datamodule=folder"
            )
        patch = self.base.configs["transformer"].get("patch_size", 2) if self.base.family.is_flow else 1
        least = self.base.scale * patch
        if img_size % least:
            near = max(least, round(img_size / least) * least)
            raise ValueError(
                f"img_size is {img_size}, but must be a multiple of {least} for this base: set"
                f" datamodule.img_size={near}"
            )
        if prompts is not None and len(prompts.names) != n_classes:
            raise ValueError(f"prompts.names has {len(prompts.names)} classes, but n_classes is {n_classes}")
        if train_text_encoder and (rank is None or self.base.family.is_flow):
            why = "rank is null" if rank is None else f"the base is a {self.base.kind}"
            raise ValueError(f"train_text_encoder is true, but {why}: set it to false")

    @staticmethod
    def follow_files(options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that follow from the base's files, for the configuration to hold; asks the hub for a name there."""
        found = DiffusionBase(options["base"], KEY, download=True)
        if options["sha256"] not in (None, found.sha256):
            raise UserError(f"{KEY}={found.name} has another checksum than model.sha256: set model.sha256=null")
        return {"base": found.name, "sha256": found.sha256}

    # Only what is trained is saved: the base is not.

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: p.detach() for name, p in self._trained().items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        trained = self._trained()
        if trained.keys() != state_dict.keys():
            odd = sorted(trained.keys() ^ state_dict.keys())
            raise RuntimeError(f"the weights are of another model: {', '.join(odd[:3])}")
        for name, parameter in trained.items():
            parameter.copy_(state_dict[name])
        return nn.modules.module._IncompatibleKeys([], [])

    # What others ask of it

    def sampler(self, average: bool) -> nn.Module:
        options = dict(self.drawing)
        negative = options.pop("negative")
        return DiffusionSampler(self, negative, **options)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        with without_adapter(self.network):
            yield

    def encode(self, prompts: Sequence[str]) -> Tensor:
        check_prompts(prompts)
        return torch.from_numpy(to_codes(prompts)).to(self.device)

    def draw_with(self, options: Mapping[str, Any]) -> None:
        super().draw_with(options)
        known = self.base.family.schedulers
        if self.drawing["scheduler"] not in known:
            raise ValueError(
                f"scheduler is {self.drawing['scheduler']!r}, but this base is drawn with one of {', '.join(known)}"
            )
        if negative := self.drawing["negative"]:
            try:
                check_prompts([negative])
            except ValueError as error:
                raise ValueError(f"negative: {error}") from error

    def as_condition(self, labels: Tensor) -> Tensor:
        if labels.dim() > 1 or self.prompts is None:
            return labels
        return self.encode(self.prompts_of_classes)[labels.to(self.device)]

    def text(self, condition: Tensor) -> Text:
        """Prompts int64 [N, LENGTH] as the network reads them: [N, L, D], and of a flow-matching base [N, P]."""
        texts = to_texts(condition.cpu().numpy())
        if self._reader is not None:
            return embed(self._reader, texts, self.device)
        return tuple(each.to(self.device) for each in self.texts(texts))

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Any]:
        """The VAE, for the block on a device, where training has no room for it."""
        if not self._vae:
            self._vae.append(self.base.load("vae"))
        try:
            yield self._vae[0].to(device)
        finally:
            self._vae[0].to("cpu")

    def predict(self, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        """What the network says of noisy latents [N, c, h, w] at times [N] or []."""
        if self.base.family.is_flow:
            options = {"encoder_hidden_states": text[0], "pooled_projections": text[1], "return_dict": False}
            return self.network.denoiser(hidden_states=noisy, timestep=time.expand(len(noisy)), **options)[0]
        return self.network.denoiser(noisy, time, encoder_hidden_states=text[0], return_dict=False)[0]

    # The objective

    @property
    def why_no_graph(self) -> str:
        return "prompts are read in main memory"

    def objective(self, batch: Batch, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """The objective on one batch.

        Args:
            batch: latents [N, c, h, w], and labels int64 [N] or prompts int64 [N, LENGTH].
            batch_idx: the batch's number; it seeds the noise where nothing is being optimised.

        Returns:
            The loss, detached, as `loss`; and the loss.
        """
        latents, condition = batch
        if latents.shape[1:] != self.noise_shape:
            raise ValueError(f"batches must hold latents {list(self.noise_shape)}, not {list(latents.shape[1:])}")
        rng = None if self.training else torch.Generator(latents.device).manual_seed(batch_idx)
        condition = self._prompts_for(condition) if self.training else self.as_condition(condition)
        if self.training:
            dropped = torch.rand(len(latents), device=latents.device) < self.condition_dropout
            condition = condition.masked_fill(dropped[:, None], 0)
        noise = torch.randn(latents.shape, generator=rng, device=latents.device)
        # One from each n-th of their distribution (Kingma et al. 2021).
        n = len(latents)
        share = (torch.arange(n, device=latents.device) + torch.rand(n, generator=rng, device=latents.device)) / n
        if self.base.family.is_flow:
            shift = float(self.base.configs["scheduler"].get("shift", 1.0))
            level = torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)).sigmoid()  # Esser et al. 2024
            level = shift * level / (1 + (shift - 1) * level)
            noisy, wanted = torch.lerp(latents, noise, level[:, None, None, None]), noise - latents
            time = level * self.base.configs["scheduler"].get("num_train_timesteps", 1000)
        else:
            time = (share * len(self.noise_levels)).long().clamp(max=len(self.noise_levels) - 1)
            kept = self.noise_levels[time][:, None, None, None]
            signal, spread = kept.sqrt(), (1 - kept).sqrt()
            noisy = signal * latents + spread * noise
            wanted = noise if self.base.prediction == "epsilon" else signal * noise - spread * latents
        with self.in_low_precision():
            predicted = self.predict(noisy, time, self.text(condition))
        loss = mse_loss(predicted.float(), wanted.float())
        return {"loss": loss.detach()}, loss

    def in_low_precision(self) -> Any:
        """For a block, computes as frozen weights are held."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._low)

    def _prompts_for(self, condition: Tensor) -> Tensor:
        """A phrasing for each label; captions stay as they are."""
        if condition.dim() > 1:
            return condition
        assert self.prompts is not None
        rng = random.Random(int(torch.randint(2**62, ())))  # torch's state is what a resumed run restores
        return torch.from_numpy(to_codes(self.prompts.draw(condition.tolist(), rng))).to(condition.device)

    # Before training

    def setup(self, stage: str) -> None:
        """Encodes the images and texts of the run once, says what memory training takes, and makes weights small.

        Raises:
            UserError: the data cannot be trained on, or there is too little memory.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "serve_encoded"):
            raise UserError("model=stable_diffusion needs one of configs/datamodule/, or a part that is made like them")
        if self.trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision is {self.trainer.precision}, in which an adapter cannot be trained: choose"
                f" {' or '.join(PRECISIONS)}"
            )
        device = self.trainer.strategy.root_device
        if data.encodes is not self:
            self._say_memory(data.batch_size, device)
            if not self.trainer.is_global_zero:  # the first process writes the files, and the others read them
                self.trainer.strategy.barrier("encoded")
            self._encode(data, device)
            if self.trainer.is_global_zero:
                self.trainer.strategy.barrier("encoded")
        if self.trainer.precision == "bf16-mixed" and not self._low:
            # Autocast would convert frozen weights in each forward pass. They reach the device like this.
            self._low = True
            for parameter in (each for each in self.parameters() if not each.requires_grad):
                parameter.data = parameter.data.bfloat16()

    def check_data(self, datamodule: Any) -> None:
        if getattr(datamodule, "crop", 0):
            raise UserError(
                "datamodule.crop must be 0 with model=stable_diffusion, which encodes each picture once: set"
                " datamodule.crop=0.0, as datamodule.flip may stay"
            )
        size = self.img_size / self.max_enlargement
        if n := datamodule.n_smaller(size):
            raise UserError(
                f"datamodule.img_size is {self.img_size}, but {n:,} pictures have sides of less than {size:.0f} pixels"
                " and would be enlarged: set a smaller datamodule.img_size, remove them, or set model.max_enlargement=8"
            )

    def _encode(self, data: Any, device: torch.device) -> None:
        for split, images in data.sets.items():
            mirrored = split == "train" and bool(data.flip)
            hashed = data.sha256_of(split)
            served = lambda rows, images=images: images.__getitems__(rows)[0]  # noqa: E731
            of = hashed, len(images), self.noise_shape, mirrored, self.cache_dir, device
            data.serve_encoded(split, latents_of(self.base, served, *of))
        data.encodes = self
        if self._reader is None:
            said = [each.captions for each in data.sets.values() if each.captions is not None]
            texts = [text for codes in said for text in to_texts(codes.numpy())] or self._phrases()
            cut = self.texts.expect(["", *texts, *self._phrases()], self.cache_dir, device)
            if cut:
                what = "captions" if said else "phrasings of classes"
                log.warning(
                    "%s of %s %s have more tokens than the base reads: the rest is left out",
                    *(f"{sum(text in cut for text in texts):,}", f"{len(texts):,}", what),
                )
        self.texts.forget()

    def _phrases(self) -> list[str]:
        """Each text that training can draw for a class, as the network reads it."""
        if self.prompts is None:
            return []
        return to_texts(to_codes(self.prompts.phrases()))

    def _kept_by_backward(self) -> int:
        """Bytes that one image keeps for the backward pass; finds out, too, whether the base's parts fit each other.

        Nothing is computed, only what shape it has.

        Raises:
            UserError: they do not fit.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        encoder = self.base.configs["text_encoder"]
        kept: dict[int, Tensor] = {}  # by their memory, which several may share

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        was = self.training
        self.train()
        said = logging.getLogger("torch._subclasses.fake_tensor")  # a traceback, before it raises
        said.disabled = True
        try:
            with FakeTensorMode():
                every = [*self.network.named_parameters(), *self.network.named_buffers()]
                shapes = {k: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad) for k, t in every}
                known = {each.untyped_storage()._cdata for each in shapes.values()}
                noisy, time = torch.empty(1, *self.noise_shape), torch.empty(1)
                if self.base.family.is_flow:
                    second = self.base.configs["text_encoder_2"]
                    pooled = encoder.get("projection_dim", 512) + second.get("projection_dim", 512)
                    joint = self.base.configs["transformer"].get("joint_attention_dim", 4096)
                    text: Text = (torch.empty(1, 2 * 77, joint), torch.empty(1, pooled))
                else:
                    text = (
                        torch.empty(1, encoder.get("max_position_embeddings", 77), encoder.get("hidden_size", 512)),
                    )
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
                    functional_call(
                        Predictor(self), {f"network.{k}": t for k, t in shapes.items()}, (noisy, time, text)
                    )
        except Exception as error:
            raise self.base.refused(
                f"has parts that do not fit each other ({str(error).splitlines()[0][:200]})"
            ) from error
        finally:
            self.train(was)
            said.disabled = False
        return sum(each.untyped_storage().nbytes() for memory, each in kept.items() if memory not in known)

    def _say_memory(self, batch_size: int, device: torch.device) -> None:
        """Says what training takes on the device, and refuses it where the weights alone do not fit."""
        half = self.trainer.precision == "bf16-mixed"
        frozen = sum(p.numel() for p in self.parameters() if not p.requires_grad)
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        weights = (2 if half else 4) * frozen + 4 * trained  # already there, if the device is the CPU
        learning = 12 * trained  # gradients, and two moments of Adam
        kept = self._kept * batch_size // (2 if half else 1)
        least, total, there = weights + learning, weights + learning + kept, free_memory(device)
        if there is not None and device.type == "cpu":
            there += sum(p.numel() * p.element_size() for p in self.parameters())
        lower = "set trainer.precision=bf16-mixed" if not half else "choose a smaller model.rank or base"
        if there is not None and least > there:
            raise UserError(
                f"there is not enough memory on {device}: weights and optimizer take {least / GB:.1f} GB of"
                f" {there / GB:.1f} GB that are free: {lower}"
            )
        log.info(
            "training takes about %.1f GB of %s on %s: weights %.1f, gradients and optimizer of %s trained weights"
            " %.1f, and %.1f for a batch of %d",
            *(total / GB, "?" if there is None else f"{there / GB:.1f}", device, weights / GB, f"{trained:,}"),
            *(learning / GB, kept / GB, batch_size),
        )
        if there is not None and total > there:
            log.warning("that is more than is free: lower datamodule.batch_size, or model.gradient_checkpointing=true")

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        return [make_optimizer("optimizer", self.optimizer, nn.ParameterList(self._trained().values()))]

    def on_train_epoch_start(self) -> None:
        self.texts.forget()  # grids of the last epoch may have needed both
        self._vae.clear()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One batch, forward, backward and update; a UserError where the device's memory ends."""
        try:
            super().optimizer_step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"there is not enough memory on {self.device} for this batch: lower datamodule.batch_size, set"
                " model.gradient_checkpointing=true or trainer.precision=bf16-mixed"
            ) from error

    def on_train_end(self) -> None:
        """Writes what was trained for others to use, into `lora/` or `unet/` of the run folder."""
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir)
        if self.rank is None:
            self.network.denoiser.save_pretrained(folder / self.base.family.network)
            return
        networks = {self.base.family.network: self.network.denoiser, "text_encoder": self.network.text_encoder}
        save_adapter(
            {k: v for k, v in networks.items() if v is not None}, self.base.kind, folder / "lora", self._card()
        )

    def _card(self) -> str:
        data = getattr(self.trainer, "datamodule", None)
        prompt = next(iter(self.prompts_of_classes), "what to draw")
        name = Path(self.base.name).name if Path(self.base.name).is_dir() else self.base.name
        return MODEL_CARD.format(
            base=name,
            sha256=self.base.sha256,
            kind=self.base.kind,
            rank=self.rank,
            alpha=self.alpha or self.rank,
            data=getattr(data, "source", "unknown"),
            n=len(data.sets["train"]) if data is not None else 0,
            img_size=self.img_size,
            batches=self.trainer.global_step,
            batch_size=getattr(data, "batch_size", "unknown"),
            prompt=prompt,
        )


class Networks(nn.Module):
    """What is on the device in training."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.text_encoder: Any = None


class Predictor(nn.Module):
    """A model's prediction as a function of its weights."""

    def __init__(self, model: StableDiffusionModel) -> None:
        super().__init__()
        self.network = model.network
        self.predict = model.predict

    def forward(self, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        return self.predict(noisy, time, text)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        with suppress(OSError, StopIteration, ValueError):  # no Linux
            lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    return None
