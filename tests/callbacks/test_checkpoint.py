"""Which checkpoints a run leaves behind."""

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from src.errors import DivergedError, UserError
from src.models.mnist_gan_model import MNISTGANModel
from src.pictures.pixels import to_pixels
from src.report.run_folder import Run
from src.report.verdict import judge
from tests.conftest import assert_same, load
from tests.metrics.digits import digits

Train = Callable[..., Path]
SHORT = ["trainer.limit_train_batches=3", "logger=none"]


Copy = Callable[..., None]


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Copy:
    """Lets the model draw training images after the validations of some epochs, and new ones after the others."""

    def let(epochs: Collection[int]) -> None:
        def draw(trainer: Trainer, model: Any, labels: torch.Tensor, seed: int) -> torch.Tensor:
            data = digits().sets["train" if trainer.current_epoch in epochs else "test"]
            members = [(data.labels == label).nonzero().flatten().tolist() for label in range(10)]
            return to_pixels(data.__getitems__([members[label].pop() for label in labels.tolist()])[0])

        monkeypatch.setattr("src.callbacks.quality.draw", draw)

    return let


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the checkpoint callback has warned of since it was last asked."""
    caplog.set_level(logging.WARNING, logger="src.callbacks.checkpoint")

    def take() -> list[str]:
        found = [each.getMessage() for each in caplog.records if each.name == "src.callbacks.checkpoint"]
        caplog.clear()
        return found

    return take


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "ckpts").iterdir())


def test_last_is_current_also_where_the_best_is_kept(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worsening(MNISTGANModel):
        def on_validation_epoch_end(self) -> None:
            self.log("val/score", float(self.current_epoch))

    monkeypatch.setattr("src.models.mnist_gan_model.MNISTGANModel", Worsening)
    run_dir = train_here("run", *SHORT, "trainer.max_epochs=3", "callbacks.model_checkpoint.monitor=val/score")

    assert names(run_dir) == ["best.ckpt", "last.ckpt"]
    assert load(run_dir)["global_step"] == 9
    assert torch.load(run_dir / "ckpts" / "best.ckpt", weights_only=True)["global_step"] == 3


def test_every_second_epoch_is_written_and_stopping_the_test_leaves_it(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(MNISTGANModel, "test_step", interrupted)
    with pytest.raises(SystemExit):
        train_here("run", *SHORT, "trainer.max_epochs=3", "callbacks.model_checkpoint.every_n_epochs=2")

    (run_dir,) = tmp_path.glob("logs/runs/*/run")
    checkpoint = load(run_dir)
    assert checkpoint["global_step"] == 6
    assert checkpoint["state_dict"]["generator.model.3.num_batches_tracked"] == 6


def test_an_error_inside_a_batch_leaves_the_last_whole_state(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G would be a step ahead of D, and a resumed run would leave out the batch's images."""
    original = MNISTGANModel.step

    def failing(self, batch, batch_idx, optimizer_idx=None):
        if self.training and self.trainer.global_step == 4 and optimizer_idx == 1:
            raise RuntimeError("another process has ended")
        return original(self, batch, batch_idx, optimizer_idx)

    monkeypatch.setattr(MNISTGANModel, "step", failing)
    with pytest.raises(RuntimeError):
        train_here("run", *SHORT, "trainer.max_epochs=3")

    (run_dir,) = tmp_path.glob("logs/runs/*/run")
    assert load(run_dir)["global_step"] == 3


