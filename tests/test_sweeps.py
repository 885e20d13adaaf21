"""A job of a sweep that fails is one job: the others go on, and the exit code tells."""

import json
import os
import shlex
import signal
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.models.mnist_gan_model import MNISTGANModel
from src.report.command import find_runs
from src.report.run_folder import Run
from src.report.verdict import judge
from src.run.jobs import RECORD
from tests.conftest import QUICK, Typed, compose_config, wandb_records, wandb_run
from tests.forked import run_forked, start_forked

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
    assert stderr.splitlines()[-1] == "error: no trial of this search succeeded: the table says how each ended"


@needs_optuna
def test_a_search_for_nothing_is_refused(typed: Typed) -> None:
    code, stderr = typed(*FEW, *OPTUNA, "optimized_metric=null", "seed=choice(1,2)")

    assert code == 2
    assert stderr.count("error: optimized_metric is null, but a search needs a number") == 1


@pytest.mark.parametrize("batches", [[], ["hydra.sweeper.max_batch_size=1"]])
def test_a_plain_sweep_goes_on_as_well(typed: Typed, tmp_path: Path, batches: list[str]) -> None:
    code, stderr = typed(*FEW, "-m", "model.optimizer_g.lr=1e10,0.0001", *batches)

    assert code == 1 and "training diverged" in stderr
    assert stderr.splitlines()[-1] == "error: 1 of 2 jobs did not finish: job 0 failed; see above"
    assert [(tmp_path / "sweep" / str(job) / "results.json").exists() for job in range(2)] == [False, True]


