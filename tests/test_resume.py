"""A stopped and resumed run is the run that was never stopped, bit for bit."""

import csv
import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import src.train
from src.train import train
from tests.conftest import QUICK, SMALL_TEXT_MODEL, Train, assert_same, compose_config, load, wandb_records, wandb_run

EMA = "model.ema_half_life=500"
SUBSET = "datamodule.subset=384"  # an epoch has 6 batches


def assert_same_training(a: Path, b: Path) -> None:
    """Weights, EMA, optimizer states, counters and the last grid."""
    ours, theirs = load(a), load(b)
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(ours[key], theirs[key], key)
    last = sorted((a / "samples").iterdir())[-1]
    assert last.read_bytes() == (b / "samples" / last.name).read_bytes()


def test_two_epochs_and_two_more_are_four(train_here: Train) -> None:
    whole = train_here("whole", EMA, SUBSET, "trainer.max_epochs=4")
    first = train_here("first", EMA, SUBSET, "trainer.max_epochs=2")
    before = contents(first)
    rest = train_here("rest", EMA, SUBSET, "trainer.max_epochs=4", f"ckpt_path={first}/ckpts/last.ckpt")

    assert_same_training(whole, rest)
    assert pictures(rest) == pictures(whole)
    assert contents(first) == before


def contents(run_dir: Path) -> dict[Path, bytes]:
    """All files but W&B's own logs."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {path: path.read_bytes() for path in files}


# Epochs of 6 batches, and validations of 2.
FOUR = [EMA, "datamodule.batch_size=16", "datamodule.subset=96", "trainer.max_epochs=4", "logger=none"]


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("four") / "run"
    run_dir.mkdir()
    train(compose_config("train", *QUICK, *FOUR, run_dir=run_dir))
    return run_dir


@pytest.mark.parametrize(("stop_at", "validation"), [(1, ""), (8, ""), (11, ""), (12, ""), (12, "in")])
def test_a_run_stopped_inside_an_epoch(
    four_epochs: Path,
    train_here: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    validation: str,
) -> None:
    """Inside the first epoch and the second, before its last batch, at its last, and in the validation after it."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_at, validation)
        with pytest.raises(SystemExit) as stopped:
            train_here("first", *FOUR)
    assert stopped.value.code == 128 + signal.SIGINT
    (first,) = tmp_path.glob("logs/runs/*/first")
    assert load(first)["global_step"] == stop_at

    rest = train_here("rest", *FOUR, "ckpt_path=last")

    assert_same_training(four_epochs, rest)
    assert record(rest) == record(four_epochs)


