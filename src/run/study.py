"""A study: what a search has tried so far, in a file or a database that several workers share. Optuna keeps it."""

import logging
import random
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from src.config.explain import EXTRAS, explain_os, telling
from src.errors import UserError

if TYPE_CHECKING:  # an extra
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

TRIES = 3  # of a trial whose worker dies each time, for it may be the trial that kills it


def open_storage(storage: str | None, study: str, work_dir: str | Path, heartbeat: int) -> Any:
    """Opens the file or database that a study is kept in, and makes its tables if need be: an `RDBStorage`.

    Args:
        storage: a file or a database's URL; None: `logs/studies/NAME.db` in `work_dir`.
        study: the study's name.
        work_dir: where `logs/` is.
        heartbeat: seconds between two signs of life of a running trial.

    Raises:
        UserError: it cannot be opened, or a package is not installed.
    """
    try:
        import optuna
        from sqlalchemy import event
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise UserError(f"hydra/sweeper=optuna needs a package that is not installed ({error}): {EXTRAS}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # signs of life
    options: dict[str, Any] = {"heartbeat_interval": heartbeat, "grace_period": 3 * heartbeat}
    try:
        if storage and "://" in storage:
            # SQLAlchemy's own choice of a driver depends on its version.
            url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)
            engine: dict[str, Any] = {"pool_pre_ping": True}  # a server may have been away
        else:
            file = Path(storage or Path(work_dir, "logs", "studies", f"{study}.db")).expanduser().absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            url = "sqlite:///study"  # the file's own name may have characters that mean something in a URL
            connect = partial(sqlite3.connect, file, timeout=60, isolation_level=None, check_same_thread=False)
            engine = {"creator": connect}
        for wait in (0.1, 0.3, 1.0, None):
            try:
                made = optuna.storages.RDBStorage(url, engine, **options)
                break
            except SQLAlchemyError:  # another worker may be making the same tables
                if wait is None:
                    raise
                time.sleep(random.uniform(0, wait))
        if made.engine.dialect.name == "sqlite":
            # It locks no rows: of two workers that read that a trial waits, both would start it.
            event.listen(made.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return made
    except ImportError as error:
        raise UserError(f"the storage of a search needs a driver ({error}): pip install 'psycopg[binary]'") from error
    except OSError as error:
        raise UserError(explain_os(error, "choose another file with hydra.sweeper.storage=FILE")) from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        shown = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", str(storage or file))
        reason = telling(str(getattr(error, "orig", error)))
        raise UserError(
            f"hydra.sweeper.storage={shown} cannot be used ({reason}): check that it is a database, and that this user"
            " may write to it"
        ) from error


class SharedStudy:
    """A study with several workers: who runs which trial, and which have to be tried again.

    A trial whose worker was stopped or has died is tried again as another one with the same parameters. Both fill one
    slot, and a search of `n_trials` fills as many slots. Two workers may see the same gap at once and each queue a
    trial for it. Then both read the same order of trials, and take the first.

    Args:
        study: of Optuna, in `storage`.
        storage: the `RDBStorage` that it is kept in.
    """

    def __init__(self, study: "Study", storage: Any) -> None:
        self.study, self.storage = study, storage

    def slots(self, n_trials: int) -> list[list["FrozenTrial"]]:
        """The trials of each slot, in the order in which they were queued."""
        slots: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            slots.setdefault(trial.user_attrs.get("again", trial.number), []).append(trial)
        return [slots[slot] for slot in sorted(slots)][:n_trials]

    def claim(self, n_trials: int) -> "FrozenTrial | None":
        """The next trial for this worker to run; None: there is none, though others may be running."""
        from optuna.storages import fail_stale_trials

        while True:
            fail_stale_trials(self.study)
            slots = self.slots(n_trials)
            for tried in slots:
                trial = latest(tried)
                if is_lost(trial) and sum(status_of(each) == "lost" for each in tried) < TRIES:
                    again = trial.user_attrs.get("again", trial.number)
                    self.study.enqueue_trial(trial.params, user_attrs={"again": again})
                    break
                if status_of(trial) == "waiting" and self._take(trial._trial_id):
                    return trial
            else:
                if len(slots) == n_trials:
                    return None
                self.study.enqueue_trial({})

    def count(self, n_trials: int, *statuses: str) -> int:
        """How many slots are at one of these statuses."""
        return sum(status_of(latest(tried)) in statuses for tried in self.slots(n_trials))

    def _take(self, trial_id: int) -> bool:
        """Whether this worker was the first to start a trial that waits."""
        from optuna.trial import TrialState

        self.storage.record_heartbeat(trial_id)  # before, as a trial without any is never taken for lost
        try:
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except RuntimeError:  # another worker has already finished it
            return False

    @contextmanager
    def alive(self, trials: Sequence["FrozenTrial"]) -> Iterator[None]:
        """For the block, tells other workers that these trials are being run."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.storage.heartbeat_interval):
                for trial in trials:
                    with suppress(Exception):  # the database may be away for a moment
                        self.storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(5)  # not for ever: a signal may have come while this thread held a lock

    def take_back(self, trials: Sequence["FrozenTrial"], why: str) -> None:
        """Records that these trials were `interrupted` or `lost`, except those that have a result."""
        for trial in trials:
            if status_of(self.storage.get_trial(trial._trial_id)) == "running":
                self.tell(trial, why)

    def tell(self, trial: "FrozenTrial", result: float | str, error: str = "") -> None:
        """Records a trial's result: a number, or how it ended, `failed`, `interrupted` or `lost`."""
        from optuna.trial import TrialState

        try:
            if isinstance(result, str):
                self.storage.set_trial_user_attr(trial._trial_id, "error", error)
                self.storage.set_trial_user_attr(trial._trial_id, "ended", result)
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif self.storage.get_trial(trial._trial_id).user_attrs.get("ended") == "pruned":
                self.study.tell(trial.number, state=TrialState.PRUNED)
            else:
                self.study.tell(trial.number, result)
        except (ValueError, RuntimeError) as refused:
            log.warning(
                "the result of trial %d came too late (%s): this worker was silent for so long that the trial is tried"
                " again; a greater hydra.sweeper.heartbeat waits longer",
                *(trial.number, telling(str(refused))),
            )


class RunningTrial:
    """The trial that this run is, for its validations.

    Args:
        search: the sweeper's settings, with the `study` and the number of the `trial`.
        work_dir: where `logs/` is.
    """

    def __init__(self, search: DictConfig, work_dir: str) -> None:
        import optuna

        self._storage = open_storage(search.storage, search.study, work_dir, search.heartbeat)
        self._study = optuna.load_study(study_name=search.study, storage=self._storage)
        study_id = self._storage.get_study_id_from_name(search.study)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study_id, search.trial)
        self._pruner = hydra.utils.instantiate(search.pruner)

    def report(self, validation: int, value: float) -> bool:
        """Records the metric of the run's n-th validation; whether the trial is hopeless compared with others."""
        self._storage.set_trial_intermediate_value(self._id, validation, value)
        return self._pruner.prune(self._study, self._storage.get_trial(self._id))

    def alive(self) -> AbstractContextManager[None]:
        """For the block, tells workers that this trial is being run, even if the command that began it has gone."""
        return SharedStudy(self._study, self._storage).alive([self._storage.get_trial(self._id)])

    def end(self, result: float | str, error: str = "") -> None:
        """Records the run's result, as `SharedStudy.tell` does."""
        SharedStudy(self._study, self._storage).tell(self._storage.get_trial(self._id), result, error)

    def give_up(self) -> None:
        """Notes that the run ends for its lack of prospects."""
        self._storage.set_trial_user_attr(self._id, "ended", "pruned")


def status_of(trial: "FrozenTrial") -> str:
    """`waiting`, `running`, `finished`, `pruned`, `failed`, `interrupted`, or `lost`: its worker has died."""
    state = trial.state.name.lower()
    if state == "fail":
        ended = trial.user_attrs.get("ended")
        return ended if ended in ("failed", "interrupted") else "lost"
    return "finished" if state == "complete" else state


def latest(tried: Sequence["FrozenTrial"]) -> "FrozenTrial":
    """Of the trials of a slot, the one that counts: the first that need not be tried again."""
    return next((trial for trial in tried if not is_lost(trial)), tried[-1])


def is_lost(trial: "FrozenTrial") -> bool:
    """Whether a trial has no result and is to be tried again."""
    return status_of(trial) in ("lost", "interrupted")
