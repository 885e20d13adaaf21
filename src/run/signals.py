"""Ctrl-C, SIGTERM and SLURM's end of time end a run after the batch in progress, with a checkpoint and an exit code."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus

from src.run.console import leave_terminal
from src.run.ranks import by_torchrun
from src.run.slurm import TIME_IS_UP, by_srun, came_early, job_id

log = logging.getLogger(__name__)


GRACE = 30.0  # seconds that a process has to end by itself after another one
SAME = 1.0  # seconds in which SIGTERM is one: SLURM sends it to all processes, and so does the command above them
STARTED_BY = "STARTED_BY_PROCESS"  # in the environment of a process that Lightning starts: the number of the first
STOP = "stop_request"  # in the store: the signal, and the number of batches after which all stop


class StopRequest(Callback):
    """Remembers which signal asked the run to stop, and stops training after that batch."""

    signum: int | None = None
    since = 0.0  # when it came
    begun = False  # training has; nothing before it, such as a feature net, is worth waiting for

    def is_made(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all processes get the same answer, and the signal."""
        asked = trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False)
        if asked:
            signum = torch.tensor(self.signum or 0, device=trainer.strategy.root_device)
            self.signum = int(trainer.strategy.reduce(signum, reduce_op="max"))
        return asked

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether this batch is the last: the same one for all processes, which do not wait for each other to know it.

        A process that was asked to stop tells the others through the store in which they met, and all stop after the
        next batch: none can be beyond it, as each batch's gradients come from all of them.
        """
        if trainer.world_size == 1:
            return self.signum is not None
        store = torch.distributed.distributed_c10d._get_default_store()
        if self.signum is not None:
            store.compare_set(STOP, "", f"{self.signum} {trainer.global_step + 1}")  # the first one counts
        if not store.check([STOP]):
            return False
        signum, last = map(int, store.get(STOP).split())
        self.signum = self.signum or signum
        return trainer.global_step >= last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer):
            # Lightning looks at this once the batch is complete, and raises `SIGTERMException`.
            trainer._signal_connector.received_sigterm = True


def _end_after_child(observer: _ChildProcessObserver, trainer: Trainer, request: StopRequest) -> None:
    """Ends this process with the exit code of one that it started and that has failed, if it does not end by itself.

    It does once it waits for a message of that one. Lightning kills it within 5 s: perhaps before it has said why.
    """
    if torch.distributed.is_initialized():  # else it waits for that one to come
        time.sleep(GRACE)  # in a thread that ends with the process
    code = next(child.returncode for child in observer._child_processes if child.returncode)
    if code == 128 + (request.signum or 0) or (code > 0 and trainer.state.status == TrainerStatus.INTERRUPTED):
        return  # both end by themselves, and this one may have much to upload
    for child in observer._child_processes:
        child.kill()
    if code < 0:  # it could not say so itself
        print(f"error: a process of this run was ended by signal {-code}: start the run again", file=sys.stderr)
    sys.stdout.flush()
    os._exit(max(code, 1))


def _end_after_parent(parent: int, over: threading.Event) -> None:
    """Ends this process if the one that started it has ended, and this one does not notice by itself, as above."""
    while os.getppid() == parent:
        if over.wait(1):
            return
    if not over.wait(GRACE if torch.distributed.is_initialized() else 0):
        print("error: the first process of this run has ended: start the run again", file=sys.stderr)
        os._exit(1)


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[StopRequest]:
    """While training, the first SIGINT, SIGTERM or SIGHUP waits for the batch in progress; the next one does not.

    In a SLURM job, so does SIGUSR1, which `sbatch --signal` sends before the time limit; Lightning's own answer to it,
    a checkpoint of its own kind, is left out because somebody answers it already.

    Lightning does so for SIGTERM alone, then exits with code 0, and hangs if several processes receive the signal,
    because its handler communicates with the others while each is somewhere else.
    """
    request = StopRequest()
    request.signum = next(iter(came_early), None)

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum == getattr(signal, "SIGHUP", None):
            leave_terminal()
        fitting = (trainer.state.fn, trainer.state.status) == (TrainerFn.FITTING, TrainerStatus.RUNNING)
        first = request.signum is None
        # A stopped validation is done again. Several processes would have to agree on where to stop it.
        waits = request.begun and fitting and first and not (trainer.validating and trainer.world_size == 1)
        if first:
            request.signum, request.since = signum, time.monotonic()
        elif signum == signal.SIGTERM and time.monotonic() - request.since < SAME:
            return
        if signum == TIME_IS_UP and not (request.begun and trainer.state.status == TrainerStatus.RUNNING):
            return  # before training, between two stages, or after the last: the next batch sees it, or the run's end
        if signum == signal.SIGTERM and first and trainer.state.status == TrainerStatus.INTERRUPTED:
            return  # torchrun sends it when another process has died, which is what ends this one already
        if not waits:
            raise KeyboardInterrupt
        if trainer.is_global_zero:
            log.warning("stopping after this batch, with a checkpoint; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    over = threading.Event()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[STARTED_BY] = str(os.getpid())
    elif (parent := os.environ.get(STARTED_BY)) and not by_torchrun() and not by_srun():
        threading.Thread(target=_end_after_parent, args=(int(parent), over), daemon=True).start()
    _ChildProcessObserver._terminate_all = lambda observer: _end_after_child(observer, trainer, request)  # type: ignore[assignment,method-assign]
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
    trainer.callbacks.insert(0, request)  # type: ignore[attr-defined]
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    known += [TIME_IS_UP] if TIME_IS_UP is not None and job_id() else []
    before = {s: signal.signal(s, handle) for s in known if signal.getsignal(s) != signal.SIG_IGN}  # nohup ignores
    try:
        yield request
    finally:
        over.set()
        for signum, handler in before.items():
            signal.signal(signum, handler)
