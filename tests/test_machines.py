"""Two machines with a `torchrun` each, which share neither a network address nor a folder, on this one."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

from tests.conftest import QUICK, ROOT, assert_same, load
from tests.forked import run_forked

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--nnodes=2"]
TYPED = [*QUICK, "logger=csv", "callbacks.model_checkpoint.monitor=val/g_loss"]
TYPED += ["trainer.limit_train_batches=3"]


class Die(Callback):
    """Kills one process in the middle of a batch, without a word."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.batch):
            os.kill(os.getpid(), signal.SIGKILL)


def can_make_namespaces() -> bool:
    """Whether this system lets us have networks and mounts of our own."""
    tried = f"test{os.getpid()}"
    commands = [["ip", "netns", "add", tried], ["unshare", "--mount", "true"], ["ip", "netns", "delete", tried]]
    programs = all(shutil.which(command[0]) for command in commands)
    return programs and all(subprocess.run(each, capture_output=True).returncode == 0 for each in commands)


class Machines:
    """Two machines: in namespaces with their own network and disk, or else two agents that meet on loopback.

    Each works in a folder that has the same name on both, where they are in namespaces.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.disks = [folder / "first", folder / "second"]
        self.names = [f"test{os.getpid()}-{i}" for i in (0, 1)]
        self.work = folder / "work"
        for each in (*self.disks, self.work):
            each.mkdir()
        self.address = "127.0.0.1"
        if kind == "namespaces":
            self.address = "10.77.0.1"
            for name in self.names:
                self._ip("netns", "add", name)
            veth = ["type", "veth", "peer", "name", "net0", "netns", self.names[1]]
            self._ip("link", "add", "net0", "netns", self.names[0], *veth)
            for i, name in enumerate(self.names, start=1):
                self._ip("-n", name, "address", "add", f"10.77.0.{i}/24", "dev", "net0")
                for device in ("lo", "net0"):
                    self._ip("-n", name, "link", "set", device, "up")

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        for name in self.names if self.kind == "namespaces" else ():
            self._ip("netns", "delete", name)

    def run(self, *typed: str) -> list[tuple[int, str]]:
        """The same command on both; returns the exit code of each, and what it printed."""
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        with ExitStack() as stack:
            started = []
            for i, disk in enumerate(self.disks):
                command = [*TORCHRUN, f"--master-addr={self.address}", f"--master-port={port}", f"--node-rank={i}"]
                command += [str(ROOT / "run.py"), *typed]
                environment, folder = dict(os.environ), disk
                if self.kind == "namespaces":
                    environment["GLOO_SOCKET_IFNAME"] = "net0"  # this machine's name means loopback
                    mount = 'mount --bind "$0" "$1" && cd "$1" && shift && exec "$@"'
                    inside = ["bash", "-c", mount, str(disk), str(self.work), *command]
                    command = ["ip", "netns", "exec", self.names[i], "unshare", "--mount", *inside]
                    folder = self.work
                output = stack.enter_context(open(disk.with_suffix(".output"), "w+", encoding="utf-8"))
                options: Any = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
                started.append(subprocess.Popen(command, cwd=folder, env=environment, **options))
            try:
                codes = [each.wait(300) for each in started]
            finally:
                for each in started:
                    if each.poll() is None:
                        os.killpg(each.pid, signal.SIGKILL)
                        each.wait()
            return [
                (code, disk.with_suffix(".output").read_text(encoding="utf-8"))
                for code, disk in zip(codes, self.disks, strict=True)
            ]


@pytest.fixture
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path, request.param)
    yield machines
    machines.close()


@pytest.mark.parametrize("machines", ["namespaces" if can_make_namespaces() else "loopback"], indirect=True)
def test_two_machines_train_and_resume_one_model_without_a_shared_folder(machines: Machines, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    done = run_forked(*TYPED, "trainer=ddp_cpu", "trainer.max_epochs=2", cwd=whole)
    assert done.returncode == 0, done.stderr
    ended = machines.run(*TYPED, "trainer.max_epochs=1")
    assert [code for code, _ in ended] == [0, 0], ended
    ended = machines.run(*TYPED, "trainer.max_epochs=2", "ckpt_path=last")
    assert [code for code, _ in ended] == [0, 0], ended

    first, second = machines.disks
    (_, run_dir), (uninterrupted,) = sorted(first.glob("logs/runs/*/*")), whole.glob("logs/runs/*/*")
    assert_same(load(run_dir)["state_dict"], load(uninterrupted)["state_dict"])
    names = {path.relative_to(uninterrupted) for path in uninterrupted.rglob("*")}
    assert {path.relative_to(run_dir) for path in run_dir.rglob("*")} == names
    assert [path for path in second.rglob("*") if path.is_file()] == []
    assert not (second / "logs").exists()


def test_a_killed_process_of_torchrun_ends_all_with_a_sentence(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "output"
    folder.mkdir()
    rank, batch = random.choice([0, 1]), random.randint(3, 8)
    command = [*TORCHRUN[:3], "--standalone", "--nproc-per-node=2", str(ROOT / "run.py")]
    dies = ["+callbacks.die._target_=tests.test_machines.Die", f"+callbacks.die.rank={rank}"]
    with open(file, "w", encoding="utf-8") as output:
        typed = [*command, *TYPED, "callbacks.quality=null", *dies, f"+callbacks.die.batch={batch}"]
        code = subprocess.run(typed, cwd=folder, stdout=output, stderr=output, timeout=300).returncode
    said = file.read_text(encoding="utf-8")

    assert code == 1, said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: another process of this run has ended or cannot be reached"), (rank, batch)
    assert "Signal 9 (SIGKILL) received by PID" in said
    (last,) = folder.glob("logs/runs/*/*/ckpts/last.ckpt")
    assert load(last.parents[1])["global_step"] == batch // 3 * 3  # the last whole epoch
    typed = [*TYPED, "callbacks.quality=null", "trainer=ddp_cpu", f"ckpt_path={last}", "trainer.max_epochs=5"]
    done = run_forked(*typed, cwd=folder)
    assert done.returncode == 0, done.stderr
