"""Jobs of a real SLURM on this machine: its controller and its node's daemon, started for these tests alone."""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

from src.run.signals import StopRequest
from tests.conftest import QUICK, ROOT, assert_same, load, wandb_run
from tests.forked import run_forked
from tests.test_ddp import PROBE, weights

pytestmark = pytest.mark.extras("slurmctld", "slurmd", "munged", "srun")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""


class RunOutOfTime(Callback):
    """Shortens the time limit of the job's first turn after so many batches, until SLURM sends its signal.

    Of its ten hours, one is left, and the signal is due as many seconds before the end.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.batch or "SLURM_RESTART_COUNT" in os.environ:
            return
        (request,) = [each for each in trainer.callbacks if isinstance(each, StopRequest)]  # type: ignore[attr-defined]
        self._limit(trainer, 60)
        while request.signum is None:  # SLURM looks every 30 s
            time.sleep(0.01)
        self._limit(trainer, 600)

    def _limit(self, trainer: Trainer, minutes: int) -> None:
        if trainer.is_global_zero:
            job = f"JobId={os.environ['SLURM_JOB_ID']}"
            subprocess.run(["scontrol", "update", job, f"TimeLimit={minutes}"], check=True)


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")  # others, as SIGNALING, pass


class Slurm:
    """A cluster of one machine, whose files are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, folder: Path, start: str, *arguments: str, options: str = "") -> str:
        """Submits a script that runs `python run.py ...` after the words `start`; returns the job's number."""
        command = shlex.join([sys.executable, str(ROOT / "run.py"), *arguments])
        script = folder.with_name(f"{folder.name}.sh")
        text = f"#!/bin/bash\n#SBATCH --requeue --open-mode=append {options}\n{start} {command}\n"
        script.write_text(text, encoding="utf-8")
        output = f"--output={folder}.output"
        return self.run("sbatch", "--parsable", f"--chdir={folder}", output, str(script), cwd=folder.parent).strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, until: Callable[[dict[str, str]], bool], output: Path) -> dict[str, str]:
        """Waits for a state of a job; one that was requeued is started at once."""
        end = time.monotonic() + 300
        while not until(job := self.job(number)):
            assert time.monotonic() < end, (job, output.read_text(encoding="utf-8"))
            if job["JobState"] == "PENDING" and job["Restarts"] != "0":
                # Not in two minutes; it may have been started since.
                update = ["scontrol", "update", f"JobId={number}", "StartTime=now"]
                subprocess.run(update, env=self.environment, capture_output=True)
            time.sleep(0.2)
        return job


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Starts a cluster, and ends its daemons and jobs."""
    daemons: list[subprocess.Popen[bytes]] = []
    # Not pytest's folder: the path of a socket may not be long.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, open(f"{name}/log", "wb") as log:
        folder = Path(name)
        for each in ("state", "spool"):
            (folder / each).mkdir()
        with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
            ports = [each.getsockname()[1] for each in (one, other)]
        host, user = socket.gethostname().partition(".")[0], str(os.getuid())
        settings = CONFIGURATION.format(host=host, user=user, folder=folder, ports=ports)
        (folder / "slurm.conf").write_text(settings, encoding="utf-8")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munged = [f"--{option}={folder}/munge.{file}" for option, file in files.items()]
        slurm = Slurm(folder)
        try:
            for command in (["munged", "--foreground", "--force", *munged], ["slurmctld", "-D"], ["slurmd", "-D"]):
                daemons.append(subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log))
            end = time.monotonic() + 60
            idle = ["sinfo", "--noheader", "--format=%T"]
            while subprocess.run(idle, env=slurm.environment, capture_output=True).stdout.strip() != b"idle":
                assert time.monotonic() < end, (folder / "log").read_text(encoding="utf-8")
                time.sleep(0.1)
            yield slurm
            subprocess.run(["scancel", f"--user={user}"], env=slurm.environment, check=True)
            while slurm.run("squeue", "--noheader"):
                time.sleep(0.1)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(60)


def test_a_job_that_is_out_of_time_goes_on_by_itself(slurm: Slurm, tmp_path: Path) -> None:
    typed = [*QUICK, "callbacks.quality=null", "callbacks.model_checkpoint.monitor=val/g_loss", "trainer.max_epochs=2"]
    whole, folder, output = tmp_path / "whole", tmp_path / "job", tmp_path / "job.output"
    for each in (whole, folder):
        each.mkdir()
    ends = ["+callbacks.end._target_=tests.test_slurm.RunOutOfTime", "+callbacks.end.batch=5"]
    options = "--nodes=1 --ntasks=2 --time=600 --signal=SIGUSR1@3600"
    number = slurm.submit(folder, "srun", *typed, PROBE, *ends, options=options)
    done = run_forked(*typed, PROBE, "trainer=ddp_cpu", "logger=none", cwd=whole)
    job = slurm.wait(number, lambda job: job["JobState"] in ENDED, output)

    said = output.read_text(encoding="utf-8")
    assert (job["JobState"], job["Restarts"], done.returncode) == ("COMPLETED", "1", 0), said
    (run_dir,) = folder.glob("logs/*/*/*")
    assert run_dir.name == "step-0" and f"going on from {run_dir}/ckpts/last.ckpt" in said
    assert [each.name for each in folder.iterdir()] == ["logs"]
    (uninterrupted,) = whole.glob("logs/*/*/*")
    for rank in (0, 1):
        assert_same(weights(run_dir, rank), weights(uninterrupted, rank))
    assert_same(load(run_dir)["optimizer_states"], load(uninterrupted)["optimizer_states"])
    runs = []  # one run in W&B, in two files
    for part in sorted(run_dir.glob("wandb/offline-run-*")):
        alone = tmp_path / part.name
        (alone / "wandb").mkdir(parents=True)
        part.rename(alone / "wandb" / part.name)
        runs.append(wandb_run(alone))
    assert [run["state"] for run in runs] == ["failed", "finished"]
    assert runs[0]["run_id"] == runs[1]["run_id"]


def test_a_job_that_others_requeue_goes_on_until_it_is_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    typed = [*QUICK, "callbacks.quality=null", "callbacks.model_checkpoint.monitor=null", "optimized_metric=null"]
    folder, output = tmp_path / "job", tmp_path / "job.output"
    folder.mkdir()
    number = slurm.submit(folder, "exec", *typed, "logger=none", "trainer.max_epochs=10000")
    checkpoint = "logs/*/*/*/ckpts/last.ckpt"
    slurm.wait(number, lambda job: any(folder.glob(checkpoint)), output)
    slurm.run("scontrol", "requeue", number)
    job = slurm.wait(number, lambda job: (job["JobState"], job["Restarts"]) == ("PENDING", "1"), output)
    (last,) = folder.glob(checkpoint)
    before = load(last.parents[1])["global_step"]

    slurm.wait(number, lambda job: load(last.parents[1])["global_step"] > before, output)
    slurm.run("scancel", number)
    job = slurm.wait(number, lambda job: job["JobState"] in ENDED, output)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("CANCELLED", "1", "143:0")
    assert list(folder.glob("logs/*/*/*")) == [last.parents[1]]
    assert output.read_text(encoding="utf-8").count(f"going on from {last}") == 1
