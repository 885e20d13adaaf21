import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.callbacks import busy_machine
from src.callbacks.busy_machine import BusyMachine, seconds_of_run

TICKS = os.sysconf("SC_CLK_TCK")
TRAINER, MODEL = SimpleNamespace(is_global_zero=True), SimpleNamespace(device=torch.device("cpu"))


class Machine:
    """Two CPUs in a made `/proc`, on which time passes as told."""

    def __init__(self, proc: Path) -> None:
        self.proc, self.now, self.busy = proc, 0.0, {"own": 0.0, "loader": 0.0, "others": 0.0}
        self.write()

    def pass_time(self, seconds: float, **cpus: float) -> None:
        self.now += seconds
        for who, n in cpus.items():
            self.busy[who] += n * seconds
        self.write()

    def write(self) -> None:
        half = int(sum(self.busy.values()) / 2 * TICKS)
        lines = [f"cpu {99 * half} 0 0 0 0 0 0 0", *[f"cpu{i} {half} 0 0 99999 99999 0 0 99999" for i in range(2)]]
        (self.proc / "stat").write_text("\n".join([*lines, "cpu2 123456 0 0 0 0 0 0 0", "intr 5"]), encoding="utf-8")
        loader = os.getpid() + 1
        for who, pid, children in [("own", os.getpid(), f"{loader} "), ("loader", loader, "")]:
            (self.proc / str(pid) / "task" / "1").mkdir(parents=True, exist_ok=True)
            fields = ["S", *["0"] * 10, str(int(self.busy[who] * TICKS)), *["0"] * 30]
            (self.proc / str(pid) / "stat").write_text(f"{pid} (a )b) {' '.join(fields)}", encoding="utf-8")
            (self.proc / str(pid) / "task" / "1" / "children").write_text(children, encoding="utf-8")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setattr(busy_machine, "PROC", tmp_path)
    monkeypatch.setattr(busy_machine, "time", SimpleNamespace(perf_counter=lambda: made.now))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return made


def watch(machine: Machine, seconds: int, **cpus: float) -> None:
    callback = BusyMachine()
    callback.on_train_start(TRAINER, MODEL)
    for _ in range(seconds):
        machine.pass_time(1.0, **cpus)
        callback.on_train_batch_end(TRAINER, MODEL, None, None, 0)


def test_a_busy_machine_is_told_once_with_what_to_type(machine, caplog):
    watch(machine, 60, own=1, others=1)
    (record,) = caplog.records
    assert record.getMessage() == (
        "other processes use 1.0 of the 2 CPUs, and 2 threads that wait for each other are then slower than fewer:"
        " end those processes, or type trainer.threads=1"
    )


@pytest.mark.parametrize(
    ("cpus", "threads"),
    [
        ({"own": 2}, 2),
        ({"own": 1, "loader": 1}, 2),  # below this process
        ({"own": 1.7, "others": 0.3}, 2),
        ({"own": 1, "others": 1}, 1),  # a thread alone waits for nobody
    ],
)
def test_nothing_is_said_where_threads_need_not_share(machine, caplog, monkeypatch, cpus, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    watch(machine, 60, **cpus)
    assert not caplog.records


def test_a_single_command_is_not_a_busy_machine(machine, caplog):
    callback = BusyMachine()
    callback.on_train_start(TRAINER, MODEL)
    for second in range(60):
        machine.pass_time(1.0, own=1, others=1 if second < 6 else 0)
        callback.on_train_batch_end(TRAINER, MODEL, None, None, 0)
    assert not caplog.records


def test_seconds_of_a_run_are_those_of_this_process_and_of_those_below_it():
    own = sum(os.times()[:2])
    assert seconds_of_run() >= own - 0.05
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    before = seconds_of_run()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        elapsed = sum(os.times()[:2]) - own
        assert 0.45 <= seconds_of_run() - before - elapsed <= 1.5
        child.stdin.close()
