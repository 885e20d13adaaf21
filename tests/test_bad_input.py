"""Every mistake ends with one sentence that names what was typed and what to type instead; nothing is lost."""

import copy
import gzip
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import QUICK, Typed, run_cli
from tests.forked import run_forked, start_forked

SHORT = [*QUICK, "logger=none", "trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
SHORT += ["trainer.limit_train_batches=2"]


def type_short(typed: Typed, *arguments: str) -> tuple[int, str]:
    """A short run; what is typed for the test replaces the same key of the short run."""
    keys = [argument.partition("=")[0] for argument in arguments]
    return typed(*[short for short in SHORT if short.partition("=")[0] not in keys], *arguments)


def assert_explained(result: tuple[int, str], *expected: str, code: int = 2) -> None:
    """The exit code, one line of explanation with the expected words in it, and no traceback."""
    got, stderr = result
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (got, len(errors)) == (code, 1) and "Traceback" not in stderr, stderr
    assert all(words in errors[0] for words in expected), errors[0]


# What is typed wrong, the key that must be named, and what to type instead.
MISTAKES: list[tuple[str | tuple[str, str], str, str]] = [
    # Keys and options
    ("trainr.gpus=0", "trainr.gpus", "did you mean trainer.gpus?"),
    ("datamodule.batchsize=3", "datamodule.batchsize", "did you mean datamodule.batch_size?"),
    ("batch_size=32", "batch_size", "did you mean datamodule.batch_size?"),
    ("trainer.foo=1", "trainer.foo", "choose one of _target_, accelerator"),
    ("+trainer.foo=1", "trainer.foo is not an option", "choose one of"),
    ("+model.foo=1", "model.foo is not an option", "ema_half_life"),
    ("model.lr=0.1", "model.lr", "model.optimizer_g.lr and model.optimizer_d.lr"),
    ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val", "use model.clip_grad_norm"),
    ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val", "use model.clip_grad_norm"),
    ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches", "datamodule.batch_size"),
    ("+trainer.resume_from_checkpoint=x", "trainer.resume_from_checkpoint", "use ckpt_path"),
    ("experiment=train_mnist_gna", "experiment=train_mnist_gna", "did you mean experiment=train_mnist_gan?"),
    ("experiment=nope.yaml", "experiment=nope.yaml", "choose one of finetune_sd_flowers_lora, train_cifar10_flow"),
    ("datamodule=minst", "datamodule=minst", "did you mean datamodule=mnist?"),
    ("logger=foo", "logger=foo", "choose one of csv"),
    ("logger=[csv,foo]", "logger=foo", "choose one of csv"),
    ("debug=1", "configuration group", "see configs/"),
    ("debug=nope", "debug=nope", "did you mean debug=none?"),
    ("trainer=", "trainer=", "choose one of ddp"),
    ("hydra/sweeper=nope", "hydra/sweeper=nope", "choose one of basic, optuna"),
    ("task=tran", "task=tran", "choose one of train, sample"),
    ("train", "'train'", "key=value"),
    ("trainer.gpus=[0", "trainer.gpus=[0", "key=[1,2]"),
    ("--epochs", "--epochs", "type epochs=VALUE"),
    ("--trainer.max_epochs=3", "--trainer.max_epochs", "type trainer.max_epochs=VALUE"),
    ("~datamodule", "datamodule", "see configs/datamodule/"),
    # The trainer
    ("trainer.gpus=abc", "trainer.gpus", "a list such as [0,1]"),
    ("trainer.gpus=true", "trainer.gpus", "a list such as [0,1]"),
    ("trainer.gpus=[0,0]", "trainer.gpus", "a list such as [0,1]"),
    ("trainer.gpus=-2", "trainer.gpus", "-1 (all of them)"),
    ("trainer.gpus=1.5", "trainer.gpus", "0 (the CPU)"),
    ("trainer.gpus=0,1", "trainer.gpus=0,1 is a sweep", "type trainer.gpus=[0,1]"),
    ("trainer.max_epochs=-3", "trainer.max_epochs", "-1 for no limit"),
    ("trainer.max_epochs=0", "trainer.max_epochs", "at least 1"),
    ("trainer.max_epochs=abc", "trainer.max_epochs", "a whole number"),
    ("trainer.max_steps=0", "trainer.max_steps", "-1 for no limit"),
    ("trainer.max_time=abc", "trainer.max_time", "DD:HH:MM:SS"),
    ("trainer.min_epochs=abc", "trainer.min_epochs", "a whole number"),
    ("trainer.precision=banana", "trainer.precision", "32-true"),
    ("trainer.accelerator=banana", "trainer.accelerator", "cpu"),
    ("trainer.strategy=banana", "trainer.strategy", "ddp"),
    ("trainer.num_nodes=0", "trainer.num_nodes", "from 1 to 1024"),
    ("trainer.profiler=banana", "trainer.profiler", "simple"),
    ("trainer.limit_train_batches=abc", "trainer.limit_train_batches", "a number"),
    ("trainer.limit_train_batches=0", "trainer.limit_train_batches", "above 0"),
    ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0", "set optimized_metric=null"),
    ("trainer.limit_train_batches=1e-3", "trainer.limit_train_batches=0.001", "limit_train_batches=1 for one batch"),
    ("trainer.limit_val_batches=0.5", "trainer.limit_val_batches=0.5 is less than the only batch", "_batches=1 for"),
    ("trainer.limit_test_batches=0.4", "=0.4 is less than one of the 2 batches of the test", "limit_test_batches=1"),
    ("trainer.overfit_batches=0.001", "trainer.overfit_batches=0.001", "trainer.overfit_batches=1 for one batch"),
    ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch", "at least 1"),
    ("trainer.log_every_n_steps=abc", "trainer.log_every_n_steps", "a whole number"),
    ("trainer.deterministic=abc", "trainer.deterministic", "true or false"),
    # Data
    ("datamodule.batch_size=0", "datamodule.batch_size", "at least 1"),
    ("datamodule.batch_size=-1", "datamodule.batch_size", "at least 1"),
    ("datamodule.batch_size=abc", "datamodule.batch_size", "a whole number"),
    ("datamodule.batch_size=null", "datamodule.batch_size", "a whole number, not null"),
    ("datamodule.batch_size=1", "datamodule.batch_size is 1", "use 64"),
    ("datamodule.batch_size=5000", "datamodule.batch_size is 5000", "1412 training images: use fewer"),
    ("datamodule.num_workers=-1", "datamodule.num_workers", "at least 0"),
    ("datamodule.pin_memory=abc", "datamodule.pin_memory", "true or false"),
    ("datamodule.img_size=0", "datamodule.img_size", "at least 1"),
    ("datamodule.train_val_test_split=[1,2,3]", "datamodule.train_val_test_split", "try [1412,128,257]"),
    ("datamodule.train_val_test_split=[1412,385]", "datamodule.train_val_test_split", "three positive whole numbers"),
    ("datamodule.train_val_test_split=10", "datamodule.train_val_test_split", "a list"),
    ("datamodule._target_=nope.Nope", "datamodule._target_=nope.Nope", "check its spelling"),
    ("datamodule._target_=torch.nn.Module", "datamodule.", "remove it"),
    # Model
    ("model.img_size=28", "model.img_size is 28, but datamodule.img_size is 32", "set datamodule.img_size alone"),
    ("model.generator.img_size=16", "model.generator draws images of [1, 16, 16]", "set datamodule.img_size alone"),
    ("model.n_classes=12", "model.n_classes is 12", "set model.n_classes=10"),
    ("model.generator.n_classes=5", "model.generator knows no class 9", "set model.n_classes alone"),
    ("model.schedule.hold=0.5", "no key model.schedule.hold", "model/schedule=constant|cosine|linear first"),
    ("model.penalties.r1.gamma=2.0", "no key model.penalties.r1.gamma", "set it as a whole, model.penalties.r1=VALUE"),
    ("model.latent_dim=0", "model.latent_dim", "at least 1"),
    ("model.latent_dim=abc", "latent_dim", "a whole number"),
    ("model.ema_half_life=0", "model.ema_half_life", "or null for no average"),
    ("model.ema_half_life=abc", "model.ema_half_life", "a number or null"),
    ("model.optimizer_g.betas=[0,0.99]", "model.optimizer_g", "write 0.0 instead of 0"),
    ("model.optimizer_g.betas=[0.5]", "model.optimizer_g.betas", "a list of 2"),
    ("model.optimizer_g.betas=[0.5,1.5]", "model.optimizer_g", "such as [0.5, 0.999]"),
    ("model.optimizer_g.lr=-1", "model.optimizer_g", "a positive number such as 2.0e-4"),
    ("model.optimizer_d.lr=abc", "model.optimizer_d.lr", "a number"),
    ("+model.optimizer_d.foo=1", "model.optimizer_d.foo", "remove it"),
    ("model.optimizer_g._target_=torch.optim.SGD", "model.optimizer_g.betas is not an option of SGD", "remove it"),
    ("model.optimizer_g=abc", "model.optimizer_g", "a part with a _target_"),
    ("model.loss._target_=src.models.losses.Nope", "model.loss._target_", "has LSGANLoss"),
    ("model.loss=abc", "model.loss", "a part with a _target_ or null"),
    ("model.generator=null", "model.generator", "a part with a _target_"),
    # Parts that are something else
    ("model.loss._target_=builtins.print", "model.loss._target_=builtins.print makes nothing", "an AdversarialLoss"),
    ("datamodule={_target_: builtins.dict}", "datamodule", "a LightningDataModule is needed"),
    ("+callbacks.mine={_target_: builtins.dict}", "callbacks.mine._target_", "a Callback is needed"),
    # Callbacks and the run
    ("trainer.sync_batchnorm=true", "trainer.sync_batchnorm=false", "GPUs alone"),
    ("callbacks.sample_grid.n_per_class=0", "callbacks.sample_grid.n_per_class", "at least 1"),
    ("callbacks.sample_grid.n_per_class=1000000000", "callbacks.sample_grid.n_per_class", "at most 1000"),
    ("callbacks.progress_bar.refresh_rate=-5", "callbacks.progress_bar.refresh_rate", "at least 0"),
    ("datamodule.num_workers=1000000000", "datamodule.num_workers", "from 0 to 1024"),
    ("callbacks.sample_grid.seed=abc", "callbacks.sample_grid.seed", "a whole number"),
    ("callbacks.progress_bar.refresh_rate=abc", "callbacks.progress_bar.refresh_rate", "a whole number"),
    ("callbacks.model_checkpoint.save_top_k=abc", "callbacks.model_checkpoint.save_top_k", "a whole number"),
    ("callbacks.model_checkpoint.every_n_batches=0", "callbacks.model_checkpoint.every_n_batches", "at least 1"),
    ("callbacks.model_checkpoint.save_top_k=-3", "callbacks.model_checkpoint.save_top_k", "or -1 for all"),
    ("callbacks.model_checkpoint.filename=last", "callbacks.model_checkpoint.filename", "use best"),
    ("callbacks.model_checkpoint.every_n_epochs=0", "callbacks.model_checkpoint.every_n_epochs", "at least 1"),
    ("+trainer.logger=true", "trainer.logger", "use logger=csv"),
    ("callbacks.model_checkpoint.monitor=val/recall", "callbacks.model_checkpoint.mode", "set it to max"),
    (
        "callbacks.model_checkpoint.mode=max",
        "callbacks.model_checkpoint.mode is max, which would keep the worst val/fd",
        "set it to min",
    ),
    (
        ("callbacks.model_checkpoint.save_top_k=3", "callbacks.model_checkpoint.monitor=null"),
        "callbacks.model_checkpoint.save_top_k",
        "set monitor to a metric such as val/fd",
    ),
    ("callbacks.model_checkpoint.monitor=test/fd", "callbacks.model_checkpoint.monitor", "use val/fd"),
    ("callbacks.model_checkpoint.mode=banana", "callbacks.model_checkpoint.mode", "min, max"),
    ("callbacks.model_checkpoint.monitor=val/nonsense", "callbacks.model_checkpoint.monitor", "val/g_loss"),
    ("callbacks.model_checkpoint.monitor=train/nonsense", "callbacks.model_checkpoint.monitor", "train/g_loss"),
    ("optimized_metric=val/nonsense", "optimized_metric=val/nonsense", "val/g_loss"),
    ("optimized_metric=nonsense", "optimized_metric=nonsense", "val/g_loss"),
    ("optimized_metric=test/nonsense", "optimized_metric=test/nonsense", "test/g_loss"),
    ("optimized_metric=5", "optimized_metric=5", "val/g_loss"),
    ("seed=abc", "seed", "a whole number from 0"),
    ("seed=-1", "seed", "a whole number from 0"),
    ("seed=true", "seed", "a whole number from 0"),
    ("tags=abc", "tags", "such as [baseline]"),
    ("print_config=abc", "print_config", "true or false"),
    ("hydra.run.dir=/proc/nope/x", "/proc/nope", "hydra.run.dir=DIR"),
    ("work_dir=/proc/nope", "/proc/nope", "hydra.run.dir=DIR"),
    ("ckpt_path=nope.ckpt", "ckpt_path=nope.ckpt", "ckpt_path=last"),
    ("ckpt_path=/", "ckpt_path=/ is a folder", "ckpts/last.ckpt"),
    ("ckpt_path=last", "ckpt_path=last", "train first"),
    ("ckpt_path=5", "ckpt_path=5", "ckpt_path=last"),
    # Loggers
    (("logger=wandb", "logger.wandb.mode=banana"), "logger.wandb.mode", "online, offline or disabled"),
    (("logger=wandb", "logger.wandb.project=a/b"), "logger.wandb.project", "must not contain /"),
    (("logger=wandb", "logger.wandb.tags=abc"), "logger.wandb.tags", "a list"),
    (("logger=wandb", "+logger.wandb.foo=1"), "logger.wandb.foo", "remove it"),
]


@pytest.mark.parametrize(("mistake", "key", "remedy"), MISTAKES, ids=[str(mistake) for mistake, *_ in MISTAKES])
def test_a_mistake_is_explained(typed: Typed, mistake: str | tuple[str, str], key: str, remedy: str) -> None:
    assert_explained(type_short(typed, *([mistake] if isinstance(mistake, str) else mistake)), key, remedy)


def test_gpus_that_are_not_there(typed: Typed) -> None:
    count = torch.cuda.device_count()
    remedy = "trainer.gpus=-1" if count else "trainer.gpus=0"
    assert_explained(type_short(typed, f"trainer.gpus={count + 8}"), "gpus", "this machine has", remedy)


@pytest.mark.parametrize("key", ["optimized_metric", "callbacks.model_checkpoint.monitor"])
def test_a_metric_nobody_logs_stops_the_run_before_it_trains(typed: Typed, tmp_path: Path, key: str) -> None:
    assert_explained(type_short(typed, f"{key}=val/nonsense"), f"{key}=val/nonsense")
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.png"))


@pytest.fixture
def core_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package beyond requirements.txt can be imported."""
    packages = ("onnx", "onnxscript", "onnxruntime", "tensorboard", "mlflow", "prometheus_client", "fastapi")
    for module in [*packages, *(name for name in sys.modules if name.startswith(tuple(f"{p}." for p in packages)))]:
        monkeypatch.setitem(sys.modules, module, None)
    # Lightning remembers what it has found.
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("pytorch_lightning.loggers.mlflow._MLFLOW_AVAILABLE", False)


@pytest.mark.usefixtures("core_install")
@pytest.mark.parametrize(
    ("task", "mistake", "says"),
    [
        ("train", ["logger=tensorboard", "trainer.max_epochs=abc"], "trainer.max_epochs must be"),
        ("train", ["logger=tensorboard", "callbacks.quality.n_val=3"], "n_val must be"),
        ("train", ["logger=[tensorboard,csv]", "+logger.csv.foo=1"], "logger.csv.foo is not an option"),
        ("train", ["logger=mlflow", "ckpt_path=nope.ckpt"], "ckpt_path=nope.ckpt does not exist"),
        ("export", ["formats=[onnx]", "ckpt_path=nope.ckpt"], "ckpt_path=nope.ckpt does not exist"),
        ("export", ["formats=[onnx]", "weights=best"], "weights must be ema or raw"),
        ("export", ["formats=[onnx]", "out=/proc/nope"], "out=/proc/nope cannot be made"),
        ("evaluate", ["ckpt_path=[given.onnx,nope.ckpt]"], "ckpt_path=nope.ckpt does not exist"),
        ("evaluate", ["ckpt_path=given.onnx", "out=/proc/nope"], "out=/proc/nope cannot be made"),
        ("evaluate", ["ckpt_path=given.onnx", "cas=5"], "cas must be true or false"),
        ("sample", ["ckpt_path=given.onnx", "seed=-1"], "seed must be"),
        ("sample", ["ckpt_path=given.onnx", "out=/proc/nope"], "out=/proc/nope cannot be made"),
        ("interpolate", ["ckpt_path=given.onnx", "out=/proc/nope"], "out=/proc/nope cannot be made"),
        ("serve", ["ckpt_path=nope.onnx"], "ckpt_path=nope.onnx does not exist"),
        ("serve", ["ckpt_path=given.onnx", "port=abc"], "port must be a number"),
        ("serve", ["ckpt_path=given.onnx", "weights=best"], "weights must be ema or raw"),
    ],
    ids=str,
)
def test_a_mistake_is_told_before_a_missing_package(
    typed: Typed, trained: Path, tmp_path: Path, task: str, mistake: list[str], says: str
) -> None:
    (tmp_path / "given.onnx").write_bytes(b"given")
    right = QUICK if task == "train" else [f"ckpt_path={trained}"]
    assert_explained(typed(f"task={task}", *right, *mistake), says)


@pytest.mark.usefixtures("core_install")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["task=export", "formats=[onnx,torch]"], "formats needs onnx, onnxscript, onnxruntime for all but torch"),
        (["task=serve", "port=0"], "task=serve needs prometheus_client: pip install -r requirements-serve.txt"),
        (["task=sample", "ckpt_path=given.onnx"], "given.onnx needs onnxruntime"),
        ([*QUICK, "ckpt_path=null", "logger=tensorboard"], "logger.tensorboard needs a package that is not installed"),
        ([*QUICK, "ckpt_path=null", "logger=mlflow"], "logger.mlflow needs a package that is not installed"),
    ],
)
def test_a_package_that_a_verb_lacks(
    typed: Typed, trained: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "given.onnx").write_bytes(b"given")
    assert_explained(typed(f"ckpt_path={trained}", *arguments), says, "pip install -r requirements-")


def test_every_job_of_a_sweep_says_what_is_wrong(typed: Typed) -> None:
    code, stderr = typed(*SHORT, "-m", "seed=-1,abc")
    assert code == 2
    assert "not -1" in stderr and "not 'abc'" in stderr and "Traceback" not in stderr


# The run failed: exit code 1, and the traceback is kept ---------------------------------------------------------------


def test_an_unexpected_failure_keeps_its_traceback(typed: Typed, tmp_path: Path) -> None:
    result = type_short(typed, "model.discriminator.img_size=16")
    assert_explained(result, "RuntimeError", code=1)
    (kept,) = tmp_path.rglob("traceback.txt")
    assert str(kept) in result[1]
    assert "Traceback" in kept.read_text(encoding="utf-8")


def test_divergence_says_what_to_lower(typed: Typed) -> None:
    result = type_short(typed, "model.optimizer_g.lr=1e10")
    assert_explained(result, "training diverged", "model.optimizer_g.lr", code=1)


def test_a_traceback_is_shown_where_it_is_asked_for(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" in typed("debug=true", "datamodule=digits", "seed=abc")[1]
    process = run_forked("seed=abc", cwd=Path.cwd(), HYDRA_FULL_ERROR="1")
    assert process.returncode == 2 and "Traceback" in process.stderr


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    process = run_forked(*SHORT, f"hydra.run.dir={folder}", cwd=folder, WANDB_MODE="offline")
    assert process.returncode == 0, process.stderr
    return folder / "ckpts" / "last.ckpt"


class Hostile:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def damaged(kind: str, good: Path, path: Path) -> None:
    """Writes what is no checkpoint of ours."""
    content = good.read_bytes()
    checkpoint = torch.load(good, weights_only=True)
    hostile = Hostile(path.with_name("proof"))
    written = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "beginning": content[:100],
        "text": b"not a checkpoint\n",
        "hostile pickle": pickle.dumps(hostile),
    }
    saved = {
        "other dict": {"epoch": 3, "weights": torch.zeros(2)},
        "tensor": torch.zeros(2),
        "other types": {"state_dict": 5, "config": "x"},
        "no weights": checkpoint | {"state_dict": {}, "config": {}},
        "hostile": checkpoint | {"extra": hostile},
    }
    if kind in written:
        path.write_bytes(written[kind])
    elif kind in saved:
        torch.save(saved[kind], path)
    else:
        path.mkdir()


@pytest.mark.parametrize("task", ["train", "sample", "export"])
@pytest.mark.parametrize(
    ("kind", "says", "remedy"),
    [
        ("empty", "is empty", "choose another"),
        ("truncated", "damaged", "choose another"),
        ("beginning", "damaged", "choose another"),
        ("text", "checkpoint", "choose another"),
        ("other dict", "not written by this project", "choose a ckpts/last.ckpt"),
        ("tensor", "not written by this project", "choose a ckpts/last.ckpt"),
        ("other types", "not written by this project", "choose a ckpts/last.ckpt"),
        ("no weights", "", "another checkpoint"),
        ("hostile", "no code in it was run", "choose another"),
        ("hostile pickle", "no code in it was run", "choose another"),
        ("folder", "is a folder", "name a file in it"),
    ],
)
def test_a_file_that_is_no_checkpoint(
    typed: Typed, trained: Path, tmp_path: Path, task: str, kind: str, says: str, remedy: str
) -> None:
    path = tmp_path / "bad.ckpt"
    damaged(kind, trained, path)
    before = path.read_bytes() if path.is_file() else None

    type_in = [*SHORT, "trainer.max_epochs=2"] if task == "train" else [f"task={task}"]
    assert_explained(typed(*type_in, f"ckpt_path={path}"), f"ckpt_path={path}", says, remedy)

    assert not (tmp_path / "proof").exists()
    assert before is None or path.read_bytes() == before


def test_the_hostile_file_would_work(tmp_path: Path) -> None:
    """Or else the tests above prove nothing."""
    torch.save(Hostile(tmp_path / "proof"), tmp_path / "bad.ckpt")
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "proof").exists()


HOSTILE_TARGETS = [
    *("os.system", "subprocess.run", "builtins.exec", "torch.load", "torch.hub.load", "torch.nn.functional.relu"),
    *("torch.nn.modules.os.system", "torch.serialization.os.system", "src.models.mnist_gan_model.torch.load"),
    *("src.models..os.system", "src.run.checkpoints.find_checkpoint", "", "torch.nn."),
]


@pytest.mark.parametrize("target", HOSTILE_TARGETS)
@pytest.mark.parametrize("nested", [False, True], ids=["as the loss", "nested"])
def test_a_checkpoint_whose_configuration_is_hostile(
    typed: Typed, trained: Path, tmp_path: Path, target: str, nested: bool
) -> None:
    checkpoint = copy.deepcopy(torch.load(trained, weights_only=True))
    bomb = {"_target_": target, "_args_": [f"touch {tmp_path / 'proof'}"]}
    loss = {"_target_": "torch.nn.Identity", "x": [{"deep": [bomb]}]} if nested else bomb
    checkpoint["config"]["model"]["loss"] = loss
    torch.save(checkpoint, tmp_path / "bad.ckpt")

    result = typed("task=sample", "ckpt_path=bad.ckpt", "labels=[1]")

    assert_explained(result, "bad.ckpt", repr(target), "nothing was built", "choose another checkpoint")
    assert not (tmp_path / "proof").exists()


def test_a_checkpoint_whose_configuration_looks_things_up(
    typed: Typed, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["config"]["model"]["latent_dim"] = "${oc.env:SECRET}"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    result = typed("task=sample", "ckpt_path=bad.ckpt")
    assert_explained(result, "oc.env:SECRET", "nothing was built")
    assert "hunter2" not in result[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("datamodule.img_size=16", "generator.model.11.weight is [1024, 1024] in the file, [256, 1024]"),
        ("model.latent_dim=50", "generator.model.0.weight is [128, 110] in the file, [128, 60]"),
        ("model.ema_half_life=500", "ema."),
    ],
)
def test_a_checkpoint_of_another_model(typed: Typed, trained: Path, override: str, says: str) -> None:
    result = type_short(typed, f"ckpt_path={trained}", "trainer.max_epochs=2", override)
    assert_explained(result, f"ckpt_path={trained} is of another model", says, "choose another checkpoint")


@pytest.mark.parametrize("missing", ["loops", "optimizer_states", "pytorch-lightning_version"])
def test_weights_alone_cannot_be_resumed(typed: Typed, trained: Path, tmp_path: Path, missing: str) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    del checkpoint[missing]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    result = type_short(typed, "ckpt_path=weights.ckpt", "trainer.max_epochs=2")
    assert_explained(result, "weights.ckpt holds weights only", "ckpts/last.ckpt")


def test_a_checkpoint_with_nothing_left_to_train(typed: Typed, trained: Path) -> None:
    before = trained.read_bytes()
    assert_explained(type_short(typed, f"ckpt_path={trained}"), f"ckpt_path={trained}", "trainer.max_epochs above 1")
    assert trained.read_bytes() == before


@pytest.mark.parametrize(
    ("mistake", "key", "remedy"),
    [
        ("labels=[11]", "labels", "use a number from 0 to 9"),
        ("labels=[-1]", "labels", "from 0 to 9"),
        ("labels=seven", "labels", "use a number from 0 to 9"),
        ("labels=[]", "labels", "type labels=[0]"),
        ("labels=[true]", "labels", "use a number from 0 to 9"),
        ("labels=[1.5]", "labels", "use a number from 0 to 9"),
        ("n_per_label=0", "n_per_label", "at least 1"),
        ("n_per_label=true", "n_per_label", "at least 1"),
        ("batch_size=0", "batch_size", "at least 1"),
        ("seed=-1", "seed", "at least 0"),
        ("seed=99999999999999999999", "seed", "a whole number"),
        ("out=/proc/nope", "out=/proc/nope", "out=DIR"),
        ("ckpt_path=null", "ckpt_path", "last"),
        ("trainer.gpus=0", "trainer.gpus", "choose one of batch_size"),
    ],
)
def test_a_mistake_about_samples(typed: Typed, trained: Path, mistake: str, key: str, remedy: str) -> None:
    assert_explained(typed("task=sample", f"ckpt_path={trained}", mistake), key, remedy)


# Data -----------------------------------------------------------------------------------------------------------------

MNIST = [argument for argument in SHORT if argument != "datamodule=digits"]
TRAIN_IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with files of the right names; the first read is `train-images`."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in (TRAIN_IMAGES, "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"\0" * 16)
    monkeypatch.delenv("DATA_DIR", raising=False)
    return raw


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("", b""),
        ("", b"\0" * 1000),
        ("", b"\0" * (16 + 60_000 * 28 * 28)),
        (".gz", b""),
        (".gz", b"<html>not found</html>"),
        (".gz", gzip.compress(b"\0" * 100_000)[:50]),
        (".gz", gzip.compress(b"\0" * 1000)),
    ],
    ids=["empty", "truncated", "garbled", "empty gz", "a web page", "truncated gz", "other gz"],
)
def test_damaged_data_is_named_and_left_alone(typed: Typed, mnist_files: Path, suffix: str, content: bytes) -> None:
    (mnist_files / TRAIN_IMAGES).unlink()
    path = mnist_files / f"{TRAIN_IMAGES}{suffix}"
    path.write_bytes(content)

    assert_explained(typed(*MNIST), "datamodule", str(path), "delete it")

    assert path.read_bytes() == content
    assert len(list(mnist_files.iterdir())) == 4


def test_data_that_may_not_be_read(typed: Typed, mnist_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == TRAIN_IMAGES:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert_explained(typed(*MNIST), str(mnist_files / TRAIN_IMAGES), "Permission denied", "data_dir=DIR")


@pytest.mark.parametrize("where", ["data_dir=/proc/nope", "data_dir=data.txt"], ids=["read-only", "a file"])
def test_a_data_folder_that_cannot_be_used(typed: Typed, tmp_path: Path, where: str) -> None:
    (tmp_path / "data.txt").write_text("mine", encoding="utf-8")
    assert_explained(typed(*MNIST, where), "data", where.partition("=")[2], "folder")
    assert (tmp_path / "data.txt").read_text(encoding="utf-8") == "mine"


def test_no_data_and_no_stand_in_wanted(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("src.datamodules.mnist_datamodule.MNISTDataModule._fetch", staticmethod(no_network))
    result = typed(*MNIST, "data_dir=data", "datamodule.offline_fallback=false")
    assert_explained(result, "data/MNIST/raw", f"{TRAIN_IMAGES}.gz", "datamodule.offline_fallback=true")


@pytest.mark.parametrize("split", ["[1,2,3]", "[55000,5000,20000]", "[50000,5000,10000]"])
def test_a_split_that_mnist_does_not_have(typed: Typed, split: str) -> None:
    result = typed(*MNIST, f"datamodule.train_val_test_split={split}")
    assert_explained(result, "datamodule.train_val_test_split", "try [55000,5000,10000]")


# A real process -------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint(trained: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses to write in the same way."""
    before = trained.read_bytes()
    limit = len(before) // 2
    resumed = [*SHORT, f"ckpt_path={trained}", "trainer.max_epochs=2", f"hydra.run.dir={trained.parents[1]}"]
    files = tmp_path / "stdout", tmp_path / "stderr"
    process = start_forked(*resumed, cwd=tmp_path, files=files)
    assert process.pid is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))  # before it has read its configuration
    process.join(300)
    assert process.exitcode is not None
    result = process.exitcode, files[1].read_text(encoding="utf-8")
    assert_explained(result, "no space left", ".ckpt", "hydra.run.dir=DIR", code=1)
    assert trained.read_bytes() == before
    assert {path.name for path in trained.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(trained, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (run_cli, ["trainer.gpus=abc"], ["trainer.gpus", "[0,1]"]),  # the most imports, which may say something, too
        (run_forked, ["experiment=nope"], ["experiment=nope", "train_mnist_gan"]),
        (run_forked, ["task=sample", "ckpt_path=nope"], ["ckpt_path=nope", "ckpt_path=last"]),
    ],
    ids=["part", "compose", "sample"],
)
def test_as_a_user_sees_it(
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
    arguments: Sequence[str],
    expected: Sequence[str],
) -> None:
    """The sentence is all there is on stderr."""
    process = command(*arguments, cwd=tmp_path)
    assert_explained((process.returncode, process.stderr), *expected)
    assert re.fullmatch(r"error: .*\n", process.stderr)
