"""A job of SLURM that is started again goes on where it stopped, in the same run folder. No torch is needed for it."""

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from src.run.commands import about_run

log = logging.getLogger(__name__)

# What `sbatch --signal=SIGUSR1@90` sends 90 seconds before the time limit. Windows has no such signal.
TIME_IS_UP: int | None = getattr(signal, "SIGUSR1", None)


def job_id() -> str | None:
    """The number of the SLURM job that this process belongs to; each job of an array has its own."""
    return os.environ.get("SLURM_JOB_ID")


def by_srun() -> bool:
    """Whether `srun` started this process as one of several."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def is_restarted() -> bool:
    """Whether SLURM has started this job before: it was requeued, by itself or by others."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def folder_before(runs: Path, overrides: Sequence[str]) -> Path | None:
    """The folder in which this job ran the same command before it was requeued, if it began.

    A script may run one command several times: the first that has not finished goes on.

    Args:
        runs: where runs are written, `logs/runs`.
        overrides: what was typed.
    """
    found = {run.parent: about_run(run.parent) for run in sorted(runs.glob("*/*/run.json"))}
    ours = {
        run: about
        for run, about in found.items()
        if about.get("slurm_job") == job_id() and about.get("overrides") == list(overrides)
    }
    unfinished = [run for run, about in ours.items() if about.get("status") != "finished"]
    return next(iter([*unfinished, *reversed(ours)]), None)


def requeue() -> bool:
    """Asks SLURM to start this job again; returns whether it will."""
    job = job_id() or ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one job of an array has the number of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    # Said before it is done, as SLURM then ends this process.
    log.info("asking SLURM to start job %s again, which then goes on by itself", job)
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8")
        refusal = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except OSError as error:
        refusal = f"scontrol: {error.strerror}"
    if refusal:
        log.error("SLURM does not start job %s again (%s): submit it with sbatch --requeue", job, refusal)
    return not refusal
