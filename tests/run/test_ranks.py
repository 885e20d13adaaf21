"""Processes that train together: machines wait for each other, agree, and use one run folder."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.errors import UserError
from src.run import ranks
from src.run.ranks import (
    check_reachable,
    is_first,
    let_first_record,
    one_folder,
    remove_empty,
    started_processes,
    wait_for_machines,
)
from tests.conftest import ROOT, Typed

LAUNCHED = (
    "GLOO_SOCKET_IFNAME",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)
SECOND = """
from src.errors import UserError
from src.run.ranks import wait_for_machines
try:
    print(wait_for_machines({n}, {timeout}, "/second"))
except UserError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else has been started, and nothing has been agreed."""
    monkeypatch.setattr(ranks, "agreed", {})
    for name in LAUNCHED:  # set first, so that what a test leaves in it is removed
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port at which the machines meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    yield number


def start(rank: int, n: int = 2, timeout: float = 60) -> subprocess.Popen[str]:
    """Another machine, in a process of its own."""
    code = [sys.executable, "-c", SECOND.format(n=n, timeout=timeout)]
    given = os.environ | {"NODE_RANK": str(rank)}
    pipe = subprocess.PIPE
    return subprocess.Popen(code, cwd=ROOT, env=given, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")


@pytest.mark.usefixtures("port")
def test_machines_meet_and_use_the_folder_of_the_first() -> None:
    others = [start(1, n=3), start(2, n=3)]  # before the first is there
    assert wait_for_machines(3, 60, "/first") == "/first"
    assert [other.communicate()[0] for other in others] == ["/first\n", "/first\n"]
    assert wait_for_machines(3, 60, "/later") == "/first"  # once in a process


def test_each_machine_says_for_whom_it_waits_and_how_long(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=rf"NODE_RANK=1 or 2 came to 127.0.0.1, port {port}, within 0.1 s: .*nodes_timeout"
    ):
        wait_for_machines(3, 0.1, "/first")
    said = capfd.readouterr().err
    assert f"waiting 0.1 s at 127.0.0.1, port {port}, for 2 more of 3 machines; this one has NODE_RANK=0" in said
    assert f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port} NODE_RANK=1 python " in said

    os.environ["NODE_RANK"] = "1"
    with pytest.raises(UserError, match=rf"did not meet at 127.0.0.1, port {port}, within 0.1 s"):
        wait_for_machines(2, 0.1, "/second")
    said = capfd.readouterr().err
    assert f"for the machine with NODE_RANK=0 at 127.0.0.1, port {port}; this one has NODE_RANK=1 of 2" in said


def test_an_address_is_chosen_where_nobody_named_one(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        wait_for_machines(2, 0.1, "/first")
    printed = re.search(r"MASTER_ADDR=(\S+) MASTER_PORT=(\d+)", capfd.readouterr().err)
    assert printed and printed.groups() == (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])


@pytest.mark.usefixtures("port")
def test_machines_that_disagree_all_say_so() -> None:
    other = start(1, n=3)
    with pytest.raises(UserError, match=r"trainer\.num_nodes is 2 on one machine and 3 on another: type"):
        wait_for_machines(2, 60, "/first")
    assert "type the same on all" in other.communicate()[0]


def test_a_stranger_at_the_port_is_ignored(port: int) -> None:
    knocks = f"""
import socket, time
for _ in range(600):
    try:
        socket.create_connection(("127.0.0.1", {port})).sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        break
    except OSError:
        time.sleep(0.1)
