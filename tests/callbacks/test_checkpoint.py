"""Which checkpoints a run leaves behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.models.mnist_gan_model import MNISTGANModel
from tests.conftest import assert_same, load

Train = Callable[..., Path]
SHORT = ["trainer.limit_train_batches=3", "logger=none"]


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


def test_every_second_epoch(train_here: Train) -> None:
    run_dir = train_here("run", *SHORT, "trainer.max_epochs=3", "callbacks.model_checkpoint.every_n_epochs=2")

    assert load(run_dir)["global_step"] == 6


def test_stopping_the_test_does_not_touch_the_checkpoint(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    whole = train_here("whole", *SHORT, "trainer.max_epochs=3")
    monkeypatch.setattr(MNISTGANModel, "test_step", interrupted)
    every_second = "callbacks.model_checkpoint.every_n_epochs=2"
    with pytest.raises(SystemExit):
        train_here("run", *SHORT, "trainer.max_epochs=3", every_second)

    (run_dir,) = tmp_path.glob("logs/runs/*/run")
    checkpoint = load(run_dir)
    assert checkpoint["global_step"] == 6
    assert checkpoint["state_dict"]["generator.model.3.num_batches_tracked"] == 6
    assert load(whole)["global_step"] == 9
    assert_same(checkpoint["config"]["model"], load(whole)["config"]["model"])


def test_a_few_steps_end_with_validated_numbers(train_here: Train) -> None:
    run_dir = train_here("run", "trainer.max_steps=7", "logger=csv")

    header = (run_dir / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "val/g_loss" in header
    assert load(run_dir)["global_step"] == 7


def test_overfitting_a_few_batches_runs(train_here: Train) -> None:
    run_dir = train_here("run", "trainer.overfit_batches=2", "trainer.max_epochs=2", "logger=none")

    assert load(run_dir)["global_step"] == 4
