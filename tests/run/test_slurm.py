"""What a run says to SLURM, and does in a job that SLURM has started again; tests/test_slurm.py has real jobs."""

import json
import logging
import os
from pathlib import Path

import pytest

from src.run.resume import go_on_after_requeue
from src.run.slurm import requeue
from tests.conftest import compose_config


@pytest.mark.parametrize(("script", "will"), [("echo $@ > said", True), ("echo Job is gone >&2; exit 1", False)])
def test_slurm_is_asked_to_start_the_job_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, will: bool
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    scontrol.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name, value in {"JOB_ID": "77", "ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

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
