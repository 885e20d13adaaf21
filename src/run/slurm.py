"""A job of SLURM: who started this process, and how to get another turn. Neither torch nor Hydra is needed for it."""

import atexit
import logging
import os
import signal
import subprocess
from types import FrameType

log = logging.getLogger(__name__)

# What `sbatch --signal=SIGUSR1@90` sends 90 seconds before the time limit. Windows has no such signal.
TIME_IS_UP: int | None = getattr(signal, "SIGUSR1", None)
came_early: list[int] = []  # the same, before anything could be saved


def job_id() -> str | None:
    """The number of the SLURM job that this process belongs to; each job of an array has its own."""
    return os.environ.get("SLURM_JOB_ID")


def by_srun() -> bool:
    """Whether `srun` started this process as one of several."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def is_restarted() -> bool:
    """Whether SLURM has started this job before: it was requeued, by itself or by others."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def remember_what_comes_early() -> None:
    """Keeps the signal of the time limit from ending a process that has not begun to train: its first batch will.

    Nor does it end a process that has finished, and leaves.
    """

    def remember(signum: int, frame: FrameType | None) -> None:
        came_early.append(signum)

    if TIME_IS_UP is not None and job_id() is not None:
        signal.signal(TIME_IS_UP, remember)
        atexit.register(signal.signal, TIME_IS_UP, signal.SIG_IGN)  # Python drops our handler before its last steps


def requeue() -> bool:
    """Asks SLURM to start this job again; returns whether it will."""
    job = job_id() or ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one job of an array has the number of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    # Said before it is done, as SLURM then ends this process, which has no more to say: a sweep has not ended.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log.info("asking SLURM to start job %s again, which then goes on by itself", job)
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8")
        refusal = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except OSError as error:
        refusal = f"scontrol: {error.strerror}"
    if refusal:
        signal.signal(signal.SIGTERM, before)
        log.error("SLURM does not start job %s again (%s): submit it with sbatch --requeue", job, refusal)
    return not refusal
