"""Ctrl-C and SIGTERM end a run after the batch in progress, with a checkpoint and the right exit code."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus

log = logging.getLogger(__name__)


class StopRequest(Callback):
    """Remembers which signal asked the run to stop, and stops training after that batch."""

    signum: int | None = None
    begun = False  # training has; nothing before it, such as a feature net, is worth waiting for

    def is_made(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        return trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_made(trainer):
            # Lightning looks at this once the batch is complete, and raises `SIGTERMException`.
            trainer._signal_connector.received_sigterm = True


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[StopRequest]:
    """While training, the first SIGINT, SIGTERM or SIGHUP waits for the batch in progress; the next one does not.

    Lightning does so for SIGTERM alone, then exits with code 0, and hangs if several processes receive the signal,
    because its handler communicates with the others while each is somewhere else.
    """
    request = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        fitting = (trainer.state.fn, trainer.state.status) == (TrainerFn.FITTING, TrainerStatus.RUNNING)
        waits = request.begun and fitting and request.signum is None
        request.signum = request.signum or signum
        if not waits:
            raise KeyboardInterrupt
        if trainer.is_global_zero:
            log.warning("stopping after this batch, with a checkpoint; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
    trainer.callbacks.insert(0, request)  # type: ignore[attr-defined]
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {s: signal.signal(s, handle) for s in known if signal.getsignal(s) != signal.SIG_IGN}  # nohup ignores
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
