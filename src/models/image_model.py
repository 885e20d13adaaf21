"""What every model that draws images offers. Verbs and callbacks know no more of a model than this."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from src.errors import DivergedError
from src.models.modules.mixing import draw_between
from src.models.prompts import Prompts
from src.models.request import Request


class ImageModel(LightningModule):
    """A model that draws images of a condition.

    A family of models implements `sampler`; everything else that draws follows from it.

    Attributes:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the images in pixels.
        noise_shape: shape of the noise of one image.
        condition_shape: shape of the condition of one image: () for a label, (LENGTH,) for a prompt.
        prompts: what people type for its classes, where it reads text and was not trained on captions.
        drawing: how it draws, as far as that can be chosen, such as its guidance: plain values.
        prompts_of_classes: what stands for each class where the model reads text.
        not_exported: why no exported file can draw as the model does, where none can.
        has_average: whether there is a moving average of the weights.
        has_base: whether it can draw as it did before it was trained (`as_base`).
        images_at_once: of models that take seconds an image: how many are drawn together; None: any number. They are
            drawn on a GPU where there is one.
        progress_metrics: the metrics that its progress bar shows, such as `train/loss`.
        confusions: of the last validation or test, by a name in `tables`: int64 [N, N], how often the model took
            images of the row's kind for the column's.
        learning_rates: the keys of its learning rates, for the message where training diverges.
        curves: how a report draws the model's own metrics, a panel each, as plain values: `title`, `unit` of the
            vertical axis, `lines` (metric with its split -> label; drawn over epochs where the first is under `val/`,
            else over batches). Where wanted also `note` (how to read it), `levels` (label -> height of a horizontal
            line), `log` (logarithmic axis), `percent` (values are shares), `compare` (shown where runs are compared).
        tables: how a report shows the model's own tables of counts [N, N], by the name they are logged under: `title`,
            `rows` and `columns` (what they stand for), `names` of both, `caption`, and where wanted `note`.
    """

    n_classes: int
    channels: int
    img_size: int
    noise_shape: tuple[int, ...]
    condition_shape: tuple[int, ...] = ()
    prompts: Prompts | None = None
    drawing: Mapping[str, Any] = {}
    prompts_of_classes: Sequence[str] = ()
    not_exported: str = ""
    has_average: bool = False
    has_base: bool = False
    images_at_once: int | None = None
    progress_metrics: tuple[str, ...] = ()
    confusions: Mapping[str, Tensor] = {}

    curves: list[dict[str, Any]] = []
    tables: dict[str, dict[str, Any]] = {}

    learning_rates: str = "the learning rate"

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes before and after each of its forty hooks a batch which one runs. Torch would ask each time
        # whether that is a parameter, which takes 1 % of a small network's step.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def sampler(self, average: bool) -> nn.Module:
        """The network that draws: `forward(noise, condition)` -> images [N, C, H, W] in [-1, 1].

        Noise is [N, *noise_shape], the condition int64 [N, *condition_shape]. `draw_between` says how it draws what is
        between two conditions.

        Args:
            average: whether to use the moving average of the weights, where there is one.
        """

    def expect(self, captions: Iterable[Tensor] = ()) -> None:
        """Gets ready to be asked for its classes and for captions, each int [N, *condition_shape], as far as it has to.

        Raises:
            UserError: it cannot read them.
        """

    def check_data(self, datamodule: Any) -> None:
        """Refuses data that it cannot be trained on, with a UserError, once they are there."""

    def start_average(self) -> None:
        """Starts the moving average of the weights, where there is one, from the weights as they are."""

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """For the block, draws as before training, if `has_base`."""
        raise NotImplementedError
        yield

    def alarms(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Failures that only this family of models has, each a sentence under a short name that never changes.

        Args:
            metrics: those of the last validation or test, without `val/` or `test/`.
        """
        return {}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as the condition that the sampler reads, int64 [N, *condition_shape].

        Raises:
            ValueError: the model reads no text, or a prompt is empty or too long.
        """
        raise ValueError("this model draws classes and reads no text")

    def draw_with(self, options: Mapping[str, Any]) -> None:
        """Draws in another way from now on; `options` are some of `drawing`.

        Raises:
            ValueError: the model cannot be told one of them.
        """
        for name, value in options.items():
            if name not in self.drawing:
                others = f"choose among {', '.join(self.drawing)}" if self.drawing else "it has no such options"
                raise ValueError(f"{name}={value} is not an option of a {type(self).__name__}: leave it out ({others})")
        self.drawing = {**self.drawing, **options}

    def as_condition(self, labels: Tensor) -> Tensor:
        """What the sampler reads, int64 [N, *condition_shape], for labels int64 [N]; anything else stays."""
        return labels

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [N, *noise_shape] and labels int64 [N] -> images [N, C, H, W] in [-1, 1], not by the moving average.

        Raises:
            ValueError: a shape, a type or a label does not fit.
        """
        self._check(Request(noise, labels))
        return self.sampler(average=False)(noise, self.as_condition(labels))

    def generate(
        self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None, average: bool = True
    ) -> Tensor:
        """Draws one image a label, by the moving average of the weights where there is one.

        Args:
            labels: int64 [N]; or what `encode` makes of prompts.
            rng: source of the noise, which then is the same on every device; None: torch's global generator.
            noise: [N, *noise_shape], to use instead of drawing some.
            average: False: by the weights themselves in any case.

        Returns:
            Images [N, C, H, W] in [-1, 1] on the model's device.

        Raises:
            ValueError: a shape, a type or a label does not fit.
        """
        self._check_condition(labels)
        return self.draw(Request(self.draw_noise(len(labels), rng) if noise is None else noise, labels), average)

    def interpolate(
        self, labels: Tensor, others: Tensor, weight: Tensor, noise: Tensor, average: bool = True
    ) -> Tensor:
        """Draws images between two classes: from `labels` (weight 0) to `others` (weight 1), as `generate` does."""
        return self.draw(Request(noise, labels, others, weight), average)

    @torch.no_grad()
    def draw(self, request: Request[Tensor], average: bool = True, bfloat16: bool | None = None) -> Tensor:
        """Draws what a request asks for, in evaluation mode: images [N, C, H, W] in [-1, 1] on the model's device.

        Args:
            request: noise and conditions.
            average: False: by the weights themselves in any case.
            bfloat16: whether networks compute in bfloat16, as in training with bf16-mixed; None: as the run trains, and
                not where there is none.

        Raises:
            ValueError: a shape, a type or a label does not fit.
        """
        self._check(request)
        request = request.map(lambda tensor: tensor.to(self.device))
        condition = self.as_condition(request.condition)
        sampler = self.sampler(average)
        if bfloat16 is None:
            bfloat16 = self._trainer is not None and self.trainer.precision == "bf16-mixed"
        precision = torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext()
        with evaluating(sampler), precision:
            if request.others is None or request.weight is None:
                images = sampler(request.noise, condition)
            else:
                others = self.as_condition(request.others)
                images = draw_between(sampler, request.noise, condition, others, request.weight)
        return images.to(self.dtype)

    def draw_noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Standard normal noise [n, *noise_shape], drawn on the device of `rng`."""
        device = rng.device if rng else self.device
        return torch.randn(n, *self.noise_shape, generator=rng, device=device).to(self.dtype)

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
                f" {self.learning_rates}, or resume from an earlier checkpoint"
            )

    def _check(self, request: Request[Tensor]) -> None:
        for labels in (request.condition, request.others):
            if labels is not None:
                self._check_condition(labels)
        noise, shape = request.noise, (len(request), *self.noise_shape)
        if not isinstance(noise, Tensor):
            raise ValueError(f"noise must be a tensor {list(shape)}, not a {type(noise).__name__}")
        if noise.shape != shape:
            raise ValueError(f"noise must be {list(shape)}, one row a label, not {list(noise.shape)}")
        if noise.dtype != self.dtype:
            raise ValueError(f"noise must be {self.dtype}, as the weights are, not {noise.dtype}")
        if not noise.isfinite().all():
            raise ValueError("noise must be finite numbers, but some are infinite or not a number")

    def _check_condition(self, labels: Tensor) -> None:
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels must be a tensor int64 [N], not a {type(labels).__name__}")
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64, not {labels.dtype}")
        if self.condition_shape and labels.dim() > 1:
            if labels.shape[1:] != self.condition_shape:
                raise ValueError(f"prompts must be [N, {self.condition_shape[0]}], not {list(labels.shape)}")
            return
        if labels.dim() != 1:
            raise ValueError(f"labels must be [N], one class an image, not {list(labels.shape)}")
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.n_classes):
            raise ValueError(
                f"labels must be 0 to {self.n_classes - 1}, not {int(labels.min())} to {int(labels.max())}"
            )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
