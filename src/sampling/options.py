"""The options that several verbs share: the checkpoint, labels, and the folder to write to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import ListConfig

from src.config.explain import explain_os
from src.errors import UserError
from src.sampling.labels import resolve
from src.sampling.sampler import About, Sampler


def open_sampler(path: Path, weights: str = "ema", threads: int | None = None, trusted: Sequence[str] = ()) -> Sampler:
    """What draws with a checkpoint or an ONNX file.

    Args:
        path: the file.
        weights: `ema`: the moving average of the weights where there is one; `raw`: the weights themselves.
        threads: that an ONNX file's images are drawn with; None: as many as there are cores.
        trusted: packages beside ours whose classes a checkpoint may name, each with a dot at its end.

    Raises:
        UserError: the file cannot be used, or holds other weights.
    """
    if path.suffix != ".onnx":
        from src.sampling.checkpoint_sampler import CheckpointSampler

        return CheckpointSampler(path, weights, trusted)
    from src.sampling.onnx_sampler import OnnxSampler

    sampler = OnnxSampler(path, threads)
    if weights == "raw" and sampler.about.weights != "raw":
        raise UserError(
            f"weights=raw is not in {path}, which was exported with the moving average: export the checkpoint with"
            " task=export weights=raw"
        )
    return sampler


def wanted_labels(labels: Any, about: About) -> np.ndarray:
    """The classes to draw, int64: all where `labels` is None, else those numbered or named (`resolve`).

    Raises:
        UserError: one is no class of this model.
    """
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
