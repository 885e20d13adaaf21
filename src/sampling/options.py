"""What people ask to be drawn, checked."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from src.config.explain import explain_os
from src.config.numbers import is_whole
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


def check_numbers(config: DictConfig, **least: int) -> None:
    """Checks that keys are whole numbers of at least so much, and `truncation`, if there, a number from 0 to 1.

    Raises:
        UserError: names the key.
    """
    for name, at_least in least.items():
        value = config[name]
        if not is_whole(value, at_least) or value >= 2**63:
            raise UserError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    value = config.get("truncation", 1)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"truncation must be a number from 0 to 1, not {value!r}: 1 is the whole variety")


def out_folder(out: Any) -> Path:
    """The folder to write to, made where it is missing.

    Raises:
        UserError: it cannot be made.
    """
    if not isinstance(out, str) or not out:
        raise UserError(f"out must be a folder, not {out!r}: type out=DIR")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out} cannot be made ({error.strerror}): choose another folder with out=DIR") from error
    return folder


def out_is_full(error: OSError) -> UserError:
    """What to say where nothing more could be written to `out`."""
    return UserError(f"out: {explain_os(error, 'choose another folder with out=DIR')}")
