"""A run that goes on from its checkpoint, and leaves what it would have left without the break.

A resumed run has a folder of its own, which begins with a copy of the history up to the checkpoint: several runs may
go on from one checkpoint, and the first run's files stay as they are. The resumed run logs again what the first one
logged after the checkpoint, so that is not copied.
"""

import csv
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.text import escaped
from src.errors import UserError
from src.run.checkpoints import check_fits, read_checkpoint
from src.run.commands import about_run, find_checkpoint, is_sweep
from src.run.ranks import is_first, reads_no_checkpoint
from src.run.run_record import read_rows
from src.run.slurm import is_restarted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """What a run did before this process.

    Attributes:
        checkpoint: the file that the run goes on from; None: it is a new run.
        batch: number of batches so far.
        epoch: number of whole epochs so far.
        validates: whether to repeat the validation after the last batch.
        seconds: wall-clock of the earlier parts, each up to its checkpoint.
        started: when the first part started, ISO 8601 and UTC.
        folders: the run folders of the earlier parts, the oldest first.
        folder: the last of them; None: it is gone.
        data: what `run.json` says of the data.
    """

    checkpoint: Path | None = None
    batch: int = 0
    epoch: int = 0
    validates: bool = False
    seconds: float = 0.0
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folders: tuple[str, ...] = ()
    folder: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def go_on_after_requeue(config: DictConfig) -> dict[str, float] | None:
    """Where SLURM has started this job again, sets `ckpt_path` to the checkpoint in the run folder, if there is one.

    Returns:
        The final metrics of a run that has finished already, while its job had more to do; else None.
    """
    if not is_restarted():
        return None
    run_dir = Path(config.trainer.default_root_dir)
    last = run_dir / "ckpts" / "last.ckpt"
    metrics: dict[str, float] | None = None
    if about_run(run_dir).get("status") == "finished":
        metrics = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
        what = f"the run in {run_dir} has finished already"
    elif last.exists():
        with open_dict(config):
            config.ckpt_path, config.init_from = escaped(str(last)), None
        what = f"going on from {last}"
    else:
        what = f"{run_dir} has no checkpoint yet: beginning again"
    if is_first():
        log.info("SLURM has started this job again: %s", what)
    return metrics


def resume_from(config: DictConfig, model: LightningModule) -> Past:
    """Reads the checkpoint to resume, or refuses it, and sets W&B and MLflow to go on with the same runs."""
    if reads_no_checkpoint(config.ckpt_path):
        return Past(Path(config.ckpt_path).resolve())
    path = find_checkpoint(config.ckpt_path, config.work_dir, newest_run=True)
    checkpoint = read_checkpoint(path)
    check_files(checkpoint["config"], OmegaConf.to_container(config, resolve=True), path)
    check_fits(checkpoint, model, path)
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]["processed"]
        validation = loops["epoch_loop.val_loop.batch_progress"]["current"]
        checkpoint["optimizer_states"], checkpoint["pytorch-lightning_version"]
        again = validation["started"] > validation["completed"]
        seconds, started, folders = (checkpoint[key] for key in ("seconds", "started", "folders"))
        # Where the file lies, or where the run was; none of them may be that run's any more.
        around = {folder: about_run(folder) for folder in (path.parent.parent, Path(folders[-1]))}
        folder = next((folder for folder, about in around.items() if about.get("started") == started), None)
        batch = checkpoint["global_step"]
        data = checkpoint["data"] if isinstance(checkpoint.get("data"), dict) else {}
        past = Past(path, batch, epochs, again, seconds, started, tuple(folders), folder, data)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"ckpt_path={path} holds weights only, from which training cannot resume: choose a ckpts/last.ckpt"
        ) from error
    ended = folder is None or around[folder].get("status") == "finished"
    for key, what, done in [("max_epochs", "epoch", past.epoch), ("max_steps", "batch", past.batch)]:
        limit = config.trainer[key]
        to_test = limit == done and config.test_after_training and not ended  # it was stopped in its test
        if limit is not None and 0 < limit <= done and not to_test:
            raise UserError(f"ckpt_path={path} is at {what} {done} already: set trainer.{key} above {done}")
    with open_dict(config):
        config.ckpt_path = escaped(str(path))
        loggers: Any = config.get("logger") or {}
        # Jobs of a sweep that all begin with one checkpoint are runs of their own.
        same_run = not is_sweep() or path.parent.parent == Path(config.trainer.default_root_dir)
        for name, key in [("wandb", "id"), ("mlflow", "run_id")]:
            if loggers.get(name) is not None and loggers[name].get(key) is None and same_run:
                loggers[name][key] = checkpoint["loggers"].get(name)
        if loggers.get("tensorboard") is not None and folder is not None:
            # TensorBoard then hides what earlier files have from the checkpoint on; they have the parameters, too.
            loggers["tensorboard"].update({"purge_step": past.batch, "default_hp_metric": False})
    before: Any = checkpoint["config"]
    now: Any = OmegaConf.to_container(config, resolve=True)
    differences = changed_keys(before, now)
    if getattr(model, "follows_progress", False) and config.model.get("schedule_batches") is None:
        differences += [
            f"trainer.{k}" for k in ("max_epochs", "max_steps") if before["trainer"][k] != now["trainer"][k]
        ]
    if differences:
        log.warning("not the run that was stopped: the checkpoint had other %s", ", ".join(differences))
    return past


