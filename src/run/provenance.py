"""Where a figure comes from: command, commit, machine and versions."""

import os
import platform
import shlex
import subprocess
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

from src.run.commands import typed_overrides

ROOT = Path(__file__).resolve().parents[2]


def provenance(command: str | None = None) -> dict[str, str]:
    """What has to stand beside every figure of `command`, by default this one; uncommitted changes mark the commit.

    Ask for it when a run starts, as the commit may change while it goes on.
    """
    commit = _git("describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"
    threads = torch.get_num_threads()
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command or shlex.join(["python", "run.py", *typed_overrides()]),
        "commit": commit.decode().strip() or "unknown",
        "machine": ", ".join([*cards, cpu, f"{threads} thread{'s' if threads > 1 else ''}"]),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


@rank_zero_only
def record_diff(folder: Path) -> None:
    """Keeps what is not committed as `diff.patch`, for the commit alone would not say what ran."""
    if patch := _git("diff", "HEAD", "--", "run.py", "src", "configs"):
        (folder / "diff.patch").write_bytes(patch)


def _git(*arguments: str) -> bytes:
    """What git prints about this project; nothing where there is no git, or no history."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
