"""Jobs of a sweep in processes of their own, which each launcher starts: real ones, as users have them."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import distributions
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.errors import UserError
from src.run import sweep
from src.run.environment import prefer_our_options
from src.run.sweep import check_answers, is_alive, n_cores, signals_wait
from tests.conftest import QUICK, ROOT, Typed, assert_same, compose_config, load, wandb_run
from tests.forked import run_forked, start_forked
from tests.test_slurm import ENDED, Slurm
from tests.test_slurm import slurm as slurm  # a fixture

FEW = [*QUICK, "callbacks.quality=null", "callbacks.model_checkpoint.monitor=null", "optimized_metric=null"]
FEW.remove("callbacks.quality.cas=false")
FEW += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "test_after_training=false"]
FEW += ["hydra.sweep.dir=sweep", "trainer.enable_progress_bar=false"]
LAUNCHERS = [
    ("joblib", ["hydra.launcher.n_jobs=2"]),
    pytest.param("submitit_local", [], marks=pytest.mark.extras("hydra-submitit-launcher")),
    pytest.param("ray", ["hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.extras("hydra-ray-launcher")),
]


class Probe:
    """Leaves in the sweep's folder what a job sees of its machine; then the job fails."""

    def __init__(self, folder: str) -> None:
        import torch

        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        seen = {name: os.environ.get(name) for name in names} | {"threads": torch.get_num_threads()}
        (Path(folder) / f"{os.getpid()}.json").write_text(json.dumps(seen), encoding="utf-8")
        raise ValueError("folder is filled")


