"""Loggers: start W&B so that it cannot hang, and log pictures."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.explain import telling
from src.errors import UserError
from src.run.commands import is_sweep
from src.run.environment import can_write, has_wandb_key
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.run_record import step_of

log = logging.getLogger(__name__)

# W&B's variable for a key, and what its service accepts: how long, and without which characters. Its client leaves most
# of it to the service, which for a run that was recorded offline answers days later.
LIMITS = {
    "project": ("WANDB_PROJECT", 128, "/\\#?%:"),
    "entity": ("WANDB_ENTITY", 128, "/\\#?%:"),
    "name": ("WANDB_NAME", 128, ""),
    "group": ("WANDB_RUN_GROUP", 128, ""),
    "job_type": ("WANDB_JOB_TYPE", 128, ""),
    "id": ("WANDB_RUN_ID", 122, "/\\#?%:;,'"),  # 128 for the artifact model-ID
}
LONGEST_TAG = 64


def check_wandb(config: DictConfig) -> None:
    """Refuses what W&B would refuse after training, or when the run is uploaded; names the key or the variable."""
    part = (config.get("logger") or {}).get("wandb")
    if part is None:
        return
    for key, (variable, longest, refused) in LIMITS.items():
        value = part.get(key)
        if not isinstance(value, str):
            continue
        if not OmegaConf.is_interpolation(part, key):
            source = f"logger.wandb.{key}"
        else:  # from the run's own key, or else from the variable
            source = variable if key not in config or OmegaConf.is_interpolation(config, key) else key
        if len(value) > longest or not value.strip():
            raise UserError(
                f"{source} must have 1 to {longest} characters for W&B, not {len(value)}: use a shorter one"
            )
        if found := [character for character in refused if character in value]:
            raise UserError(f"{source}={value} must not contain {' '.join(found)}: W&B refuses each of {refused}")
        if key == "id" and is_sweep():
            raise UserError(f"{source}={value} is one W&B run, but a sweep makes several: leave it out")
    for tag in config.tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise UserError(
                f"tags (or else WANDB_TAGS) must have 1 to {LONGEST_TAG} characters each for W&B, not {len(tag)} as in"
                f" {tag[:20]}...: use shorter ones"
            )
    for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        folder = os.environ.get(variable)
        if folder and not can_write(Path(folder)):
            raise UserError(f"{variable}={folder} cannot be written: choose another folder, or leave it out")


def make_wandb_logger(
    project: str,
    save_dir: str,
    name: str | None = None,
    tags: Sequence[str] = (),
    group: str | None = None,
    job_type: str | None = None,
    notes: str | None = None,
    entity: str | None = None,
    id: str | None = None,
    mode: str | None = None,
) -> Logger:
    """A W&B run that has begun: online where there are a key and a network, else offline, without a prompt.

    The arguments are those of `wandb.init`, except:

    Args:
        save_dir: the run folder; files go to its `wandb/`.
        id: the run to go on with; None: a new run.
        mode: online | offline | disabled; None: `WANDB_DISABLED`, else `WANDB_MODE`, else what key and network allow.

    Raises:
        UserError: W&B refuses the key or an argument.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return WandbLogger(project=project, offline=True)  # Lightning never starts it
    if mode is None and os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        mode = "disabled"  # wandb itself no longer looks at it
    mode = mode or os.environ.get("WANDB_MODE") or reachable_mode()
    if mode not in ("online", "offline", "shared", "disabled", "dryrun", "run"):
        raise ValueError(f"mode (or else WANDB_MODE) must be online, offline or disabled, not {mode!r}")
    if mode == "disabled":
        return DummyLogger()  # wandb's own stand-in fails on pictures

    def start(mode: Any) -> Any:
        # The end-of-run table says what wandb would. The console is not captured: a progress bar fills it.
        settings = wandb.Settings(
            init_timeout=20,
            console="off",
            quiet=True,
            silent=mode != "online",
            x_transaction_log_flush_interval=1.0,  # seconds; a run that is killed loses what its file has not
        )
        resume: Any = "allow" if id and "WANDB_RESUME" not in os.environ else None
        options: Any = {"project": project, "name": name, "group": group, "job_type": job_type, "entity": entity}
        options |= {"dir": save_dir, "tags": list(tags), "notes": notes, "id": id, "resume": resume}
        return wandb.init(**options, mode=mode, settings=settings)

    try:
        run = start(mode)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        reason = telling(str(error))
        concerns_key = isinstance(error, wandb.errors.AuthenticationError) or "key" in reason.lower()
        remedy = "set WANDB_API_KEY in .env, or logger.wandb.mode=offline" if concerns_key else "change it"
        raise UserError(f"logger.wandb: {reason}: {remedy}") from error
    except wandb.errors.CommError as error:  # the base of AuthenticationError, too
        log.warning("W&B could not begin the run (%s): recording offline", telling(str(error)))
        run = start("offline")
    for best, metrics in [("min", LOWER_IS_BETTER), ("max", HIGHER_IS_BETTER)]:
        for metric in metrics:  # the best validation stands in the runs' table, beside the last
            run.define_metric(f"val/{metric}", step_metric="trainer/global_step", summary=f"{best},last")
    return WandbLogger(experiment=run)


def reachable_mode() -> str:
    """`online` if there is a key and W&B answers within seconds, else `offline`; warns where there is a key."""
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if has_wandb_key(url):
        try:
            urllib.request.urlopen(url, timeout=3)  # seconds
            return "online"
        except urllib.error.HTTPError:  # it answers
            return "online"
        except OSError as error:
            log.warning("W&B does not answer at %s (%s): recording offline", url, error)
    # For the whole process: what else wandb sends (telemetry) would wait for an answer when the process ends.
    os.environ["WANDB_MODE"] = "offline"
    return "offline"


def show(trainer: Trainer, key: str, picture: np.ndarray, caption: str, path: str) -> None:
    """Saves a picture, uint8 [H, W, 3], as `path` in the run folder, and logs it as `key` where loggers take pictures.

    W&B and TensorBoard do, and every logger with a `log_picture(key, picture, caption, step, file)`.
    """
    file, step = Path(trainer.default_root_dir) / path, step_of(trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=step, caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, step, dataformats="HWC")
        elif hasattr(logger, "log_picture"):
            logger.log_picture(key, picture, caption, step, file)
