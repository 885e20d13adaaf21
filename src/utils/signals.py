"""Ctrl-C and SIGTERM end a run in order: after the batch in progress, with a checkpoint and an honest exit code."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)


class StopRequest:
    """Which signal asked the run to stop, if any."""

    signum: int | None = None


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[StopRequest]:
    """While training, the first SIGINT, SIGTERM or SIGHUP waits for the batch in progress; the next one does not.

    Lightning waits for SIGTERM alone, so the others are turned into its flag for that. It then raises
    `SIGTERMException`, with which the process would end with exit code 0 if nobody looked at the request.
    """
    request = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        again = request.signum is not None
        request.signum = request.signum or signum
        # Lightning puts its own SIGTERM handler over this one while it runs, and looks at its flag when training.
        trains = signal.getsignal(signal.SIGTERM) is not handle and trainer.state.fn == TrainerFn.FITTING
        if again or not trains:
            raise KeyboardInterrupt
        trainer._signal_connector.received_sigterm = True
        rank_zero_only(log.warning)("stopping after this batch, with a checkpoint; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    caught = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