@pytest.fixture(scope="module")
def one_after_another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's folder of two jobs in one process."""
    folder = tmp_path_factory.mktemp("one")
    done = run_forked("-m", *FEW, "trainer.max_epochs=1", "logger=none", "seed=1,2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.mark.parametrize(("launcher", "more"), LAUNCHERS)
def test_a_launchers_jobs_are_those_of_one_process(
    tmp_path: Path, one_after_another: Path, launcher: str, more: list[str]
) -> None:
    """The same weights, a finished W&B run each, and one that fails leaves the others alone."""
    typed = ["-m", *FEW, "trainer.max_epochs=1", f"hydra/launcher={launcher}", *more, "seed=1,-1,2"]
    done = run_forked(*typed, cwd=tmp_path, PYTHONPATH="")

    assert_two_of_three(done, tmp_path, one_after_another)


@pytest.mark.extras("hydra-ray-launcher")
def test_jobs_run_on_a_ray_cluster(tmp_path: Path, one_after_another: Path) -> None:
    """One that was started before, in another folder."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, f"--port={port}"]
    environment = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with open(tmp_path / "ray.log", "w", encoding="utf-8") as log:
        cluster = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    try:
        while "Ray runtime started" not in (said := (tmp_path / "ray.log").read_text(encoding="utf-8")):
            assert cluster.poll() is None, said
            time.sleep(0.1)
        typed = ["-m", *FEW, "trainer.max_epochs=1", "hydra/launcher=ray", "seed=1,-1,2"]
        address = f"hydra.launcher.ray.init.address=127.0.0.1:{port}"
        done = run_forked(*typed, address, cwd=tmp_path, **environment)
    finally:
        cluster.terminate()
        cluster.wait(60)

    assert_two_of_three(done, tmp_path, one_after_another)


def assert_two_of_three(done: subprocess.CompletedProcess[str], folder: Path, one_after_another: Path) -> None:
    """Of the seeds 1, -1 and 2, the second failed, and the others are what they are in one process."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: 1 of 3 jobs did not finish: job 1 failed; see above" in done.stderr
    assert "job 1       seed=-1 failed: seed must be a whole number from 0 to 2**32 - 1, not -1" in done.stdout
    records = [json.loads((folder / "sweep" / job / "job.json").read_text(encoding="utf-8")) for job in "012"]
    assert [record["code"] for record in records] == [0, 2, 0]
    for ours, theirs in [("0", "0"), ("2", "1")]:
        job = folder / "sweep" / ours
        assert_same(load(job)["state_dict"], load(one_after_another / theirs)["state_dict"])
        run = wandb_run(job)
        assert (run["state"], run["exit_code"]) == ("finished", 0)
        assert run["name"] == f"mnist_gan_model-digits-seed{(theirs == '1' and 2) or 1}-job{ours}"
        about = json.loads((job / "run.json").read_text(encoding="utf-8"))
        assert about["command"].startswith("python run.py datamodule=digits") and "_submit" not in about["command"]
        assert (job / "run.log").exists()


def start(folder: Path, launcher: str, *more: str) -> tuple[BaseProcess, Path]:
    """A sweep of three long jobs; as many as run at once have a checkpoint when this returns, with its output."""
    output = folder / "output"
    typed = ["-m", *FEW, "trainer.max_epochs=20000", f"hydra/launcher={launcher}", "seed=1,2,3", *more]
    process = start_forked(*typed, cwd=folder, files=(output, output))
    at_once = {"submitit_local": min(2, n_cores()), "submitit_slurm": 1}.get(launcher, 2)
    while len(list(folder.glob("sweep/*/ckpts/last.ckpt"))) < at_once:
        assert process.exitcode is None, output.read_text(encoding="utf-8")
        time.sleep(0.05)
    return process, output


def records_of(folder: Path) -> dict[str, dict]:
    files = folder.glob("sweep/*/job.json")
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def assert_gone(pids: list[int]) -> None:
    until = time.monotonic() + 30
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_a_signal_waits_while_another_package_takes_the_handlers() -> None:
    """As Ray does while it starts: ours stay, and hear of it afterwards."""
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("ours"))
    try:
        with signals_wait([signal.SIGTERM]):
            signal.signal(signal.SIGTERM, lambda *_: heard.append("theirs"))
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == []
        assert heard == ["ours"]
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["ours", "ours"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_second_signal_does_not_wait() -> None:
    child = os.fork()
    if not child:
        try:
            with signals_wait([signal.SIGINT]):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(0)  # whatever happens, the tests go on in one process
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_a_search_that_is_stopped_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Ray has made another exit code of it."""
    stopped = SimpleNamespace(stopped_by=signal.SIGINT, launcher="RayLauncher", handlers={}, planned=None)
    monkeypatch.setattr(sweep, "sweeps", [stopped])
    assert sweep.conclude(lambda folders: [], interrupted=1) == 130


def test_a_ray_cluster_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (None, "local", "auto", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            check_answers(address)
    with pytest.raises(UserError, match=rf"^hydra\.launcher\.ray\.init\.address=127.0.0.1:{port} does not answer"):
        check_answers(f"127.0.0.1:{port}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("launcher", "more"), LAUNCHERS)
def test_a_signal_lets_every_job_write_its_checkpoint_and_ends_all(
    tmp_path: Path, launcher: str, more: list[str], signum: int
) -> None:
    process, file = start(tmp_path, launcher, *more)
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join(120)

    output = file.read_text(encoding="utf-8")
    assert process.exitcode == 128 + signum, output
    assert "0 of 3 jobs finished" in output
    records = records_of(tmp_path)
    controllers = [int(path.name) for path in tmp_path.glob("sweep/.submitit/[0-9]*")]
    assert_gone([*controllers, *(record["pid"] for record in records.values())])
    begun = [job for job in records if (tmp_path / "sweep" / job / "ckpts" / "last.ckpt").exists()]
    assert begun
    for job in begun:
        assert records[job]["code"] == 143
        assert wandb_run(tmp_path / "sweep" / job)["exit_code"] == 143
        assert f"ckpt_path={tmp_path}/sweep/{job}/ckpts/last.ckpt hydra.run.dir={tmp_path}/sweep/{job}" in output


@pytest.mark.parametrize(("launcher", "more"), LAUNCHERS)
def test_no_job_outlives_a_command_that_is_killed(tmp_path: Path, launcher: str, more: list[str]) -> None:
    process, _ = start(tmp_path, launcher, *more, "logger=none")
    pids = {job: record["pid"] for job, record in records_of(tmp_path).items()}
    process.kill()

    assert_gone([*pids.values()])
    if launcher != "ray":  # which ends them at once
        begun = [job for job in pids if (tmp_path / "sweep" / job / "ckpts" / "last.ckpt").exists()]
        assert begun and {records_of(tmp_path)[job]["code"] for job in begun} == {143}


@pytest.mark.parametrize(("launcher", "more"), LAUNCHERS[:2])  # Ray begins such a job again
def test_a_job_that_is_killed_is_one_job(tmp_path: Path, launcher: str, more: list[str]) -> None:
    """The others finish, and the command that is printed goes on with it."""
    process, file = start(tmp_path, launcher, *more, "trainer.max_epochs=30", "logger=none")
    pids = {job: record["pid"] for job, record in records_of(tmp_path).items()}
    killed = next(job for job in pids if (tmp_path / "sweep" / job / "ckpts" / "last.ckpt").exists())
    os.kill(pids[killed], signal.SIGKILL)
    process.join(300)

    output = file.read_text(encoding="utf-8")
    assert process.exitcode == 1, output
    assert f"error: 1 of 3 jobs did not finish: job {killed} killed; see above" in output
    assert "Traceback" not in output
    codes = {job: record["code"] for job, record in records_of(tmp_path).items()}
    assert codes == {"0": 0, "1": 0, "2": 0} | {killed: None}
    assert_gone([*pids.values()])
    (command,) = [shlex.split(line) for line in re.findall(r"^go on +(.*)$", output, re.MULTILINE)]
    again = run_forked(*command[2:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert load(tmp_path / "sweep" / killed)["global_step"] == 60


@pytest.mark.extras("hydra-submitit-launcher")
def test_a_job_that_finishes_though_what_started_it_was_killed(tmp_path: Path) -> None:
    process, file = start(tmp_path, "submitit_local", "trainer.max_epochs=30", "logger=none")
    controller = next(int(path.name) for path in tmp_path.glob("sweep/.submitit/[0-9]*"))
    os.kill(controller, signal.SIGKILL)
    process.join(300)

    output = file.read_text(encoding="utf-8")
    assert process.exitcode == 0, output
    assert "3 of 3 jobs finished" in output


@pytest.mark.parametrize(
    ("typed", "environment", "seen"),
    [
        ("trainer.gpus=1", {"CUDA_VISIBLE_DEVICES": "3,GPU-5"}, {("3", 1), ("GPU-5", 1)}),
        ("trainer.gpus=0", {"CUDA_VISIBLE_DEVICES": "3,5"}, {("3,5", 1)}),
    ],
)
def test_each_job_has_a_gpu_of_its_own(
    tmp_path: Path, typed: str, environment: dict[str, str], seen: set[tuple[str, int]]
) -> None:
    probe = ["+callbacks.probe._target_=tests.test_launchers.Probe", f"+callbacks.probe.folder={tmp_path}"]
    more = ["hydra.launcher.n_jobs=2"] if typed == "trainer.gpus=0" else []
    done = run_forked(
        *["-m", *FEW, *probe, typed, "logger=none", "hydra/launcher=joblib", "seed=1,2,3,4", *more],
        cwd=tmp_path,
        **environment,
    )

    assert done.returncode == 2 and done.stderr.count("folder is filled") == 4, done.stderr
    found = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*.json")]
    assert len(found) == 4  # each in a process of its own
    assert {(each["CUDA_VISIBLE_DEVICES"], each["threads"]) for each in found} == seen


@pytest.mark.parametrize(
    ("typed", "at_once", "threads"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 2, 4),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=16"], 5, 1),
        (["hydra/launcher=joblib"], 5, 1),
        (["hydra/launcher=joblib", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=3"], 3, 2),
        (["hydra/launcher=submitit_local"], 5, 1),
    ],
)
def test_jobs_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], at_once: int, threads: int
) -> None:
    """Five jobs, or a search, on eight cores."""
    monkeypatch.setattr(sweep, "n_cores", lambda: 8)
    monkeypatch.setattr(sweep, "sweeps", [])
    monkeypatch.setattr(sweep, "SIGNALS", [])
    monkeypatch.setenv("PYTHONPATH", "")  # it is added to
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweep, "plan", lambda config: None if "hydra/sweeper=optuna" in typed else 5 * [[]])
    prefer_our_options()
    config = compose_config("train", *typed, f"hydra.sweep.dir={tmp_path}")
    command = sweep.Sweep()
    command.on_multirun_start(config)

    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    assert (config.hydra.launcher.get("n_jobs") or command.slots) == at_once


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm", "ray"])
def test_a_launcher_is_an_extra(typed: Typed, launcher: str) -> None:
    if any(distributions(name=f"hydra-{launcher.partition('_')[0]}-launcher")):
        return
    code, stderr = typed("-m", *FEW, f"hydra/launcher={launcher}", "seed=1,2")
    assert code == 2
    says = f"error: hydra/launcher={launcher} is not installed: pip install -r requirements-scale.txt"
    assert stderr.splitlines() == [says]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "n_jobs must be a whole number of at least 1",
        ),
        (["seed=interval(1,2)"], "type values such as seed=1,2 or seed=range(1,3), or add hydra/sweeper=optuna"),
    ],
)
def test_a_sweep_that_cannot_be_begins_no_job(typed: Typed, wrong: list[str], says: str) -> None:
    code, stderr = typed("-m", *FEW, "seed=1,2", *wrong)
    assert code == 2
    (error,) = stderr.splitlines()
    assert error.startswith("error: ") and says in error


@pytest.mark.extras("slurmctld", "slurmd", "munged", "srun", "hydra-submitit-launcher")
def test_each_job_is_one_of_slurms(slurm: Slurm, tmp_path: Path, one_after_another: Path) -> None:
    typed = ["-m", *FEW, "trainer.max_epochs=1", "hydra/launcher=submitit_slurm", "seed=1,-1,2"]
    more = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5"]
    done = run_forked(*typed, *more, cwd=tmp_path, SLURM_CONF=slurm.environment["SLURM_CONF"])

    assert_two_of_three(done, tmp_path, one_after_another)


@pytest.mark.extras("slurmctld", "slurmd", "munged", "srun", "hydra-submitit-launcher")
def test_ctrl_c_cancels_slurms_jobs(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    process, file = start(tmp_path, "submitit_slurm", "hydra.launcher.cpus_per_task=1", "logger=none")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(120)

    assert process.exitcode == 130, file.read_text(encoding="utf-8")
    assert not slurm.run("squeue", "--noheader")
    assert {record["code"] for record in records_of(tmp_path).values()} == {143}


@pytest.mark.extras("slurmctld", "slurmd", "munged", "srun")
def test_jobs_at_once_share_the_time_of_their_slurm_job(slurm: Slurm, tmp_path: Path) -> None:
    """Its end is told to the command alone, which stops them all, and they go on when SLURM starts it again."""
    folder, output = tmp_path / "job", tmp_path / "job.output"
    folder.mkdir()
    typed = ["-m", *FEW, "trainer.max_epochs=200", "logger=none", "hydra/launcher=joblib", "seed=1,2"]
    typed.remove("hydra.sweep.dir=sweep")
    number = slurm.submit(folder, "exec", *typed, "hydra.launcher.n_jobs=2")
    slurm.wait(number, lambda job: len(list(folder.glob("logs/*/*/*/*/ckpts/last.ckpt"))) == 2, output)
    slurm.run("scancel", "--batch", "--signal=USR1", number)
    job = slurm.wait(number, lambda job: job["JobState"] in ENDED, output)

    said = output.read_text(encoding="utf-8")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), said
    (sweep,) = folder.glob("logs/multiruns/*/*")
    for number in "01":
        assert f"going on from {sweep}/{number}/ckpts/last.ckpt" in said
        assert load(sweep / number)["global_step"] == 400
    assert "2 of 2 jobs finished" in said
