"""What a run says to SLURM, and does in a job that SLURM has started again; tests/test_slurm.py has real jobs."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

from src.run import signals, slurm
from src.run.commands import about_run
from src.run.resume import go_on_after_requeue
from src.run.slurm import remember_what_comes_early, requeue
from tests.conftest import QUICK, ROOT, Train, assert_same, compose_config, load
from tests.forked import run_forked


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes this a job of SLURM, whose `scontrol` is the given script."""

    def make(script: str) -> None:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        scontrol.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(("script", "will"), [("echo $@ > said", True), ("echo Job is gone >&2; exit 1", False)])
def test_slurm_is_asked_to_start_the_job_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[str], None],
    script: str,
    will: bool,
) -> None:
    answer(script)
    for name, value in {"JOB_ID": "70", "TASK_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)

    assert requeue() == will
    if will:
        assert (tmp_path / "said").read_text(encoding="utf-8") == "requeue 70_7\n"
    else:
        (error,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert error == "SLURM does not start job 70_7 again (Job is gone): submit it with sbatch --requeue"


def test_slurm_that_is_not_there_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue()
    assert "(scontrol: No such file or directory): submit it with" in caplog.text


class TimeIsUp(Callback):
    """SLURM's signal comes in the first turn of a run, when all is set up and training has not begun.

    Args:
        run: the name of its folder.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if Path(trainer.default_root_dir).name == self.run and "SLURM_RESTART_COUNT" not in os.environ:
            os.kill(os.getpid(), signal.SIGUSR1)


TIME_IS_UP = "+callbacks.time_is_up._target_=tests.run.test_slurm.TimeIsUp"
IN_SANITY_CHECK = [TIME_IS_UP, "+callbacks.time_is_up.run=run"]


@pytest.mark.parametrize(
    ("script", "code", "typed"),
    [("echo $@ > said", None, []), ("echo $@ > said", None, IN_SANITY_CHECK), ("exit 1", 138, [])],
)
def test_a_signal_that_comes_early_ends_the_run_after_its_first_batch(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    train_here: Train,
    answer: Callable[[str], None],
    script: str,
    code: int | None,
    typed: list[str],
) -> None:
    monkeypatch.setattr(slurm, "came_early", came := [])
    monkeypatch.setattr(signals, "came_early", came)
    answer(script)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        remember_what_comes_early()
        if not typed:
            os.kill(os.getpid(), signal.SIGUSR1)
        if code is None:
            train_here("run", "logger=none", *typed)
        else:
            with pytest.raises(SystemExit) as stop:
                train_here("run", "logger=none")
            assert stop.value.code == code
    finally:
        signal.signal(signal.SIGUSR1, before)
    (run_dir,) = tmp_path.glob("logs/*/*/run")
    assert load(run_dir)["global_step"] == 1
    assert about_run(run_dir)["status"] == "stopped"
    assert (tmp_path / "said").exists() == (code is None)


LEAVES = """
import os, signal
from src.run.slurm import remember_what_comes_early
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGUSR1):
        kill(pid, signum)
remember_what_comes_early()
late = Late()
"""


def test_a_signal_that_comes_late_does_not_fail_what_has_finished() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], cwd=ROOT, env=os.environ | {"SLURM_JOB_ID": "77"})
    assert done.returncode == 0


def test_a_run_that_has_finished_is_not_trained_again(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    run_dir = checkpoint.parents[1]
    assert go_on_after_requeue(compose_config("train", run_dir=run_dir)) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert go_on_after_requeue(compose_config("train", run_dir=run_dir)) == results["metrics"]


def test_what_was_typed_gives_way_to_the_checkpoint_of_the_first_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    config = compose_config("train", f"init_from={checkpoint}", run_dir=tmp_path)
    assert go_on_after_requeue(config) is None
    assert (config.ckpt_path, config.init_from) == (None, str(checkpoint))  # it has written none: it begins again

    (tmp_path / "ckpts").mkdir()
    (tmp_path / "ckpts" / "last.ckpt").touch()
    assert go_on_after_requeue(config) is None
    assert (config.ckpt_path, config.init_from) == (str(tmp_path / "ckpts" / "last.ckpt"), None)


def test_a_sweep_goes_on_in_its_folder_with_the_job_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train_here: Train, answer: Callable[[str], None]
) -> None:
    answer("kill -TERM $PPID")  # as SLURM ends a job that is requeued
    few = ["logger=none", "callbacks.quality=null", "callbacks.model_checkpoint.monitor=null", "optimized_metric=null"]
    few += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "test_after_training=false"]
    typed = ["-m", *QUICK[:3], *few, TIME_IS_UP, "+callbacks.time_is_up.run='1'", "seed=1,2,3"]
    stopped = run_forked(*typed, cwd=tmp_path)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr
    assert "did not finish" not in stopped.stderr
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = run_forked(*typed, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs finished" in done.stdout
    (sweep,) = tmp_path.glob("logs/multiruns/*/*")
    assert [load(sweep / job)["global_step"] for job in "012"] == [2, 2, 2]
    said = done.stdout + done.stderr
    assert f"the run in {sweep}/0 has finished already" in said and f"going on from {sweep}/1/ckpts/last.ckpt" in said
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    whole = train_here("whole", *few, "seed=2")
    assert_same(load(sweep / "1")["state_dict"], load(whole)["state_dict"])
