"""A new run that begins with those weights of another run that fit, and with nothing else of it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from pytorch_lightning import LightningModule
from torch import nn

from src.config.text import escaped
from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.modules.ema import EMA
from src.run.checkpoints import read_checkpoint
from src.run.commands import find_checkpoint

log = logging.getLogger(__name__)


def read_start(config: DictConfig) -> dict[str, Any]:
    """Reads the checkpoint that `init_from` means; a UserError, if it cannot be used or the run is resumed as well."""
    if config.ckpt_path:
        raise UserError(
            "init_from begins a new run, and ckpt_path resumes one: type one of them, and leave out the other"
        )
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
    """Copies a checkpoint's weights into a model where names and shapes are the same, and logs which they were.

    Rows of embeddings that belong to classes are matched by the names of the classes, where both are known. A moving
    average begins from the copied weights, and counts from 0.

    Args:
        classes: the name of each of the model's labels.
        path: of the checkpoint, for messages.

    Raises:
        UserError: nothing fits.
    """
    ours, theirs = model.state_dict(), checkpoint["state_dict"]
    data = checkpoint.get("data")
    known = data.get("classes") if isinstance(data, dict) else None
    names = [str(name) for name in known] if isinstance(known, list) else []
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