def test_a_text_model_stopped_inside_an_epoch(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompts, times and dropped conditions come from the generators that a checkpoint restores."""
    typed = [*FOUR, *SMALL_TEXT_MODEL, "model/schedule=cosine", "trainer.precision=bf16-mixed"]
    whole = train_here("whole", *typed)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8, "")
        with pytest.raises(SystemExit):
            train_here("first", *typed)
    assert_same_training(whole, train_here("rest", *typed, "ckpt_path=last"))


def interrupt_after(patch: pytest.MonkeyPatch, batch: int, validation: str) -> None:
    """Presses Ctrl-C while a batch is being trained, or twice `in` or `after` the validation that follows it."""

    class PressCtrlC(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):  # type: ignore[no-untyped-def]
            if trainer.global_step == batch - 1 and not validation:
                os.kill(os.getpid(), signal.SIGINT)

        def on_validation_batch_start(self, trainer, pl_module, batch_data, batch_idx):  # type: ignore[no-untyped-def]
            if trainer.global_step == batch and validation == "in" and batch_idx == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        def on_train_epoch_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
            if trainer.global_step == batch and validation == "after":
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    original = src.train.instantiate_each

    def with_interrupt(config, group):  # type: ignore[no-untyped-def]
        return [*original(config, group), *([PressCtrlC()] if group == "callbacks" else [])]

    patch.setattr(src.train, "instantiate_each", with_interrupt)


def test_max_steps_may_end_with_an_epoch(train_here: Train) -> None:
    typed = [EMA, SUBSET, "logger=none", "callbacks=checkpoint", "optimized_metric=null", "test_after_training=false"]
    whole = train_here("whole", *typed, "trainer.max_steps=8")
    first = train_here("first", *typed, "trainer.max_steps=6")  # all batches of the first epoch
    rest = train_here("rest", *typed, "trainer.max_steps=8", f"ckpt_path={first}/ckpts/last.ckpt")
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(load(whole)[key], load(rest)[key], key)


def test_max_steps_may_end_inside_an_epoch(train_here: Train) -> None:
    whole = train_here("whole", EMA, SUBSET, "trainer.max_epochs=3", "logger=csv")
    first = train_here("first", EMA, SUBSET, "trainer.max_steps=8", "logger=csv")
    assert load(first)["global_step"] == 8

    rest = train_here("rest", EMA, SUBSET, "trainer.max_epochs=3", "ckpt_path=last", "logger=csv")

    assert_same_training(whole, rest)
    assert record(rest) == record(whole) and table(rest) == table(whole)
    assert [row["step"] for row in table(rest) if "train/g_loss" in row] == [5, 11, 17]


def test_the_average_of_a_text_model_has_seen_the_batch_that_max_steps_ends_with(train_here: Train) -> None:
    typed = [*SMALL_TEXT_MODEL, SUBSET, "logger=none", "callbacks=checkpoint"]
    whole = train_here("whole", *typed, "trainer.max_epochs=2")
    train_here("first", *typed, "trainer.max_steps=8")
    rest = train_here("rest", *typed, "trainer.max_epochs=2", "ckpt_path=last")
    assert_same(load(whole)["state_dict"], load(rest)["state_dict"])


TIMED = ("seconds", "train/images_per_s", "val/seconds")  # no two runs have the same


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def record(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl"""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows_of(run_dir)]


def table(run_dir: Path) -> list[dict[str, Any]]:
    """csv/metrics.csv"""
    with open(run_dir / "csv" / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if v and k not in TIMED} for row in csv.DictReader(file)]
    return [row | {"step": int(row["step"])} for row in rows]


def pictures(run_dir: Path) -> dict[str, bytes]:
    found = [path for kind in ("samples", "pictures") for path in (run_dir / kind).rglob("*.png")]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in found}


def results(run_dir: Path) -> dict[str, Any]:
    metrics = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
    return {name: value for name, value in metrics.items() if name not in TIMED}


def bests(run_dir: Path) -> dict[str, tuple[int, float]]:
    """Batch and score of the best checkpoints, by their names, as the last one knows them."""
    (state,) = [state for key, state in load(run_dir)["callbacks"].items() if key.startswith("Checkpoint")]
    found = {}
    for path, score in state["best_k_models"].items():
        assert Path(path).parent == run_dir / "ckpts"
        found[Path(path).name] = torch.load(path, weights_only=True)["global_step"], float(score)
    assert max(score for _, score in found.values()) == float(state["best_model_score"])
    return found


class Score(Callback):
    """A metric whose best comes early."""

    values = (0.5, 0.983, 0.866, 0.7, 0.1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/score", self.values[trainer.current_epoch])


class Snapshots(Callback):
    """Keeps the run folder as it is at some moments: what `kill -9` would leave there."""

    def __init__(self, folder: str, batches: Sequence[int]) -> None:
        self.folder, self.batches = Path(folder), batches

    def keep(self, trainer: Trainer, name: str) -> None:
        shutil.copytree(trainer.default_root_dir, self.folder / "logs" / "runs" / "killed" / name)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.batches:
            self.keep(trainer, f"at {trainer.global_step}")

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6 and Path(trainer.default_root_dir, "ckpts", "b-epoch=1.ckpt").exists():
            self.keep(trainer, "between best and last")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer, "in the test")


