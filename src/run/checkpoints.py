"""Checkpoints: read them without trusting them, and build a model from the file alone or begin one with its weights."""

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningModule
from torch import nn

from src.config.instantiate import instantiate
from src.config.text import escaped
from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.modules.ema import EMA
from src.run.commands import find_checkpoint
from src.run.ranks import reads_no_checkpoint
from src.run.trust import MODELS, refuse_untrusted

log = logging.getLogger(__name__)


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


def read_start(config: DictConfig) -> dict[str, Any] | None:
    """Reads the checkpoint that `init_from` means; a UserError, if it cannot be used or the run is resumed as well.

    None: another process reads it, and this one gets the weights from there.
    """
    if config.ckpt_path:
        raise UserError(
            "init_from begins a new run, and ckpt_path resumes one: type one of them, and leave out the other"
        )
    if reads_no_checkpoint(config.init_from):
        return None
    try:
        path = find_checkpoint(config.init_from, config.work_dir)
        checkpoint = read_checkpoint(path)
    except UserError as error:  # it names the usual key
        raise UserError(str(error).replace("ckpt_path", "init_from")) from error
    with open_dict(config):
        config.init_from = escaped(str(path))
    return checkpoint


@torch.no_grad()
def take_weights(checkpoint: dict[str, Any], model: LightningModule, classes: Sequence[str], path: str | Path) -> None:
    """Copies weights of the checkpoint at `path` into a new model where they fit, and logs which; refuses if none do.

    Rows of embeddings that belong to `classes`, the names of the model's labels, are matched by these names where both
    are known. A moving average begins from the copied weights, and counts from 0.
    """
    ours, theirs = model.state_dict(), checkpoint["state_dict"]
    data = checkpoint.get("data")  # as the file has it
    said_names = data.get("classes") if isinstance(data, dict) else None
    names = [str(name) for name in said_names] if isinstance(said_names, list) else []
    if len(set(names)) != len(names):
        names = []
    modules = dict(model.named_modules())
    averages = tuple(f"{name}." for name, module in modules.items() if isinstance(module, EMA))
    embeddings = tuple(f"{name}." for name, module in modules.items() if isinstance(module, nn.Embedding))
    parameters = {name for name, _ in model.named_parameters()}
    rows = [(i, names.index(name)) for i, name in enumerate(classes) if name in names]
    taken, partly, anew = list[str](), list[str](), list[str]()
    for name, weight in ours.items():
        found = theirs.get(name)
        if name.startswith(averages):
            continue
        has_rows = found is not None and found.shape == (len(names), *weight.shape[1:])
        if has_rows and name.startswith(embeddings) and weight.shape[:1] == (len(classes),):
            for i, j in rows:
                weight[i].copy_(found[j])
            (taken if len(rows) == len(classes) else partly if rows else anew).append(name)
        elif found is not None and found.shape == weight.shape:
            weight.copy_(found)
            taken.append(name)
        else:
            anew.append(name)
    if parameters.isdisjoint((*taken, *partly)):
        raise UserError(f"init_from={path} has no weights that fit this model: choose a checkpoint of a model like it")
    if isinstance(model, ImageModel):
        model.start_average()
    said = [f"{len(taken)} of {len(taken) + len(partly) + len(anew)} weights taken over"]
    if partly:
        said.append(f"of {_listed(partly)} the rows of {len(rows)} of {len(classes)} classes")
    if anew:
        said.append(f"begun anew: {_listed(anew)}")
    log.info("init_from=%s: %s", path, "; ".join(said))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
