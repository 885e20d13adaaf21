"""What was typed, the checkpoint that it means, and the command to type next. No torch is needed for it."""

import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.config.command_line import as_typed, in_quotes
from src.errors import UserError
from src.run.remote_checkpoint import ADDRESSES, WANDB, fetch

log = logging.getLogger(__name__)


def typed_overrides() -> list[str]:
    """The arguments of `python run.py`, as they were typed."""
    if not HydraConfig.initialized():
        return []
    as_given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [as_typed(str(each)) for each in as_given]


def is_sweep() -> bool:
    """Whether this is one of several jobs of a `-m` command."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def search_of_run() -> DictConfig | None:
    """The settings of the search that this run belongs to, with its `study` and the number of the `trial`."""
    if not is_sweep() or HydraConfig.get().sweeper.get("trial") is None:
        return None
    return HydraConfig.get().sweeper


def next_command(*overrides: str) -> str:
    """The command that runs this project with `overrides`, from the same folder as now."""
    script = sys.argv[0] if Path(sys.argv[0]).name == "run.py" else "run.py"
    if not any(each.startswith("trusted_packages=") for each in overrides):  # a key of every verb
        overrides += tuple(each for each in typed_overrides() if each.startswith("trusted_packages="))
    return shlex.join(["python", script, *overrides])


def a_list(texts: Iterable[object]) -> str:
    """A list as people type it, with quotes around elements that Hydra would not read as text."""
    means_more = re.compile(r"[][(){},'\"$]|^\s|\s$")
    return f"[{','.join(in_quotes(each) if means_more.search(each) else each for each in map(str, texts))}]"


def run_folders(work_dir: str | Path) -> list[Path]:
    """The folders of the training runs in `work_dir`, in the order in which they were started."""
    logs = Path(work_dir) / "logs"
    found = [
        run
        for run in (*logs.glob("runs/*/*"), *logs.glob("multiruns/*/*/*"))
        if (run / "run.json").exists() or (run / "ckpts" / "last.ckpt").exists()
    ]
    first = {run: run / ".hydra" / "overrides.yaml" for run in found}  # the first file that a run writes never changes
    return sorted(found, key=lambda run: (first[run] if first[run].exists() else run).stat().st_mtime)


def about_run(folder: Path) -> dict[str, Any]:
    """What a run folder's `run.json` says of the run; empty where there is none that can be read."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def find_checkpoint(ckpt_path: str, work_dir: str | Path, newest_run: bool = False) -> Path:
    """The file that `ckpt_path` means, which is fetched if need be: the one place where a typed path is looked up.

    Args:
        ckpt_path: a file, an address, or `last` for `ckpts/last.ckpt` of the newest training run in `work_dir`.
        newest_run: refuse `last` where the newest run has no checkpoint yet, instead of a warning and the run before.

    Raises:
        UserError: there is no such file.
    """
    if ckpt_path.lower().startswith((WANDB, *ADDRESSES)):
        return fetch(ckpt_path, work_dir)
    if ckpt_path == "last":
        last = Path("ckpts", "last.ckpt")
        runs = run_folders(work_dir)
        if HydraConfig.initialized():
            own = Path(HydraConfig.get().runtime.output_dir)
            ours = own.parent if is_sweep() else None  # the folder of other jobs of the same command
            runs = [run for run in runs if (run != own or (run / last).exists()) and run.parent != ours]
        trained = [run for run in runs if (run / last).exists()]
        if not trained:
            raise UserError(
                f"ckpt_path=last finds no logs/runs/*/*/{last} in {work_dir}: train first, or type ckpt_path=FILE"
            )
        chosen = trained[-1] / last
        if trained[-1] != runs[-1]:
            if newest_run:
                raise UserError(
                    f"ckpt_path=last is the newest run's, but {runs[-1]} has no checkpoint yet: begin that one again"
                    f" without ckpt_path, or type {shlex.quote(f'ckpt_path={chosen}')} to resume the run before it"
                )
            log.warning("the newest run, %s, has no checkpoint yet: ckpt_path=last is %s", runs[-1], chosen)
        return chosen
    path = Path(ckpt_path).expanduser()
    if path.is_dir():
        inside = next(iter([*path.glob("ckpts/*.ckpt"), *path.glob("*.ckpt")]), "ckpts/last.ckpt")
        raise UserError(f"ckpt_path={ckpt_path} is a folder: name a file in it, such as {path / inside}")
    if not path.exists():
        raise UserError(
            f"ckpt_path={ckpt_path} does not exist: check the path, or type ckpt_path=last for the newest run"
        )
    return path.resolve()