THREE = ["trainer.limit_train_batches=3", "trainer.log_every_n_steps=2", "trainer.max_epochs=4"]
THREE += ["+callbacks.score._target_=tests.test_resume.Score", "callbacks.model_checkpoint.monitor=val/score"]
THREE += ["callbacks.model_checkpoint.mode=max", "callbacks.model_checkpoint.save_top_k=2", "callbacks.quality=null"]
THREE += ["callbacks.model_checkpoint.every_n_batches=2", "callbacks.model_checkpoint.filename='b-{epoch}'"]
EXTRAS = [name for name in ("tensorboard", "mlflow") if find_spec(name)]
LOGGERS = ["logger=many_loggers", *(f"~logger.{name}" for name in ("tensorboard", "mlflow") if name not in EXTRAS)]
LOGGERS += ["logger.mlflow.registered_model=null"] if "mlflow" in EXTRAS else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of four epochs of three batches, and beside it what was there at some moments."""
    folder = tmp_path_factory.mktemp("whole")
    run_dir = folder / "logs" / "runs" / "today" / "whole"
    snapshots = ["+callbacks.snapshots._target_=tests.test_resume.Snapshots", f"+callbacks.snapshots.folder={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        snapshots.append(f"+callbacks.snapshots.batches={random.Random(7).sample(range(4, 12), 2)}")
        typed = [*QUICK, *THREE, *LOGGERS, *snapshots, f"work_dir={folder}"]
        run_dir.mkdir(parents=True)
        train(compose_config("train", *typed, run_dir=run_dir))
        yield run_dir


def assert_same_traces(a: Path, b: Path) -> None:
    """Everything that two runs leave, but for the time they took."""
    for left in (record, table, pictures, bests):
        assert left(a) == left(b), left.__name__
    found, expected = results(b), results(a)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    if (b / "tensorboard").exists():
        assert events(a) == events(b)


def events(run_dir: Path) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"] if tag not in TIMED}
    return scalars | {tag: [e.step for e in found.Images(tag)] for tag in tags["images"]}


def test_a_stop_between_a_validation_and_the_choice_of_the_best(
    whole: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6, "after")  # the epoch with the best score
        with pytest.raises(SystemExit):
            train_here("first", *THREE, "logger=csv")
    rest = train_here("rest", *THREE, "logger=csv", "ckpt_path=last")

    for left in (bests, record, table):
        assert left(rest) == left(whole), left.__name__


@pytest.mark.extras  # with more loggers
def test_three_parts_leave_what_the_whole_run_leaves(
    whole: Path, train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [train_here("part 1", *THREE, *LOGGERS, "trainer.max_epochs=1")]
    for n in (2, 4):
        parts.append(
            train_here(f"part {len(parts) + 1}", *THREE, *LOGGERS, f"trainer.max_epochs={n}", "ckpt_path=last")
        )
    output = capsys.readouterr().out

    assert_same_traces(whole, parts[-1])
    assert_same_training(whole, parts[-1])
    assert bests(parts[-1]) == {
        "b-epoch=1.ckpt": (6, pytest.approx(0.983)),
        "b-epoch=2.ckpt": (9, pytest.approx(0.866)),
    }
    abouts = [json.loads((part / "run.json").read_text(encoding="utf-8")) for part in parts]
    assert len({about["started"] for about in abouts}) == 1
    assert abouts[0]["resumed_from"] is None
    assert abouts[2]["resumed_from"] == {
        "checkpoint": str(parts[1] / "ckpts" / "last.ckpt"),
        "batch": 6,
        "folders": [str(part) for part in parts[:2]],
    }
    # Seconds go on from part to part.
    seconds = [[row["seconds"] for row in rows_of(part)] for part in parts]
    assert all(each == sorted(each) for each in seconds)
    (took,) = [row["val/seconds"] for row in rows_of(parts[1]) if "val/seconds" in row and row["step"] == 5]
    assert took > next(row["val/seconds"] for row in rows_of(parts[0]) if "val/seconds" in row)
    # W&B: one run in three folders, whose rows follow each other.
    runs = [wandb_run(part) for part in parts]
    assert len({run["run_id"] for run in runs}) == 1
    folders = [str(next(part.glob("wandb/offline-run-*"))) for part in parts]
    assert shlex.join(["wandb", "sync", *folders]) in output
    rows = [wandb_steps(part) for part in parts]
    assert rows[0][-1] < rows[1][0] and rows[1][-1] < rows[2][0]
    if "mlflow" in EXTRAS:
        with closing(sqlite3.connect(tmp_path / "logs" / "mlflow.db")) as database:
            assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
            found = database.execute("select step from metrics where key = 'val/score' order by step").fetchall()
            assert found == [(2,), (5,), (8,), (11,)]
            assert database.execute("select value from params where key = 'trainer/max_epochs'").fetchall() == [("1",)]


def wandb_steps(run_dir: Path) -> list[int]:
    return [each["history"]["step"]["num"] for each in wandb_records(run_dir) if each["type"] == "history"]


@pytest.mark.extras  # with more loggers
def test_a_killed_run_goes_on(whole: Path, train_here: Train, tmp_path: Path) -> None:
    """At any moment: what was logged after the last checkpoint is logged once."""
    snapshots = sorted((whole.parents[1] / "killed").iterdir())
    assert len(snapshots) == 4
    for killed in snapshots:
        typed = [*THREE, "logger=csv", f"ckpt_path='{killed}/ckpts/last.ckpt'"]
        rest = train_here(killed.name, *typed)

        assert_same_traces(whole, rest)
        assert_same_training(whole, rest)


@pytest.mark.extras  # with more loggers
def test_a_run_may_go_on_in_its_own_folder(whole: Path, tmp_path: Path) -> None:
    killed = sorted((whole.parents[1] / "killed").iterdir())[0]
    run_dir = tmp_path / "own"
    shutil.copytree(killed, run_dir)
    typed = [*QUICK, *THREE, *LOGGERS, f"work_dir={tmp_path}", f"ckpt_path='{run_dir}/ckpts/last.ckpt'"]
    train(compose_config("train", *typed, run_dir=run_dir))

    assert_same_traces(whole, run_dir)


@pytest.mark.extras  # with more loggers
def test_a_checkpoint_alone_goes_on(
    whole: Path, train_here: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a run from elsewhere, whose folder is not here."""
    checkpoint = load(whole.parents[1] / "killed" / "in the test")
    checkpoint["folders"] = ["/nowhere/run"]
    for key, state in checkpoint["callbacks"].items():
        if key.startswith("Checkpoint"):
            state["best_k_models"] = {f"/nowhere/{Path(p).name}": v for p, v in state["best_k_models"].items()}
    path = tmp_path / "copied.ckpt"
    torch.save(checkpoint, path)
    rest = train_here("rest", *THREE, "trainer.max_epochs=5", "logger=csv", f"ckpt_path={path}")

    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING" and each.name.startswith("src")]
    assert said == [
        "the run folder /nowhere/run is not there any more: curves and pictures begin at batch 12",
        "2 of the 2 best checkpoints by val/score before batch 12 cannot be taken over, as the file is gone or a later"
        " one has taken its place: the best is chosen without it",
    ]
    assert [row["step"] for row in table(rest) if "val/score" in row] == [14]
    assert bests(rest) == {"b-epoch=4.ckpt": (15, pytest.approx(0.1))}


def test_a_run_resumed_with_other_settings_has_them_and_names_them(
    train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    short = [SUBSET, "logger=none", "model/schedule=linear"]
    first = train_here("first", *short, "trainer.max_epochs=1")
    changed = ["seed=7", "model.optimizer_g.lr=1e-4", "model.optimizer_d.betas=[0.0,0.9]", "datamodule.num_workers=1"]
    rest = train_here("rest", *short, "trainer.max_epochs=2", f"ckpt_path={first}/ckpts/last.ckpt", *changed)

    (warning,) = [record.message for record in caplog.records if record.name == "src.run.resume"]
    names = "datamodule.seed, model.optimizer_d.betas, model.optimizer_g.lr, seed, trainer.max_epochs"  # a schedule's
    assert warning == f"not the run that was stopped: the checkpoint had other {names}"
    g, d = (states["param_groups"][0] for states in load(rest)["optimizer_states"])
    assert g["base_lr"] == 1e-4 and list(d["betas"]) == [0.0, 0.9]
    assert load(rest)["optimizer_states"][0]["state"][0]["step"] == 12  # the moments go on
