"""A job of a sweep that fails is one job: the others go on, and the exit code tells."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.models.mnist_gan_model import MNISTGANModel
from tests.conftest import QUICK, Typed

FEW = [*QUICK[:3], "logger=none", "callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]
FEW += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
FEW += ["test_after_training=false", "hydra.sweep.dir=sweep", "trainer.enable_progress_bar=false"]
FEW += ["optimized_metric=val/g_loss"]
OPTUNA = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=0"]
needs_optuna = pytest.mark.extras("optuna")


def best(folder: Path) -> dict[str, float]:
    found = OmegaConf.load(folder / "sweep" / "optimization_results.yaml")
    return {"value": found.best_value, **found.best_params}


@needs_optuna
def test_a_search_goes_on_without_what_failed(typed: Typed, tmp_path: Path) -> None:
    code, stderr = typed(*FEW, *OPTUNA, "model.optimizer_g.lr=choice(1e10,0.0001)")

    assert code == 1
    assert "training diverged" in stderr
    assert [(tmp_path / "sweep" / str(job) / "results.json").exists() for job in range(4)].count(True) in (1, 2, 3)
    assert best(tmp_path)["model.optimizer_g.lr"] == 0.0001


@needs_optuna
def test_what_is_no_number_is_not_the_best(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity would be the largest of all."""

    def validation_step(self: MNISTGANModel, batch: object, batch_idx: int) -> None:
        found = {10: "inf", 20: "nan", 30: "-inf", 40: "7.0"}[self.noise_shape[0]]
        self.log("val/g_loss", torch.tensor(float(found)), batch_size=1)

    monkeypatch.setattr(MNISTGANModel, "validation_step", validation_step)
    code, stderr = typed(
        *FEW,
        *OPTUNA,
        "model.latent_dim=choice(10,20,30,40)",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_trials=8",
    )

    assert code == 1
    assert all(f"optimized_metric=val/g_loss is {what}, which is not a result" in stderr for what in ("inf", "nan"))
    assert best(tmp_path) == {"value": 7.0, "model.latent_dim": 40}


@needs_optuna
def test_a_search_in_which_all_fail(typed: Typed, tmp_path: Path) -> None:
    code, stderr = typed(*FEW, *OPTUNA, "seed=choice(-1,-2)")

    assert code == 2
    assert "not -1" in stderr and "not -2" in stderr
    assert stderr.splitlines()[-1] == "error: no trial of this search succeeded: the lines above say why"


@needs_optuna
def test_a_search_for_nothing_is_refused(typed: Typed) -> None:
    code, stderr = typed(*FEW, *OPTUNA, "optimized_metric=null", "seed=choice(1,2)")

    assert code == 2
    assert stderr.count("error: optimized_metric is null, but the sweeper needs a number") == 4


def test_a_plain_sweep_goes_on_as_well(typed: Typed, tmp_path: Path) -> None:
    code, stderr = typed(*FEW, "-m", "model.optimizer_g.lr=1e10,0.0001")

    assert code == 1 and "training diverged" in stderr
    assert [(tmp_path / "sweep" / str(job) / "results.json").exists() for job in range(2)] == [False, True]


def test_the_sweeper_is_an_extra(typed: Typed) -> None:
    if find_spec("optuna") is None:
        code, stderr = typed(*FEW, "-m", "hydra/sweeper=optuna", "seed=choice(1,2)")
        assert code == 2 and "pip install -r requirements-extras.txt" in stderr