def check_files(before: Any, now: Any, path: Path) -> None:
    """Refuses to go on with another text encoder or base than before, as their checksums say."""
    for part, key, what in [("model.conditioner", "encoder", "text encoder"), ("model", "base", "base")]:
        theirs, ours = before, now
        for name in part.split("."):
            theirs, ours = (each.get(name) if isinstance(each, dict) else None for each in (theirs, ours))
        if not all(isinstance(each, dict) and key in each for each in (theirs, ours)):
            continue
        sums = [str(each.get("sha256")) for each in (theirs, ours)]
        if sums[0] != sums[1]:
            raise UserError(
                f"ckpt_path={path} was trained with another {what} ({theirs[key]}, whose checksum begins with"
                f" {sums[0][:8]}) than {part}.{key}={ours[key]} ({sums[1][:8]}): name that one"
            )


@rank_zero_only
def point_out_other_data(past: Past, data: Mapping[str, Any]) -> None:
    """Says so where the images are not those that the run went on with before: pictures were added, for instance."""
    before = past.data
    # Images in memory and images in files have different checksums.
    same_kind = before.get("in_memory", True) == data.get("in_memory", True)
    if before.get("source") != data["source"] or not same_kind or before.get("sha256") == data.get("sha256"):
        return
    counts = [", ".join(f"{each.get(split)} {split}" for split in ("train", "val", "test")) for each in (before, data)]
    log.warning(
        "the images of %s are not those of the run that was stopped (%s then, %s now): it goes on in another order, and"
        " what is tested may have been trained on",
        *(data["source"], *counts),
    )


def changed_keys(before: Any, now: Any, prefix: str = "") -> list[str]:
    """The keys of the model, the data and the seed that differ between two configurations."""
    # A model learns the same; of an encoder, its checksum counts.
    where_and_how_fast = (
        *("data_dir", "num_workers", "pin_memory", "device", "in_memory", "offline_fallback", "cache_dir"),
        *("encoder", "base"),
    )
    changed = []
    for key in before.keys() | now.keys():
        name, a, b = f"{prefix}{key}", before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and (prefix or key in ("model", "datamodule")):
            changed += changed_keys(a, b, f"{name}.")
        elif a != b and (prefix or key == "seed") and key not in where_and_how_fast:
            changed.append(name)
    return sorted(changed)


@rank_zero_only
def take_over(past: Past, run_dir: Path) -> list[dict[str, Any]]:
    """Copies the pictures from before the checkpoint; returns the rows of `metrics.jsonl` from before it.

    In the same folder, removes the pictures after it.
    """
    if past.checkpoint is None:
        return []
    if past.folder is None:
        gone = past.folders[-1]
        log.warning("the run folder %s is not there any more: curves and pictures begin at batch %d", gone, past.batch)
        return []
    in_place = past.folder.resolve() == run_dir.resolve()
    if in_place:
        for name in ("results.json", "traceback.txt"):
            (run_dir / name).unlink(missing_ok=True)
    try:
        for kind in ("samples", "pictures"):
            for picture in sorted((past.folder / kind).rglob("*.png")):
                number = re.search(r"_(\d+)$", picture.stem)
                is_past = int(number[1]) < past.epoch if number else picture.stem != "test"
                copy = run_dir / picture.relative_to(past.folder)
                if is_past and not in_place:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(picture, copy)
                elif in_place and not is_past:
                    picture.unlink()
        return [row for row in read_rows(past.folder / "metrics.jsonl") if _is_kept(row, past)]
    except OSError as error:
        log.warning("not all of the run so far could be taken over (%s)", error)
        return []


def _is_kept(row: Mapping[str, Any], past: Past) -> bool:
    """Whether the resumed run will not log a row again."""
    again = past.validates and row["step"] == past.batch - 1 and any(name.startswith("val/") for name in row)
    return row["step"] < past.batch and not again


def wandb_folders(past: Past, run: Any) -> list[Path]:
    """The folders of the earlier parts of an offline W&B run, the oldest first."""
    found = [path for each in past.folders for path in sorted(Path(each).glob(f"wandb/offline-run-*-{run.id}"))]
    return [path for path in dict.fromkeys(found) if path.resolve() != Path(run.dir).resolve().parent]


@rank_zero_only
def go_on(logger: Logger, past: Past, run_dir: Path) -> None:
    """Gives a logger that keeps files what the run logged before, if anything."""
    if past.folder is None:
        return
    if isinstance(logger, WandbLogger) and logger.experiment.offline:  # online, its server says where to begin
        for part in reversed(wandb_folders(past, logger.experiment)):
            inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(part)]
            done = subprocess.run(inspect, capture_output=True, encoding="utf-8")
            last = json.loads(done.stdout)["step"] if done.returncode == 0 else None
            if last is not None:  # the last part that logged anything
                logger.experiment.log({}, step=last + 1)  # W&B drops rows whose number it has seen
                break
    if not isinstance(logger, (CSVLogger, TensorBoardLogger)):
        return
    here = Path(logger.log_dir).resolve()
    there = past.folder / here.relative_to(run_dir.resolve()) if here.is_relative_to(run_dir.resolve()) else here
    try:
        if isinstance(logger, CSVLogger):
            text = (there / "metrics.csv").read_text(encoding="utf-8")
            for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # a kill may cut the last line
                logged = {name: value for name, value in row.items() if value} | {"step": int(row["step"])}
                if _is_kept(logged, past):
                    logger.experiment.metrics.append(logged)  # as if it had been logged now
            logger.save()
        elif there.resolve() != here:
            here.mkdir(parents=True, exist_ok=True)
            for events in there.glob("events.out.tfevents.*"):
                shutil.copyfile(events, here / events.name)
    except OSError as error:
        log.warning("%s begins at batch %d (%s)", here, past.batch, error)
