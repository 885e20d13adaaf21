"""Notices that other processes need the CPUs on which a run computes."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

PROC = Path("/proc")
WINDOW = 5.0  # seconds over which use of the CPUs is counted
LEAST = 0.5  # CPUs that others use all the time; less is an editor, or a browser


class BusyMachine(Callback):
    """Says, once a run, that other processes use the CPUs, and what to type then. It reads `/proc`, so on Linux alone.

    The threads of a run wait for each other in every operation. Where one of them has to share its CPU, all do: on two
    CPUs, two threads beside another busy process are several times slower than one.
    """

    def __init__(self) -> None:
        self._said = False
        self._busy_windows = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        on_cpu = pl_module.device.type == "cpu" and trainer.is_global_zero
        self._said = not (on_cpu and (PROC / "stat").exists())
        if not self._said:
            self._begin_window()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._said or (seconds := time.perf_counter() - self._begun) < WINDOW:
            return
        others = (seconds_of_all() - self._all - seconds_of_run() + self._own) / seconds
        threads, cpus = torch.get_num_threads(), len(os.sched_getaffinity(0))
        crowded = threads > 1 and others > LEAST and threads + others > cpus + LEAST
        self._busy_windows = self._busy_windows + 1 if crowded else 0
        if self._busy_windows == 2:  # one can be a single command
            self._said = True
            log.warning(
                "other processes use %.1f of the %s CPUs, and %s threads that wait for each other are then slower than"
                " fewer: end those processes, or type trainer.threads=%s",
                *(others, cpus, threads, min(threads - 1, max(1, int(cpus - others)))),
            )
        self._begin_window()

    def _begin_window(self) -> None:
        self._begun, self._all, self._own = time.perf_counter(), seconds_of_all(), seconds_of_run()


def seconds_of_all() -> float:
    """CPU seconds since the machine started of all processes, on the CPUs that this one may use."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in (PROC / "stat").read_text(encoding="utf-8").splitlines():
        name, *fields = line.split()
        if name in usable:
            user, nice, system, _idle, _waiting, interrupts, soft_interrupts = map(int, fields[:7])
            ticks += user + nice + system + interrupts + soft_interrupts
    return ticks / os.sysconf("SC_CLK_TCK")


def seconds_of_run() -> float:
    """CPU seconds of this process and those below it, such as its data loader's and W&B's."""
    ticks, todo = 0, [os.getpid()]
    while todo:
        process = PROC / str(todo.pop())
        try:
            # After the name, which may hold spaces, these are the 12th to 15th: its own, and of its ended children.
            ticks += sum(map(int, (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:15]))
            for children in process.glob("task/*/children"):
                todo += map(int, children.read_text(encoding="utf-8").split())
        except OSError:
            continue  # it has just ended
    return ticks / os.sysconf("SC_CLK_TCK")