def test_seeds_end_with_their_spread_and_the_verdict(tmp_path: Path) -> None:
    few = [*QUICK, *FEW[6:-1], "logger=none"]
    done = run_forked(*few, "-m", "seed=1,-1,2", cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    found = [json.loads((tmp_path / "sweep" / job / "results.json").read_text(encoding="utf-8")) for job in "02"]
    fd, floor = ([each["metrics"][name] for each in found] for name in ("val/fd", "val/fd_floor"))
    lines = done.stdout[done.stdout.index("2 of 3 jobs finished: seed 1, 2") :].splitlines()
    (row,) = [line.strip("│").split() for line in lines if line.startswith("│ val/fd ")]
    shown = [statistics.fmean(fd), statistics.stdev(fd), min(fd), max(fd), statistics.fmean(floor)]
    assert row[::2] == ["val/fd", *(f"{value:,.4g}" for value in shown)]
    verdict = [line for line in lines if line.startswith("verdict ")]
    assert verdict[0].endswith(judge(Run(tmp_path / "sweep" / "0")).headline)
    assert verdict[-1].endswith("one configuration with 2 seeds: how they differ is the spread itself.")
    # What is printed can be typed.
    (report,) = [shlex.split(line)[3:] for line in lines if line.startswith("report ")]
    assert find_runs(report[1].partition("=")[2], tmp_path) == [tmp_path / "sweep" / job for job in "02"]
    assert "job 1       seed=-1 failed: seed must be a whole number from 0 to 2**32 - 1, not -1" in lines
    (again,) = [shlex.split(line)[4:] for line in lines if line.startswith("go on ")]
    assert again[-2:] == ["seed=-1", f"hydra.run.dir={tmp_path}/sweep/1"]


def test_a_folder_that_was_used_before_says_nothing_of_this_sweep(typed: Typed, tmp_path: Path) -> None:
    for number in ("0", "7"):
        (tmp_path / "sweep" / number).mkdir(parents=True)
        record = {"number": int(number), "overrides": [], "code": 0, "error": ""}
        (tmp_path / "sweep" / number / RECORD).write_text(json.dumps(record), encoding="utf-8")
    code, stderr = typed(*FEW, "-m", "seed=-1,-2")

    assert code == 2 and stderr.splitlines()[-1].startswith("error: 2 of 2 jobs did not finish: job 0 failed, job 1")
    assert not (tmp_path / "sweep" / "7" / RECORD).exists()


def test_optuna_is_an_extra(typed: Typed) -> None:
    if find_spec("optuna") is None:
        code, stderr = typed(*FEW, "-m", "hydra/sweeper=optuna", "seed=choice(1,2)")
        assert code == 2 and "pip install -r requirements-extras.txt" in stderr


def read_study(folder: Path, name: str) -> list[Any]:
    """The trials of a study."""
    import optuna

    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/logs/studies/{name}.db").get_trials()


@needs_optuna
def test_a_study_goes_on_under_its_name(typed: Typed, tmp_path: Path) -> None:
    """Which may look like a number."""
    search = [*FEW, *OPTUNA, "model/objective=choice(lsgan,hinge)", "model.optimizer_g.lr=interval(1e-5,1e-3)"]
    assert typed(*search, "study=20261127", "hydra.sweeper.n_trials=1")[0] == 0
    code, stderr = typed(*search, "study=20261127", "hydra.sweeper.n_trials=2", "trainer.limit_val_batches=2")

    assert code == 0
    first, second = read_study(tmp_path, "20261127")
    assert first.params["model/objective"] in ("lsgan", "hinge")
    assert first.params["model.optimizer_g.lr"] != second.params["model.optimizer_g.lr"]
    about = json.loads((tmp_path / "sweep" / "1" / "run.json").read_text(encoding="utf-8"))
    assert about["config"]["group"] == "20261127" and about["name"].endswith("-seed12345-trial1")
    assert not any("study" in each for each in about["overrides"])
    assert "begun with other settings (trainer.limit_val_batches=1 trainer.limit_val_batches=2)" in stderr
    for wrong, said in [
        ("optimized_metric=val/d_loss", "begun to minimize val/g_loss, not to minimize val/d_loss"),
        ("model/objective=choice(lsgan,wasserstein)", "begun with other choices for model/objective"),
        ("study=a/b", "error: study must be a name of letters, digits, _, . and - or null, not 'a/b'"),
        ("hydra.sweeper.n_trials=0", "error: hydra.sweeper.n_trials must be a whole number of at least 1, not 0"),
    ]:
        code, stderr = typed(*search, "study=20261127", "hydra.sweeper.n_trials=3", wrong)
        assert code == 2 and said in stderr


@needs_optuna
def test_hopeless_trials_are_pruned(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned run ends well, in its folder and in W&B, and is not the best."""
    models: list[MNISTGANModel] = []

    def validation_step(self: MNISTGANModel, batch: object, batch_idx: int) -> None:
        if self not in models:
            models.append(self)
        self.log("val/g_loss", torch.tensor(float(models.index(self))), batch_size=1)

    monkeypatch.setattr(MNISTGANModel, "validation_step", validation_step)
    search = ["seed=range(1,9)", "hydra.sweeper.n_trials=2"]
    search += ["hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=2"]
    code, _ = typed(*FEW, *OPTUNA, *search, "trainer.max_epochs=3", "logger=wandb", "study=ours")
    trials = read_study(tmp_path, "ours")

    assert code == 0
    assert [(trial.state.name, trial.value) for trial in trials] == [("COMPLETE", 0.0), ("PRUNED", 1.0)]
    assert [trial.intermediate_values for trial in trials] == [{1: 0.0, 2: 0.0, 3: 0.0}, {1: 1.0, 2: 1.0}]
    for number, status in enumerate(["finished", "pruned"]):
        run = tmp_path / "sweep" / str(number)
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        theirs = wandb_run(run)
        assert (about["status"], theirs["state"], theirs["group"]) == (status, "finished", "ours")
        updates = [record["run"]["tags"] for record in wandb_records(run) if record["type"] == "run"]
        assert ("pruned" in updates[-1]) == (status == "pruned")


@needs_optuna
def test_two_workers_share_a_study(tmp_path: Path) -> None:
    search = [*FEW, *OPTUNA, "seed=range(1,9)", "study=ours", "hydra.sweep.dir=${oc.env:WORKER}"]
    outputs = [tmp_path / "a.out", tmp_path / "b.out"]
    both = [
        start_forked(*search, cwd=tmp_path, files=(output, output), environment={"WORKER": output.stem})
        for output in outputs
    ]
    for worker in both:
        worker.join(300)

    assert [worker.exitcode for worker in both] == [0, 0]
    trials = read_study(tmp_path, "ours")
    assert [trial.state.name for trial in trials if trial.state.name != "WAITING"] == 4 * ["COMPLETE"]
    assert all((Path(trial.user_attrs["folder"]) / "results.json").exists() for trial in trials[:4])
    assert all("study ours" in output.read_text(encoding="utf-8") for output in outputs)


@needs_optuna
def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    """First killed, then stopped with Ctrl-C, each while a trial runs."""
    search = [*FEW, *OPTUNA, "model.optimizer_g.lr=interval(1e-5,1e-3)", "study=ours"]
    search += ["hydra.sweeper.heartbeat=1", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep/${now:%S%f}"]
    long = ["trainer.max_epochs=-1", "callbacks.model_checkpoint.every_n_batches=1"]
    for signum, code in [(signal.SIGKILL, -9), (signal.SIGINT, 130)]:
        output = tmp_path / f"{code}.out"
        before = set(tmp_path.glob("sweep/*/*/ckpts/last.ckpt"))
        worker = start_forked(*search, *long, cwd=tmp_path, files=(output, output))
        while not set(tmp_path.glob("sweep/*/*/ckpts/last.ckpt")) - before:
            assert worker.exitcode is None, output.read_text(encoding="utf-8")
            time.sleep(0.05)
        assert worker.pid is not None
        os.kill(worker.pid, signum)
        worker.join(60)
        assert worker.exitcode == code, output.read_text(encoding="utf-8")
    done = run_forked(*search, cwd=tmp_path)

    assert "study=ours" in output.read_text(encoding="utf-8").splitlines()[-1]
    assert done.returncode == 0, done.stderr
    trials = read_study(tmp_path, "ours")
    states = [trial.state.name for trial in trials]
    assert (states.count("COMPLETE"), states.count("FAIL")) == (2, 2)
    ended = {trial.user_attrs.get("ended") for trial in trials if trial.state.name == "FAIL"}
    assert ended == {None, "interrupted"}
    tried = {trial.params["model.optimizer_g.lr"] for trial in trials if trial.params}
    assert len(tried) == 2  # what was lost was tried again


@needs_optuna
def test_a_batch_that_is_stopped_keeps_its_finished_trials(tmp_path: Path) -> None:
    output = tmp_path / "output"
    search = [*FEW, *OPTUNA, "seed=range(1,9)", "study=ours", "hydra.sweeper.n_jobs=2", "trainer.max_epochs=50"]
    worker = start_forked(*search, cwd=tmp_path, files=(output, output))
    while not (tmp_path / "sweep" / "1" / "ckpts" / "last.ckpt").exists():
        assert worker.exitcode is None, output.read_text(encoding="utf-8")
        time.sleep(0.05)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    worker.join(60)

    assert worker.exitcode == 130, output.read_text(encoding="utf-8")
    first, second = read_study(tmp_path, "ours")
    results = json.loads((tmp_path / "sweep" / "0" / "results.json").read_text(encoding="utf-8"))
    assert (first.state.name, first.value) == ("COMPLETE", results["metrics"]["val/g_loss"])
    assert (second.state.name, second.user_attrs["ended"]) == ("FAIL", "interrupted")


@needs_optuna
@pytest.mark.parametrize(
    "launcher",
    ["joblib", pytest.param("submitit_local", marks=pytest.mark.extras("hydra-submitit-launcher"))],
)
def test_a_search_outlives_the_process_of_a_trial(tmp_path: Path, launcher: str) -> None:
    """The trial is tried again, and the other one of its batch counts."""
    output = tmp_path / "output"
    search = [*FEW, *OPTUNA, f"hydra/launcher={launcher}", "seed=range(1,9)", "study=ours", "hydra.sweeper.n_jobs=2"]
    search += ["hydra.sweeper.n_trials=2", "trainer.max_epochs=30"]
    worker = start_forked(*search, cwd=tmp_path, files=(output, output))
    while not (begun := list(tmp_path.glob("sweep/*/ckpts/last.ckpt"))):
        assert worker.exitcode is None, output.read_text(encoding="utf-8")
        time.sleep(0.05)
    killed = begun[0].parents[1]
    os.kill(json.loads((killed / RECORD).read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    worker.join(300)

    assert worker.exitcode == 0, output.read_text(encoding="utf-8")
    trials = read_study(tmp_path, "ours")
    assert [trial.state.name for trial in trials].count("COMPLETE") == len(trials) - 1 == 2
    (lost,) = [trial for trial in trials if trial.state.name == "FAIL"]
    assert lost.number == int(killed.name) and trials[2].params == lost.params


@needs_optuna
def test_the_best_trial_again_is_the_same_configuration(tmp_path: Path) -> None:
    """With all that the search's own file sets."""
    few = [*QUICK[:3], *FEW[6:-1], "logger=none", "callbacks.quality.n_val=100"]
    search = ["hparams_search=mnist_gan_optuna", "hydra.sweeper.n_trials=1"]
    done = run_forked(*few, *search, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (again,) = [shlex.split(line)[4:] for line in done.stdout.splitlines() if line.startswith("best again ")]
    trial = OmegaConf.to_container(OmegaConf.load(tmp_path / "sweep" / "0" / ".hydra" / "config.yaml"))
    composed: Any = OmegaConf.to_container(compose_config("train", *again))
    assert composed.pop("hydra")["mode"].name == "RUN"
    assert composed == trial
    assert composed["optimized_metric"] == "val/fd" and not composed["callbacks"]["quality"]["cas"]


def test_study_needs_a_search(typed: Typed) -> None:
    code, stderr = typed(*FEW, "study=ours")

    assert code == 2 and "study=ours needs a search: add hparams_search=mnist_gan_optuna" in stderr
