"""Where a figure comes from: command, commit and machine."""

import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def provenance(command: str) -> dict[str, str]:
    """What has to stand beside every figure; the commit is marked where the tree had changes."""
    describe = ["git", "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
        commit = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or the project was downloaded without its history
        commit = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"
    threads = torch.get_num_threads()
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command,
        "commit": commit,
        "machine": ", ".join([*cards, cpu, f"{threads} thread{'s' if threads > 1 else ''}"]),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