def test_a_few_steps_end_with_validated_numbers(train_here: Train) -> None:
    run_dir = train_here("run", "trainer.max_steps=7", "logger=csv")

    header = (run_dir / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "val/g_loss" in header
    assert load(run_dir)["global_step"] == 7


def test_overfitting_a_few_batches_runs(train_here: Train) -> None:
    run_dir = train_here("run", "trainer.overfit_batches=2", "trainer.max_epochs=2", "logger=none")

    assert load(run_dir)["global_step"] == 4


def test_several_callbacks_share_a_folder_and_no_file(train_here: Train, tmp_path: Path) -> None:
    ours = "+callbacks.mine={_target_: src.callbacks.checkpoint.Checkpoint, monitor: val/d_loss}"
    again = "+callbacks.again={_target_: src.callbacks.checkpoint.Checkpoint, monitor: val/d_loss,"
    again += " filename: 'a/{val/d_loss}', every_n_epochs: 1}"
    theirs = "+callbacks.theirs={_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: val/g_loss,"
    theirs += " filename: 'g-{val/g_loss:.0f}', save_last: true}"
    monitor = "callbacks.model_checkpoint.monitor=val/d_real"
    run_dir = train_here("run", *SHORT, "trainer.max_epochs=1", monitor, ours, again, theirs)

    found = names(run_dir)
    assert len(found) == 5
    assert {"best.ckpt", "best_val_d_loss.ckpt", "last.ckpt"} < set(found)
    (template,) = [name for name in found if name.startswith("a_val_d_loss=0.")]
    (rounded,) = [name for name in found if name.startswith("g-val_g_loss=")]
    assert template.endswith(".ckpt") and rounded.endswith(".ckpt")
    assert {path.parent for path in tmp_path.rglob("*.ckpt")} == {run_dir / "ckpts"}


def test_the_best_of_the_run_is_model_checkpoints(train_here: Train) -> None:
    """Wherever it stands in the configuration."""
    other = "+callbacks={mine: {_target_: src.callbacks.checkpoint.Checkpoint, monitor: val/d_loss, filename: mine}}"
    run_dir = train_here("run", *SHORT, "trainer.max_epochs=1", other)
    assert names(run_dir) == ["best.ckpt", "last.ckpt", "mine.ckpt"]


def test_several_best_have_names_of_their_own(train_here: Train) -> None:
    keys = ["callbacks.model_checkpoint.monitor=val/g_loss", "callbacks.model_checkpoint.save_top_k=2"]
    run_dir = train_here("run", *SHORT, "trainer.max_epochs=3", *keys)
    assert len(names(run_dir)) == 3
    assert set(names(run_dir)) < {"last.ckpt", "best_0000.ckpt", "best_0001.ckpt", "best_0002.ckpt"}


def test_a_metric_of_another_callback_is_checked_too(train_here: Train) -> None:
    ours = "+callbacks.mine={_target_: src.callbacks.checkpoint.Checkpoint, monitor: val/nonsense}"
    with pytest.raises(UserError, match=r"callbacks\.mine\.monitor=val/nonsense is logged by nobody"):
        train_here("run", *SHORT, ours)


def test_every_few_batches_inside_an_epoch(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed between two checkpoints goes on from the first of them, exactly."""
    few = ["trainer.limit_train_batches=7", "logger=none", "trainer.max_epochs=2", "callbacks.quality=null"]
    few += ["callbacks.model_checkpoint.monitor=null", "callbacks.model_checkpoint.every_n_batches=4"]
    whole = train_here("whole", *few)
    training_step = MNISTGANModel.training_step

    def killed(self: MNISTGANModel, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 10:
            raise DivergedError("after which nothing is written")
        training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MNISTGANModel, "training_step", killed)
        with pytest.raises(DivergedError):
            train_here("first", *few)
    first = whole.parent / "first"
    assert load(first)["global_step"] == 8  # the second epoch's first batch

    rest = train_here("rest", *few, f"ckpt_path={first}/ckpts/last.ckpt")
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(load(whole)[key], load(rest)[key], key)


def best(run_dir: Path) -> int:
    """After how many batches the best checkpoint was written."""
    return int(torch.load(run_dir / "ckpts" / "best.ckpt", weights_only=True)["global_step"])


def test_copies_are_passed_over(train_here: Train, copy: Copy, said: Callable[[], list[str]]) -> None:
    """Training images are 0 from themselves: by that number they would win."""
    better = ["callbacks.model_checkpoint.monitor=val/nearest_train", "trainer.max_epochs=3", *SHORT]
    copy({1, 2})
    run_dir = train_here("bound", *better)

    assert best(run_dir) == 3 and load(run_dir)["global_step"] == 9
    assert [text.partition(" is ")[0] for text in said()] == ["epoch 1", "epoch 2"]
    (text,) = [each.text for each in judge(Run(run_dir)).sentences if "checkpoint with the best" in each.text]
    assert text.endswith("with the best val/nearest_train, of epoch 0.")
    assert any("2 checkpoints were passed over" in each.text for each in judge(Run(run_dir)).sentences)

    assert best(train_here("free", *better, "callbacks.model_checkpoint.max_copied=null")) == 6
    assert said() == []


def test_where_all_epochs_copy_the_last_checkpoint_is_tested(
    train_here: Train, copy: Copy, said: Callable[[], list[str]]
) -> None:
    """Also where the run was resumed, and where an epoch has no validation of its own."""
    copy(range(9))
    all_copies = [*SHORT, "trainer.check_val_every_n_epoch=2"]
    first = train_here("first", *all_copies, "trainer.max_epochs=2", "test_after_training=false")
    passed, none = said()
    assert passed.startswith("epoch 1 is passed over in the choice of the best checkpoint by val/fd: 100.0% of its")
    assert passed.endswith("images are copies of training images, more than max_copied=0.05")
    assert none.startswith("no checkpoint became the best by val/fd, as 1 of the run's epochs")

    run_dir = train_here("rest", *all_copies, "trainer.max_epochs=5", f"ckpt_path={first}/ckpts/last.ckpt")
    passed, none = said()
    assert passed.startswith("epoch 3 is") and "as 2 of the run's epochs" in none and "last.ckpt takes its" in none
    assert names(run_dir) == ["last.ckpt"] and load(run_dir)["global_step"] == 15
    assert "test/fd" in json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
    assert any("the test, on the last checkpoint, as the" in each.text for each in judge(Run(run_dir)).sentences)


def test_without_quality_nothing_is_passed_over(train_here: Train) -> None:
    keys = ["callbacks.quality=null", "callbacks.model_checkpoint.monitor=val/g_loss", "trainer.max_epochs=1"]
    assert names(train_here("run", *SHORT, *keys)) == ["best.ckpt", "last.ckpt"]