"""
    stranger = subprocess.Popen([sys.executable, "-c", knocks])
    other = start(1)
    assert wait_for_machines(2, 60, "/first") == "/first"
    assert (stranger.wait(), other.communicate()[0]) == (0, "/first\n")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK=2 does not fit trainer.num_nodes=2: number the machines from 0 to 1"),
        ({"NODE_RANK": "one"}, "NODE_RANK=one does not fit"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1 needs MASTER_ADDR and MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http must be a number"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "9"}, "MASTER_ADDR=no.such.host"),
    ],
)
def test_what_cannot_work_is_said_at_once(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        wait_for_machines(2, 60, "/first")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        with pytest.raises(UserError, match=r"MASTER_PORT=\d+ cannot be used .* set another, or NODE_RANK=1"):
            wait_for_machines(2, 60, "/first")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_only_the_first_process_writes_files(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert is_first() and let_first_record() == []
    monkeypatch.setenv(name, "1")
    assert not is_first() and "hydra.output_subdir=null" in let_first_record()


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_tasks_of_srun_share_a_folder(monkeypatch: pytest.MonkeyPatch, restarts: str) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)  # it is that of the first turn
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_PROCID", "1")
    chosen = str(Path("/project/logs/runs/2030-01-01/12-00-00"))

    assert one_folder(chosen, OmegaConf.create()) == "/project/logs/runs/slurm-77/step-3"
    assert not is_first()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # one process: as without SLURM
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    ranks.agreed.clear()
    assert one_folder(chosen, OmegaConf.create()) == chosen and is_first()


def test_a_job_that_is_started_again_finds_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    chosen = str(tmp_path / "2030-01-02" / "now")

    def run(name: str, job: str, typed: str, status: str) -> None:
        folder = tmp_path / "2030-01-01" / name
        folder.mkdir(parents=True)
        about = {"slurm_job": job, "overrides": [typed], "status": status}
        (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")

    def found(*typed: str) -> str:
        ranks.agreed.clear()
        config = OmegaConf.create({"hydra": {"overrides": {"task": list(typed)}}})
        return Path(one_folder(chosen, config)).name

    run("1", "77", "seed=1", "finished")
    run("2", "77", "seed=2", "stopped")
    run("3", "78", "seed=1", "failed")
    assert found("seed=2") == "now"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert [found("seed=2"), found("seed=1"), found("seed=3")] == ["2", "1", "now"]
    run("4", "77", "seed=1", "running")  # the script does the same again, and was stopped in that
    assert found("seed=1") == "4"


def test_as_many_processes_as_srun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_processes() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert started_processes() == (2, 2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(UserError, match=r"srun started 3 tasks on 2 machines: .* --ntasks-per-node=N"):
        started_processes()


@pytest.mark.parametrize(
    ("first", "device", "n_machines", "refused"),
    [
        ("10.0.0.1", "", 2, True),
        ("10.0.0.1", "eth0", 2, False),
        ("127.0.0.1", "", 2, False),
        ("10.0.0.1", "", 1, False),
    ],
)
def test_a_machine_that_others_would_look_for_at_their_own_address(
    monkeypatch: pytest.MonkeyPatch, first: str, device: str, n_machines: int, refused: bool
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1" if name == "box" else name)
    monkeypatch.setenv("MASTER_ADDR", first)
    if device:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", device)
    check_reachable(n_machines, on_cpu=False)  # GPUs find each other in another way
    if refused:
        with pytest.raises(UserError, match=r"calls itself box, .* set GLOO_SOCKET_IFNAME to the name of its network"):
            check_reachable(n_machines, on_cpu=True)
    else:
        check_reachable(n_machines, on_cpu=True)


def test_the_folder_that_another_machine_made_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_dir = tmp_path / "logs" / "runs" / "today" / "now"
    run_dir.mkdir(parents=True)
    remove_empty(run_dir)
    assert run_dir.exists()  # it is the first machine
    monkeypatch.setenv("GROUP_RANK", "1")
    (run_dir / "traceback_1.txt").touch()
    remove_empty(run_dir)
    assert run_dir.exists()
    (run_dir / "traceback_1.txt").unlink()
    (tmp_path / "logs" / "runs" / "yesterday").mkdir()
    remove_empty(run_dir)
    assert [path.name for path in tmp_path.rglob("*")] == ["logs", "runs", "yesterday"]


LAUNCHERS = {"torchrun": {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "N"}}
LAUNCHERS["srun"] = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "N"}


@pytest.mark.parametrize(("rank", "says"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_mistake_is_said_by_one_of_the_processes_on_a_machine(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, launcher: str, rank: str, says: int
) -> None:
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value.replace("N", rank))
    code, said = typed("trainer.bogus=1")
    assert code == 2 and said.count("error: there is no key trainer.bogus") == says
