"""A model is rebuilt from its file alone, and a stranger's file runs no code."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.errors import UserError
from src.pictures.pixels import to_grid
from src.run.checkpoints import build_model, read_checkpoint
from src.run.commands import find_checkpoint
from src.run.trust import refuse_untrusted
from src.train import train
from tests.conftest import QUICK, compose_config

FILE = Path("some.ckpt")
FEW = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]


@pytest.fixture(scope="module", params=["model.ema_half_life=null", "model.ema_half_life=20"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, whose architecture is not the default one."""
    folder = tmp_path_factory.mktemp("run")
    changed = [request.param, "datamodule.img_size=16", "model.latent_dim=7", "trainer.max_epochs=1", "logger=none"]
    train(compose_config("train", *QUICK, *FEW, *changed, f"work_dir={folder}", run_dir=folder))
    return folder


def test_a_model_from_the_file_draws_what_the_trained_one_drew(run_dir: Path) -> None:
    path = run_dir / "ckpts" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    model: Any = build_model(checkpoint, path)
    assert (model.img_size, *model.noise_shape) == (16, 7)
    assert not any(module.training for module in model.modules())

    rng = torch.Generator().manual_seed(checkpoint["config"]["seed"])
    images = model.generate(torch.arange(10).repeat_interleave(10), rng)
    drawn = np.asarray(Image.open(run_dir / "samples" / "epoch_0000.png"))
    assert np.array_equal(to_grid(images, 10), drawn)
    assert drawn.std() > 0


def test_a_file_of_another_architecture_is_refused(run_dir: Path) -> None:
    path = run_dir / "ckpts" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["config"]["model"]["generator"]["latent_dim"] = 8
    with pytest.raises(UserError, match=r"generator\.model\.0\.weight is \[128, 17\] in the file, \[128, 18\] in this"):
        build_model(checkpoint, path)


def test_last_is_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"ckpt_path=last finds no .* in {tmp_path}"):
        find_checkpoint("last", tmp_path)
    for begun, name, trained in [(1, "a/1", True), (5, "b/2", True), (3, "c/3", False)]:
        make_run(tmp_path, name, begun, trained)
    drawn = tmp_path / "logs" / "runs" / "d" / "4"  # by task=sample: no training run
    drawn.mkdir(parents=True)
    assert find_checkpoint("last", tmp_path, newest_run=True) == tmp_path / "logs/runs/b/2/ckpts/last.ckpt"


def make_run(folder: Path, name: str, begun: int, trained: bool) -> Path:
    run = folder / "logs" / "runs" / name
    (run / ".hydra").mkdir(parents=True)
    (run / "run.json").touch()
    (run / ".hydra" / "overrides.yaml").touch()
    os.utime(run / ".hydra" / "overrides.yaml", (begun, begun))
    if trained:
        (run / "ckpts").mkdir()
        (run / "ckpts" / "last.ckpt").touch()
    return run


def test_last_is_no_other_run_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest run was killed before its first checkpoint."""
    before, newest = make_run(tmp_path, "a/1 b", 1, trained=True), make_run(tmp_path, "b/2", 2, trained=False)
    typed = f"'ckpt_path={before}/ckpts/last.ckpt'"
    with pytest.raises(UserError, match=f"{newest} has no checkpoint yet: .* without ckpt_path, or type {typed} to"):
        find_checkpoint("last", tmp_path, newest_run=True)
    assert find_checkpoint("last", tmp_path) == before / "ckpts" / "last.ckpt"
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == f"the newest run, {newest}, has no checkpoint yet: ckpt_path=last is {before}/ckpts/last.ckpt"


TRUSTED = ["src.models.mnist_gan_model.MNISTGANModel", "src.models.losses.LSGANLoss", "torch.nn.Linear"]
GAN = "src.models.mnist_gan_model"
UNTRUSTED = [
    *("builtins.eval", "builtins.exec", "os.system", "posix.system", "subprocess.Popen", "torch.load"),
    *("torch.hub.load", "hydra.utils.instantiate", "functools.partial", "src.train.train"),
    "src.run.checkpoints.read_checkpoint",
    # By way of something trusted.
    *("torch.nn.modules.os.system", "torch.nn.modules.module.torch.load", "torch.nn.functional.torch.hub.load"),
    *("torch.nn.functional.importlib.import_module", "torch.nn.Module.load_state_dict", "torch.nn.init.zeros_"),
    *("torch.nn.modules.module.functools.partial", "torch.optim.optimizer.warnings.warn"),
    *(f"{GAN}.{name}" for name in ("torch.load", "partial", "evaluating", "MNISTGANModel.load_from_checkpoint")),
    *("src.models.modules.ema.copy.deepcopy", "src.models.losses.LSGANLoss.__init__.__globals__"),
    # Not the name of a class.
    *(GAN, "src.models.", "torch.nn..Linear", "torch.nn", "", None, 7, ["torch.nn.Linear"]),
]


@pytest.mark.parametrize("target", TRUSTED)
def test_our_parts_and_torchs_layers_are_trusted(target: str) -> None:
    refuse_untrusted({"_target_": target, "inner": [{"_target_": "torch.optim.Adam", "lr": 0.1}]}, FILE)


def test_what_we_write_ourselves_is_trusted(run_dir: Path) -> None:
    refuse_untrusted(read_checkpoint(run_dir / "ckpts" / "last.ckpt")["config"]["model"], FILE)


@pytest.mark.parametrize("target", UNTRUSTED, ids=repr)
def test_everything_else_is_not(target: Any) -> None:
    bad = {"_target_": target}
    nested = {"_target_": TRUSTED[0], "loss": {"_target_": "torch.nn.Sequential", "_args_": [{"deeper": bad}]}}
    for config in (bad, nested):
        with pytest.raises(UserError, match=r"some\.ckpt asks for"):
            refuse_untrusted(config, FILE)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x${..y}", "${oc.decode:${a}}"])
def test_nothing_is_looked_up_outside_the_file(text: str) -> None:
    for config in ({"n_classes": text}, {"generator": {"sizes": [1, [text]]}}, {"_target_": text}):
        with pytest.raises(UserError, match=r"some\.ckpt"):
            refuse_untrusted(config, FILE)


def test_a_hostile_configuration_does_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    hostile = {"_target_": "torch.nn.modules.module.os.mkdir", "_args_": [str(trap)]}
    for model in (hostile, {"_target_": TRUSTED[0], "generator": hostile, "discriminator": hostile}):
        with pytest.raises(UserError):
            build_model({"config": {"model": model}, "state_dict": {}}, FILE)
    assert not trap.exists()
