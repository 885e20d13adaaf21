"""A stopped and resumed run is the run that was never stopped, bit for bit."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning import Callback

import src.train
from tests.conftest import assert_same, load

Train = Callable[..., Path]
EMA = "model.ema_half_life=500"


def assert_same_training(a: Path, b: Path) -> None:
    """Weights, EMA, optimizer states, counters, the grid's noise and the last grid."""
    ours, theirs = load(a), load(b)
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(ours[key], theirs[key], key)
    grid = "LogSampleGrid"
    assert_same(ours["callbacks"][grid], theirs["callbacks"][grid], grid)
    last = sorted((a / "samples").iterdir())[-1]
    assert last.read_bytes() == (b / "samples" / last.name).read_bytes()


def test_two_epochs_and_two_more_are_four(train_here: Train) -> None:
    whole = train_here("whole", EMA, "trainer.max_epochs=4")
    first = train_here("first", EMA, "trainer.max_epochs=2")
    rest = train_here("rest", EMA, "trainer.max_epochs=4", f"ckpt_path={first}/ckpts/last.ckpt")

    assert_same_training(whole, rest)
    assert sorted(p.name for p in (rest / "samples").iterdir()) == [
        *("epoch_0002.png", "epoch_0003.png"),
        *("raw_0002.png", "raw_0003.png"),
    ]


@pytest.mark.parametrize("stop_at", [1, 30, 43, 44])
def test_a_run_stopped_inside_an_epoch(train_here: Train, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """22 batches an epoch: inside the first and the second, before its last batch, and at its last."""
    whole = train_here("whole", EMA, "trainer.max_epochs=4", "logger=none")
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_at)
        with pytest.raises(SystemExit) as stopped:
            train_here("first", EMA, "trainer.max_epochs=4", "logger=none")
    assert stopped.value.code == 128 + signal.SIGINT
    first = next(whole.parent.glob("first"))
    assert load(first)["global_step"] == stop_at

    rest = train_here("rest", EMA, "trainer.max_epochs=4", "ckpt_path=last", "logger=none")

    assert_same_training(whole, rest)


def interrupt_after(patch: pytest.MonkeyPatch, batch: int) -> None:
    """Presses Ctrl-C while a batch is being trained."""

    class PressCtrlC(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):  # type: ignore[no-untyped-def]
            if trainer.global_step == batch - 1:
                os.kill(os.getpid(), signal.SIGINT)

    original = src.train.instantiate_each

    def with_interrupt(config, group):  # type: ignore[no-untyped-def]
        return [*original(config, group), *([PressCtrlC()] if group == "callbacks" else [])]

    patch.setattr(src.train, "instantiate_each", with_interrupt)


def test_max_steps_may_end_inside_an_epoch(train_here: Train) -> None:
    whole = train_here("whole", EMA, "trainer.max_epochs=3", "logger=csv")
    first = train_here("first", EMA, "trainer.max_steps=30", "logger=csv")
    assert load(first)["global_step"] == 30

    rest = train_here("rest", EMA, "trainer.max_epochs=3", "ckpt_path=last", "logger=csv")

    assert_same_training(whole, rest)
    # Curves go on where they stopped: the same batches have the same numbers.
    assert curve(whole, "train/g_loss").items() >= curve(rest, "train/g_loss").items()
    assert list(curve(rest, "train/g_loss")) == [43, 65]


def curve(run_dir: Path, key: str) -> dict[int, str]:
    with open(run_dir / "csv" / "metrics.csv", encoding="utf-8") as file:
        return {int(row["step"]): row[key] for row in csv.DictReader(file) if row[key]}


def test_a_resumed_run_leaves_the_first_ones_files_alone(train_here: Train) -> None:
    first = train_here("first", "trainer.max_epochs=1", "logger=none")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    train_here("second", "trainer.max_epochs=2", "logger=none", f"ckpt_path={first}/ckpts/last.ckpt")

    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_resuming_with_other_settings_names_them(train_here: Train, caplog: pytest.LogCaptureFixture) -> None:
    first = train_here("first", "trainer.max_epochs=1", "logger=none")
    changed = ["seed=7", "datamodule.batch_size=32", "model.optimizer_g.lr=1e-4", "datamodule.num_workers=1"]
    train_here("rest", "trainer.max_epochs=2", "logger=none", f"ckpt_path={first}/ckpts/last.ckpt", *changed)

    (warning,) = [record.message for record in caplog.records if record.name == "src.utils.resume"]
    names = "datamodule.batch_size, datamodule.seed, model.optimizer_g.lr, seed"
    assert warning == f"not the run that was stopped: the checkpoint had other {names}"


def test_a_resumed_run_has_the_rates_that_were_asked_for(train_here: Train) -> None:
    first = train_here("first", "trainer.max_epochs=1", "logger=none")
    asked = ["model.optimizer_g.lr=1e-5", "model.optimizer_d.betas=[0.0,0.9]"]
    rest = train_here("rest", "trainer.max_epochs=2", "logger=none", f"ckpt_path={first}/ckpts/last.ckpt", *asked)
    g, d = (states["param_groups"][0] for states in load(rest)["optimizer_states"])
    assert g["lr"] == 1e-5 and list(d["betas"]) == [0.0, 0.9]
    assert load(rest)["optimizer_states"][0]["state"][0]["step"] == 44  # and its moments


def test_a_schedule_over_another_length_is_another_run(train_here: Train, caplog: pytest.LogCaptureFixture) -> None:
    first = train_here("first", "trainer.max_epochs=1", "logger=none", "model/schedule=linear")
    resume = ["logger=none", "model/schedule=linear", f"ckpt_path={first}/ckpts/last.ckpt"]
    train_here("rest", "trainer.max_epochs=2", *resume)

    (warning,) = [record.message for record in caplog.records if record.name == "src.utils.resume"]
    assert warning == "not the run that was stopped: the checkpoint had other trainer.max_epochs"
