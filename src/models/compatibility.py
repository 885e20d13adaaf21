"""Options of the GAN that contradict each other, or the run. Each message begins with the option to change."""

import logging
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

log = logging.getLogger(__name__)


def check_options(model: Any) -> None:
    """Refuses options that cannot work together, before anything is trained.

    Raises:
        ValueError: names the option.
    """
    loss = type(model.loss).__name__
    if model.mismatched_labels and model.n_classes == 1:
        raise ValueError(
            f"mismatched_labels is {model.mismatched_labels}, but with one class no label is wrong: set it to 0"
        )
    if model.label_smoothing and not getattr(model.loss, "has_targets", False):
        raise ValueError(
            f"label_smoothing is {model.label_smoothing}, but {loss} has no targets to smooth: set it to 0"
        )
    if getattr(model.loss, "needs_lipschitz", False) and not (model.penalties or model.spectral_norm):
        raise ValueError(
            f"loss is {loss}, which needs a Lipschitz discriminator: use model/objective=wasserstein, which has a"
            " gradient penalty, or set model.spectral_norm=true"
        )
    if model.penalties and any(isinstance(module, _BatchNorm) for module in model.discriminator.modules()):
        raise ValueError(
            f"penalties ({', '.join(model.penalties)}) cannot be used with BatchNorm in the discriminator, as an"
            " image's score then has no gradient of its own: set them to null, or use another network"
        )
    for name, augmentation in model.augment.items():
        try:
            augmentation(torch.zeros(2, model.channels, model.img_size, model.img_size), 0.0)
        except ValueError as error:
            raise ValueError(f"augment cannot use {name}: {error}") from error


def check_run(model: Any) -> None:
    """Warns of options that the run is too short for."""
    trainer = model.trainer
    every = {f"penalties.{name}.every": penalty.every for name, penalty in model.penalties.items()}
    for key, n in {"d_steps": model.d_steps, **every}.items():
        if n > trainer.estimated_stepping_batches:
            batches = trainer.estimated_stepping_batches
            log.warning("model.%s=%s is never reached, as the run has only %s batches", key, n, batches)
