"""Checkpoints: read them without trusting them, and rebuild the model from the file alone."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule

from src.utils.errors import UserError
from src.utils.instantiate import instantiate

# What a checkpoint may ask us to build: our models, and torch's layers and optimizers. Nothing else.
TRUSTED = ("src.models.", "torch.nn.", "torch.optim.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint that this project wrote. No code in the file is run.

    Raises:
        UserError: the file is empty, damaged, not ours, or holds code.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"ckpt_path={path} is empty: choose another checkpoint")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"ckpt_path={path} is no checkpoint, or holds more than numbers and text; no code in it was run: choose"
            " another one"
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"ckpt_path={path} cannot be read ({error.strerror or error}): choose another one") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... for files that are cut or garbled
        raise UserError(f"ckpt_path={path} is damaged or not a checkpoint: choose another one") from error
    weights, config = (checkpoint.get(k) if isinstance(checkpoint, dict) else None for k in ("state_dict", "config"))
    if not (isinstance(weights, dict) and isinstance(config, dict) and all(map(torch.is_tensor, weights.values()))):
        raise UserError(
            f"ckpt_path={path} was not written by this project, as it lacks 'state_dict' or 'config': choose a"
            " ckpts/last.ckpt"
        )
    return checkpoint


def build_model(checkpoint: dict[str, Any], path: Path) -> LightningModule:
    """The trained model, from the checkpoint alone: its configuration and its weights.

    Raises:
        UserError: the configuration asks for something that is not a model's part, or does not fit the weights.
    """
    config = checkpoint["config"].get("model")
    if not isinstance(config, dict):
        raise UserError(f"ckpt_path={path} does not say how its model is built: choose another checkpoint")
    refuse_untrusted(config, path)
    try:
        model = instantiate(OmegaConf.create({"model": config}), "model")
    except UserError as error:
        raise UserError(f"ckpt_path={path}: {error}") from error
    check_fits(checkpoint, model, path)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def check_fits(checkpoint: dict[str, Any], model: LightningModule, path: Path) -> None:
    """Refuses weights that belong to another model.

    Raises:
        UserError: names the first weight that does not fit.
    """
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    for name in [*ours, *theirs]:
        a, b = (list(weights[name].shape) if name in weights else "missing" for weights in (theirs, ours))
        if a != b:
            raise UserError(
                f"ckpt_path={path} is of another model ({name} is {a} in the file, {b} in this model): compose the"
                " model it was trained with, or choose another checkpoint"
            )


def refuse_untrusted(config: Any, path: Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Checks every `_target_` in a stranger's configuration, and that nothing in it is looked up elsewhere.

    Args:
        config: a part of what the checkpoint holds.
        path: of the checkpoint.
        trusted: the packages whose classes may be built, each with a dot at its end.

    Raises:
        UserError: names what is not trusted.
    """
    if isinstance(config, list):
        for value in config:
            refuse_untrusted(value, path, trusted)
    elif isinstance(config, dict):
        if "_target_" in config and not _is_trusted_class(config["_target_"], trusted):
            *others, last = (package.rstrip(".") for package in trusted)
            raise UserError(
                f"ckpt_path={path} asks for {config['_target_']!r}, which is no class of"
                f" {', '.join(others)}{' or ' if others else ''}{last}; nothing was built: choose another checkpoint"
            )
        for value in config.values():
            refuse_untrusted(value, path, trusted)
    elif isinstance(config, str) and "${" in config:
        raise UserError(
            f"ckpt_path={path} asks for {config!r} to be looked up; nothing was built: choose another checkpoint"
        )


def _is_trusted_class(target: Any, trusted: tuple[str, ...]) -> bool:
    if not isinstance(target, str) or not target.startswith(trusted):
        return False
    module, _, name = target.rpartition(".")
    try:
        # Where a name leads counts, not how it is spelt: `torch.nn.modules.os.system` is not torch's.
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        # `torch.optim.Adam` may be spelt through a re-export, never through an attribute of an attribute.
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(trusted)
