"""What people type: the checkpoint that they mean, and the command that comes next. No torch is needed for it."""

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from src.utils.command_line import as_typed, in_quotes
from src.utils.errors import UserError


def typed_overrides() -> list[str]:
    """What was typed behind `python run.py`, in order."""
    if not HydraConfig.initialized():
        return []
    as_given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [as_typed(str(each)) for each in as_given]


def is_sweep() -> bool:
    """Whether this is one of several jobs of a `-m` command."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def next_command(*overrides: str) -> str:
    """What to type to run this project again, from where it was run now."""
    script = sys.argv[0] if Path(sys.argv[0]).name == "run.py" else "run.py"
    keys = [each.partition("=")[0] for each in overrides]
    trust = [each for each in typed_overrides() if each.startswith("trusted_packages=")]  # which all verbs have
    return shlex.join(["python", script, *overrides, *(trust if "trusted_packages" not in keys else ())])


def a_list(texts: Iterable[object]) -> str:
    """A list as it is typed: an element in quotes where it would be read as more than text."""
    means_more = re.compile(r"[][(){},'\"$]|^\s|\s$")
    return f"[{','.join(in_quotes(each) if means_more.search(each) else each for each in map(str, texts))}]"


def find_checkpoint(ckpt_path: Any, work_dir: str | Path) -> Path:
    """The file that `ckpt_path` means; `last` is the newest `ckpts/last.ckpt` of the runs in `work_dir`.

    Raises:
        UserError: there is no such file.
    """
    if not isinstance(ckpt_path, str):
        raise UserError(f"ckpt_path must be a file, or last for the newest run's, not {ckpt_path!r}")
    if ckpt_path == "last":
        logs = Path(work_dir) / "logs"
        found = [*logs.glob("runs/*/*/ckpts/last.ckpt"), *logs.glob("multiruns/*/*/*/ckpts/last.ckpt")]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise UserError(
                f"ckpt_path=last finds no logs/runs/*/*/ckpts/last.ckpt in {work_dir}: train first, or type"
                " ckpt_path=FILE"
            )
        return newest
    path = Path(ckpt_path).expanduser()
    if path.is_dir():
        inside = next(iter([*path.glob("ckpts/*.ckpt"), *path.glob("*.ckpt")]), "ckpts/last.ckpt")
        raise UserError(f"ckpt_path={ckpt_path} is a folder: name a file in it, such as {path / inside}")
    if not path.exists():
        raise UserError(
            f"ckpt_path={ckpt_path} does not exist: check the path, or type ckpt_path=last for the newest run"
        )
    return path.resolve()
