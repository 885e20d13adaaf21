"""A run that goes on from its checkpoint."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningModule

from src.utils.checkpoints import check_fits, read_checkpoint
from src.utils.commands import find_checkpoint, is_sweep
from src.utils.errors import UserError
from src.utils.text import escaped

log = logging.getLogger(__name__)

# What does not change what is learnt.
WHERE_AND_HOW_FAST = ("data_dir", "num_workers", "pin_memory", "offline_fallback")


def resume_from(config: DictConfig, model: LightningModule) -> Path:
    """The checkpoint to resume, checked; a W&B run will go on under its id.

    Raises:
        UserError: it cannot be read, is of another model, or has nothing left to train.
    """
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, model, path)
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        checkpoint["optimizer_states"], checkpoint["pytorch-lightning_version"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"ckpt_path={path} holds weights only, from which training cannot resume: choose a ckpts/last.ckpt"
        ) from error
    limit = config.trainer.max_epochs
    if limit is not None and 0 < limit <= epochs:
        raise UserError(f"ckpt_path={path} is at epoch {epochs} already: set trainer.max_epochs above {epochs}")
    steps = config.trainer.max_steps
    if 0 < steps <= checkpoint["global_step"]:
        done = checkpoint["global_step"]
        raise UserError(f"ckpt_path={path} is at batch {done} already: set trainer.max_steps above {done}")
    wandb_config = (config.get("logger") or {}).get("wandb")
    if wandb_config is not None and wandb_config.id is None and not is_sweep():
        wandb_config.id = checkpoint.get("wandb_id")
    with open_dict(config):
        config.ckpt_path = escaped(str(path))
    before: Any = checkpoint["config"]
    now: Any = OmegaConf.to_container(config, resolve=True)
    differences = changed_keys(before, now)
    if getattr(model, "follows_progress", False) and config.model.get("schedule_batches") is None:
        differences += [
            f"trainer.{k}" for k in ("max_epochs", "max_steps") if before["trainer"][k] != now["trainer"][k]
        ]
    if differences:
        log.warning("not the run that was stopped: the checkpoint had other %s", ", ".join(differences))
    return path


def changed_keys(before: Any, now: Any, prefix: str = "") -> list[str]:
    """The keys of the model, the data and the seed that differ between two configurations."""
    changed = []
    for key in before.keys() | now.keys():
        name, a, b = f"{prefix}{key}", before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and (prefix or key in ("model", "datamodule")):
            changed += changed_keys(a, b, f"{name}.")
        elif a != b and (prefix or key == "seed") and key not in WHERE_AND_HOW_FAST:
            changed.append(name)
    return sorted(changed)
