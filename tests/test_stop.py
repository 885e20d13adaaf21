"""Runs that are stopped from outside: real processes, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, Trainer

from tests.conftest import QUICK, ROOT, Train, assert_same, load, wandb_run
from tests.forked import run_forked, start_forked

LONG = [*QUICK, "trainer.max_epochs=1000"]


def start(folder: Path, *arguments: str) -> tuple[BaseProcess, Path]:
    """A long run in a process of its own, which has written its first checkpoint when this returns, and its output."""
    output = folder.with_name(f"{folder.name}.output")
    process = start_forked(*LONG, *arguments, cwd=folder, files=(output, output))
    while not list(folder.glob("logs/runs/*/*/ckpts/last.ckpt")):
        assert process.exitcode is None, output.read_text(encoding="utf-8")
        time.sleep(0.05)
    return process, output


def run_folder(folder: Path) -> Path:
    (found,) = folder.glob("logs/runs/*/*/ckpts")
    return found.parent


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_batch_and_fails_the_run(tmp_path: Path, signum: int, code: int) -> None:
    process, file = start(tmp_path)
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join(60)

    output = file.read_text(encoding="utf-8")
    assert process.exitcode == code, output
    run_dir = run_folder(tmp_path)
    run = wandb_run(run_dir)
    assert (run["state"], run["exit_code"]) == ("failed", code)
    checkpoint = load(run_dir)
    assert checkpoint["global_step"] > 22
    assert f"ckpt_path={run_dir}/ckpts/last.ckpt" in output  # the command that resumes it
    assert "Traceback" not in output


def test_a_terminal_that_is_closed_costs_nothing(tmp_path: Path) -> None:
    """Writing to it then fails, also where the progress bar is taken down before the checkpoint is written."""
    screen, keyboard = os.openpty()
    command = [sys.executable, str(ROOT / "run.py"), *LONG]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=keyboard, stderr=keyboard)
    os.close(keyboard)
    os.set_blocking(screen, False)
    shown = b""
    while not list(tmp_path.glob("logs/runs/*/*/ckpts/last.ckpt")):
        with suppress(BlockingIOError):
            shown += os.read(screen, 2**20)
        assert process.poll() is None, shown.decode(errors="replace")
        time.sleep(0.05)
    os.close(screen)
    process.send_signal(signal.SIGHUP)

    assert process.wait(60) == 129
    run_dir = run_folder(tmp_path)
    assert load(run_dir)["global_step"] > 22
    assert json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"


class LongValidation(Callback):
    """The one of the second epoch does not end; it leaves a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        while trainer.current_epoch == 1:
            self.file.touch()
            time.sleep(0.01)


def test_a_signal_does_not_wait_for_a_validation(tmp_path: Path) -> None:
    """A sweep gives a job 20 seconds. It is done again."""
    file, begun = tmp_path / "output", tmp_path / "begun"
    typed = [*LONG, f"+callbacks.long._target_={__name__}.LongValidation", f"+callbacks.long.file={begun}"]
    process = start_forked(*typed, cwd=tmp_path, files=(file, file))
    while not begun.exists():
        assert process.exitcode is None, file.read_text(encoding="utf-8")
        time.sleep(0.05)
    process.terminate()
    process.join(60)

    assert process.exitcode == 143, file.read_text(encoding="utf-8")
    assert load(run_folder(tmp_path))["global_step"] == 44


def test_a_signal_does_not_wait_for_what_comes_before_training(tmp_path: Path) -> None:
    file = tmp_path / "output"
    typed = [*LONG, f"callbacks.quality.cache_dir={tmp_path}/features"]
    process = start_forked(*typed, cwd=tmp_path, files=(file, file))
    while not file.exists() or "training the feature net" not in file.read_text(encoding="utf-8"):
        assert process.exitcode is None
        time.sleep(0.05)
    process.terminate()
    process.join(60)

    output = file.read_text(encoding="utf-8")
    assert process.exitcode == 143, output
    assert not (tmp_path / "features").exists()  # it was not finished first
    assert "Traceback" not in output
    (about,) = tmp_path.glob("logs/runs/*/*/run.json")
    assert json.loads(about.read_text(encoding="utf-8"))["status"] == "stopped"


def test_kill_9_loses_at_most_the_epoch_in_progress(tmp_path: Path, train_here: Train) -> None:
    process, _ = start(tmp_path, "logger=none")
    time.sleep(random.uniform(0, 2))  # wherever that is: in a batch, in validation, in the middle of a write
    process.kill()
    process.join()

    run_dir = run_folder(tmp_path)
    checkpoint = load(run_dir)
    epochs = checkpoint["global_step"] // 22
    grids = len(list(run_dir.glob("samples/*.png")))  # the last thing before the checkpoint
    assert checkpoint["global_step"] % 22 == 0
    assert grids - 1 <= epochs <= grids
    names = {"last.ckpt", "best.ckpt"}
    assert {path.name for path in (run_dir / "ckpts").iterdir()} <= names | {f".{name}.partial" for name in names}

    limit = f"trainer.max_epochs={epochs + 1}"
    whole = train_here("whole", "logger=none", limit)
    resumed = train_here("resumed", "logger=none", limit, f"ckpt_path={run_dir}/ckpts/last.ckpt")
    assert_same(load(whole)["state_dict"], load(resumed)["state_dict"])


def test_disk_use_does_not_grow_with_epochs(tmp_path: Path) -> None:
    done = run_forked(*QUICK, "trainer.max_epochs=4", "trainer.limit_train_batches=2", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert set(os.listdir(run_folder(tmp_path) / "ckpts")) == {"best.ckpt", "last.ckpt"}
