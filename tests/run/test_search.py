"""What a search tries, and how several workers share its trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.errors import UserError
from src.run.search import split_overrides
from src.run.study import SharedStudy, open_storage, status_of

needs_optuna = pytest.mark.extras("optuna")


@pytest.mark.parametrize(
    ("typed", "kind", "arguments"),
    [
        ("lr=interval(1e-5,1e-3)", "float", {"low": 1e-5, "high": 1e-3}),
        ("lr=tag(log,interval(1e-5,1e-3))", "float", {"low": 1e-5, "high": 1e-3, "log": True, "step": None}),
        ("width=int(interval(8,64))", "int", {"low": 8, "high": 64}),
        ("width=tag(log,int(interval(8,64)))", "int", {"low": 8, "high": 64, "log": True, "step": 1}),
        ("width=range(8,33,8)", "int", {"low": 8, "high": 32, "step": 8}),
        ("width=shuffle(range(3,0,-1))", "int", {"low": 1, "high": 3, "step": 1}),
        ("beta=range(0.5,1.0,0.25)", "float", {"low": 0.5, "high": 0.75, "step": 0.25}),
        ("model/objective=choice(hinge,lsgan)", "categorical", {"choices": ["hinge", "lsgan"]}),
        ("seed=1,2", "categorical", {"choices": [1, 2]}),
        (
            "x=0.5,true,null,'a b',[0.0,0.9]",
            "categorical",
            {"choices": [0.5, True, "null", "'a b'", "[0.0,0.9]"]},
        ),
    ],
)
def test_what_is_searched(typed: str, kind: str, arguments: dict[str, Any]) -> None:
    fixed, space = split_overrides([typed, "other=3"], OverridesParser.create())

    key = typed.partition("=")[0]
    assert fixed == {"other": "other=3"}
    assert space == {key: (kind, arguments)}


def test_the_last_of_a_key_counts() -> None:
    lines = ["a=interval(0,1)", "b=1,2", "study=x", "a=3", "+c='x,y'", "~d", "b=choice(5,6)"]
    fixed, space = split_overrides(lines, OverridesParser.create())

    assert fixed == {"a": "a=3", "+c": "+c='x,y'", "~d": "~d"}
    assert space == {"b": ("categorical", {"choices": [5, 6]})}


def workers(folder: Path, n: int = 2) -> list[SharedStudy]:
    """Workers that each have their own connections to one study."""
    import optuna

    storages = [open_storage(None, "shared", folder, heartbeat=60) for _ in range(n)]
    named = {"study_name": "shared", "load_if_exists": True}
    return [SharedStudy(optuna.create_study(storage=each, **named), each) for each in storages]


def suggest(worker: SharedStudy, trial: Any) -> float:
    import optuna

    return optuna.Trial(worker.study, trial._trial_id).suggest_float("x", 0, 1)


def statuses(worker: SharedStudy) -> list[str]:
    return [status_of(trial) for trial in worker.study.get_trials()]


def claim_all(workers: Sequence[SharedStudy], n_trials: int) -> list[int]:
    """Claims by turns until nothing is left; the numbers of the trials."""
    found = []
    for i in range(100):
        if (trial := workers[i % len(workers)].claim(n_trials)) is None:
            break
        found.append(trial.number)
    return found


@needs_optuna
def test_workers_share_the_number_of_trials(tmp_path: Path) -> None:
    both = workers(tmp_path)

    assert claim_all(both, 5) == [0, 1, 2, 3, 4]
    assert both[0].count(5, "running") == 5
    assert claim_all(both, 7) == [5, 6]  # more are asked for later
    assert (tmp_path / "logs" / "studies" / "shared.db").is_file()


@needs_optuna
def test_a_trial_has_one_worker(tmp_path: Path) -> None:
    """Also if both have read that it waits."""
    first, second = workers(tmp_path)
    first.study.enqueue_trial({})
    (trial,) = second.study.get_trials()

    assert (first._take(trial._trial_id), second._take(trial._trial_id)) == (True, False)
    first.tell(trial, 1.0)
    assert not second._take(trial._trial_id)


@needs_optuna
def test_what_is_lost_is_tried_again(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    first, second = workers(tmp_path)
    ended: list[Any] = [first.claim(4) for _ in range(4)]
    tried = [suggest(first, trial) for trial in ended]
    first.tell(ended[0], 0.5)
    first.tell(ended[1], "failed", "it diverged")
    first.tell(ended[2], "interrupted")
    first.study.tell(ended[3].number, state=TrialState.FAIL)  # as Optuna does where a worker is silent

    assert statuses(first) == ["finished", "failed", "interrupted", "lost"]
    again: list[Any] = [second.claim(4), second.claim(4)]
    assert [suggest(second, trial) for trial in again] == tried[2:]
    assert second.claim(4) is None
    for trial in again:
        second.tell(trial, 1.0)
    assert first.count(4, "finished") == 3 and first.count(4, "failed") == 1
    assert first.claim(4) is None


@needs_optuna
def test_what_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    (worker,) = workers(tmp_path, 1)
    lost = []
    while (trial := worker.claim(1)) is not None:
        lost.append(trial.number)
        worker.study.tell(trial.number, state=TrialState.FAIL)

    assert lost == [0, 1, 2]


@needs_optuna
def test_of_what_two_workers_queue_at_once_one_is_tried(tmp_path: Path) -> None:
    (worker,) = workers(tmp_path, 1)
    trial: Any = worker.claim(1)
    worker.tell(trial, "interrupted")
    for _ in range(2):
        worker.study.enqueue_trial({"x": 0.5}, user_attrs={"again": 0})
    worker.study.enqueue_trial({})

    assert claim_all([worker], 1) == [1]
    assert claim_all([worker], 2) == [3]


@needs_optuna
def test_a_result_that_comes_too_late_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from optuna.trial import TrialState

    (worker,) = workers(tmp_path, 1)
    trial: Any = worker.claim(1)
    worker.study.tell(trial.number, state=TrialState.FAIL)
    worker.tell(trial, 1.0)

    assert "the result of trial 0 came too late" in caplog.text
    assert statuses(worker) == ["lost"]


@needs_optuna
@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("{folder}/no.db", "no.db cannot be used (file is not a database)"),
        ("{folder}/no.db/x.db", "no.db (File exists): choose another file with hydra.sweeper.storage=FILE"),
        ("postgresql://me:secret@127.0.0.1:1/x", "storage"),
    ],
)
def test_a_storage_that_cannot_be_used(tmp_path: Path, storage: str, said: str) -> None:
    (tmp_path / "no.db").write_text("no database " * 100, encoding="utf-8")
    with pytest.raises(UserError) as error:
        open_storage(storage.format(folder=tmp_path), "x", tmp_path, 20)

    assert said in str(error.value)
    assert "secret" not in str(error.value)
