"""Checkpoints: read them without trusting them, and rebuild the model from the file alone."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule

from src.config.instantiate import instantiate
from src.errors import UserError
from src.run.trust import MODELS, refuse_untrusted


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint that this project wrote. No code in the file is run.

    Raises:
        UserError: the file is empty, damaged, not ours, or holds code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"ckpt_path={path} is not a checkpoint, or holds more than numbers and text; no code in it was run: choose"
            " another one"
        ) from error
    except OSError as error:
        raise UserError(f"ckpt_path={path} cannot be read ({error.strerror or error}): choose another one") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... for files that are cut or garbled
        found = "damaged or not a checkpoint" if path.stat().st_size else "empty"
        raise UserError(f"ckpt_path={path} is {found}: choose another one") from error
    weights, config = (checkpoint.get(k) if isinstance(checkpoint, dict) else None for k in ("state_dict", "config"))
    if not (isinstance(weights, dict) and isinstance(config, dict) and all(map(torch.is_tensor, weights.values()))):
        raise UserError(
            f"ckpt_path={path} was not written by this project, as it lacks 'state_dict' or 'config': choose a"
            " ckpts/last.ckpt"
        )
    return checkpoint


def build_model(checkpoint: dict[str, Any], path: Path, trusted: Sequence[str] = ()) -> LightningModule:
    """The trained model, from the configuration and the weights in a checkpoint.

    Packages beside ours whose classes may be built are `trusted`, each with a dot at its end.

    Raises:
        UserError: the configuration asks for something that is not a model's part, or does not fit the weights.
    """
    config = checkpoint["config"].get("model")
    if not isinstance(config, dict):
        raise UserError(f"ckpt_path={path} does not say how its model is built: choose another checkpoint")
    refuse_untrusted(config, path, (*MODELS, *trusted))
    try:
        model = instantiate(OmegaConf.create({"model": config}), "model")
    except UserError as error:
        raise UserError(f"ckpt_path={path}: {error}") from error
    check_fits(checkpoint, model, path)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def check_fits(checkpoint: dict[str, Any], model: LightningModule, path: Path) -> None:
    """Refuses weights that belong to another model, and names the first that does not fit."""
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    for name in [*ours, *theirs]:
        a, b = (list(weights[name].shape) if name in weights else "missing" for weights in (theirs, ours))
        if a != b:
            raise UserError(
                f"ckpt_path={path} is of another model ({name} is {a} in the file, {b} in this model): compose the"
                " model it was trained with, or choose another checkpoint"
            )
