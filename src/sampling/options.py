"""The options that several verbs share: labels and the folder to write to."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import ListConfig

from src.config.explain import explain_os
from src.errors import UserError
from src.sampling.labels import resolve
from src.sampling.sampler import About


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
