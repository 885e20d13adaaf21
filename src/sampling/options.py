"""The options that several verbs share: the checkpoint, labels, and the folder to write to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from src.config.explain import explain_os
from src.errors import UserError
from src.models.prompts import check_prompts, to_codes
from src.sampling.labels import resolve
from src.sampling.sampler import About, Sampler

# Keys of verbs that say how a model draws, as far as it can be told.
HOW = ("guidance", "steps", "solver", "scheduler", "negative")


@dataclass(frozen=True)
class Wanted:
    """What to draw, M classes or prompts.

    Attributes:
        condition: labels int64 [M], or prompts int64 [M, LENGTH].
        prompts: as they were typed; None: classes are drawn.
    """

    condition: np.ndarray
    prompts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.condition)

    @property
    def kind(self) -> str:
        return "classes" if self.prompts is None else "prompts"


def open_sampler(
    path: Path,
    weights: str = "ema",
    threads: int | None = None,
    trusted: Sequence[str] = (),
    drawing: Mapping[str, Any] | None = None,
) -> Sampler:
    """What draws with a checkpoint or an ONNX file.

    Args:
        path: the file.
        weights: `ema`: the moving average of the weights where there is one; `raw`: the weights themselves.
        threads: that an ONNX file's images are drawn with; None: as many as there are cores.
        trusted: packages beside ours whose classes a checkpoint may name, each with a dot at its end.
        drawing: how to draw, where another way than the model's own is wanted (see `drawing_options`).

    Raises:
        UserError: the file cannot be used, holds other weights, or cannot draw that way.
    """
    if path.suffix != ".onnx":
        from src.sampling.checkpoint_sampler import CheckpointSampler

        return CheckpointSampler(path, weights, trusted, drawing)
    from src.sampling.onnx_sampler import OnnxSampler

    sampler = OnnxSampler(path, threads)
    if weights == "raw" and sampler.about.weights != "raw":
        raise UserError(
            f"weights=raw is not in {path}, which was exported with the moving average: export the checkpoint with"
            " task=export weights=raw"
        )
    for name, value in (drawing or {}).items():
        if value != (fixed := sampler.about.drawing.get(name)):
            its = f"was exported with {name}={fixed}" if fixed not in (None, "") else "was exported without"
            raise UserError(
                f"{name}={value} cannot be chosen for {path}, which {its}: name the checkpoint, or export it with"
                f" {name}={value}"
            )
    return sampler


def drawing_options(config: DictConfig, *names: str) -> dict[str, Any]:
    """How to draw, as far as that was typed: `names` of the keys, which are those of `ImageModel.drawing`."""
    return {name: config[name] for name in names if config[name] is not None}


def check_truncation(truncation: float, about: About) -> None:
    """Refuses to scale the noise of a model that takes noise away, with a UserError.

    Such a model was trained on noise of one strength; what makes its images more typical is guidance.
    """
    if truncation != 1 and "guidance" in about.drawing:
        raise UserError(
            f"truncation={truncation:g} suits GANs alone: type guidance={stronger_guidance(about):g} for images that"
            " are more typical and vary less"
        )


def stronger_guidance(about: About) -> float:
    """What to offer who would have truncated."""
    return max(2.0, 2 * float(about.drawing["guidance"]))


def wanted(config: DictConfig, about: About) -> Wanted:
    """The prompts to draw, or the classes: all, or those numbered or named in `labels`.

    Raises:
        UserError: both are asked for, this model does not draw prompts or classes, or one of them cannot be.
    """
    if config.prompts is None:
        return Wanted(wanted_labels(config.labels, about))
    if config.labels is not None:
        raise UserError("prompts and labels are both set: leave out one of them")
    if not about.reads_text:
        raise UserError(
            f"prompts: this model draws classes and reads no text: type labels=[{about.class_names[-1]}], or choose the"
            " checkpoint of a model that reads text"
        )
    prompts = [config.prompts] if isinstance(config.prompts, str) else list(config.prompts)
    if not prompts:
        raise UserError("prompts is an empty list: type prompts='[\"...\"]', or leave it out")
    try:
        check_prompts(prompts)
    except ValueError as error:
        raise UserError(f"prompts: {error}") from error
    return Wanted(to_codes(prompts), prompts)


def wanted_labels(labels: Any, about: About) -> np.ndarray:
    """The classes to draw, int64: all where `labels` is None, else those numbered or named (`resolve`)."""
    if about.reads_text and not about.prompts:
        raise UserError("labels: this model knows captions and no classes: type what to draw, prompts='[\"...\"]'")
    if labels is None:
        return np.arange(about.n_classes)
    chosen = list(labels) if isinstance(labels, (list, ListConfig)) else [labels]
    if not chosen:
        raise UserError("labels is an empty list: type labels=[0], or leave it out for every class")
    try:
        return np.array([resolve(each, about.class_names) for each in chosen], np.int64)
    except ValueError as error:
        raise UserError(f"labels: {error}") from error


def out_folder(out: str) -> Path:
    """The folder to write to, made where it is missing.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out} cannot be made ({error.strerror}): choose another folder with out=DIR") from error
    return folder


def out_is_full(error: OSError) -> UserError:
    """What to say where nothing more could be written to `out`."""
    return UserError(f"out: {explain_os(error, 'choose another folder with out=DIR')}")
