"""Parts from somebody's own package: they train where one types, and a checkpoint builds them once they are trusted."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.run.trust import MODELS, refuse_untrusted, trusted_packages
from tests.conftest import QUICK, Typed, compose_config, run_forked

PACKAGE = """
import os
from os import system
from subprocess import Popen

from torch import nn

from src.datamodules.digits_datamodule import DigitsDataModule
from src.models.losses import HingeLoss
from src.models.modules.generators import Generator


class Net(Generator):
    pass


class Loss(HingeLoss):
    class Inner:
        pass


class Data(DigitsDataModule):
    pass


def make_loss():
    return Loss()


def nothing():
    open("proof", "w").close()
"""
PARTS = [
    "model.generator._target_=my_parts.nets.Net",
    "model.loss._target_=my_parts.nets.Loss",
    "datamodule._target_=my_parts.nets.Data",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_parts").mkdir()
    (folder / "my_parts" / "__init__.py").touch()
    (folder / "my_parts" / "nets.py").write_text(PACKAGE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[Path, str, str]:
    """A run of these parts, started where they lie: its checkpoint, and what it printed."""
    few = [*QUICK[:3], "logger=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.quality=null"]
    few += ["callbacks.model_checkpoint.monitor=null", "hydra.run.dir=run", "optimized_metric=null"]
    process = run_forked(*few, *PARTS, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "run" / "ckpts" / "last.ckpt", process.stdout, process.stderr


@pytest.fixture
def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is installed, as it were."""
    monkeypatch.syspath_prepend(folder)
    yield
    for name in [name for name in sys.modules if name.startswith("my_parts")]:
        del sys.modules[name]


def test_training_says_what_the_verbs_will_need(trained: tuple[Path, str, str]) -> None:
    _, stdout, stderr = trained
    (warning,) = [line for line in (stdout + stderr).splitlines() if "from elsewhere" in line]
    assert "my_parts.nets.Net, my_parts.nets.Loss, my_parts.nets.Data: from elsewhere" in warning
    assert "trusted_packages=[my_parts], or with TRUSTED_PACKAGES=my_parts in .env" in warning
    (sample,) = [line for line in stdout.splitlines() if line.startswith("sample ") and "task=sample" in line]
    assert sample.endswith("'trusted_packages=[my_parts]'")


def test_a_stranger_is_refused_until_it_is_trusted(
    trained: tuple[Path, str, str], typed: Typed, on_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ["task=sample", f"ckpt_path={trained[0]}", "n_per_label=1", f"out={tmp_path}"]
    for command in (sample, [*sample, "trusted_packages=[others]"]):
        code, stderr = typed(*command)
        assert code == 2
        assert "asks for 'my_parts.nets.Net', which is not a class of" in stderr
        assert "type trusted_packages=[my_parts] if you trust that package" in stderr

    assert typed(*sample, "trusted_packages=[others,my_parts]") == (0, "")
    assert (tmp_path / "samples.npz").exists()
    monkeypatch.setenv("TRUSTED_PACKAGES", "my_parts.nets, others")
    assert typed("task=interpolate", f"ckpt_path={trained[0]}", "n_noises=2", "steps=2", f"out={tmp_path}") == (0, "")


def test_its_data_are_found_again(trained: tuple[Path, str, str], typed: Typed, on_path: None, tmp_path: Path) -> None:
    command = ["task=evaluate", f"ckpt_path={trained[0]}", "n=10", f"out={tmp_path}"]
    assert typed(*command, "trusted_packages=my_parts")[0] == 0
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    "name",
    ["system", "os.system", "Popen", "make_loss", "nothing", "nn", "Loss.Inner", "Loss.generator", "Missing", ""],
)
def test_a_trusted_package_opens_no_other_door(on_path: None, name: str) -> None:
    target = f"my_parts.nets.{name}"
    with pytest.raises(UserError, match=r"some\.ckpt asks for .*nothing was built: choose another checkpoint"):
        refuse_untrusted({"_target_": target}, Path("some.ckpt"), (*MODELS, "my_parts."))
    for good in ("my_parts.nets.Net", "torch.nn.Linear"):
        refuse_untrusted({"_target_": good}, Path("some.ckpt"), (*MODELS, "my_parts."))
    with pytest.raises(UserError, match="asks for"):  # a name begins a package, not a word
        refuse_untrusted({"_target_": "my_parts.nets.Net"}, Path("some.ckpt"), (*MODELS, "my_part."))


def test_what_is_trusted_is_not_read_from_the_checkpoint(
    trained: tuple[Path, str, str], typed: Typed, on_path: None, tmp_path: Path
) -> None:
    checkpoint = torch.load(trained[0], weights_only=True)
    checkpoint["config"] |= {"trusted_packages": ["my_parts"]}
    torch.save(checkpoint, tmp_path / "liar.ckpt")
    assert typed("task=sample", "ckpt_path=liar.ckpt")[0] == 2


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("['a b']", "not 'a b'"),
        ("['']", "must name packages"),
        ("[subprocess]", "cannot name subprocess, which comes with Python"),
        ("[os.path]", "cannot name os.path"),
    ],
)
def test_packages_that_cannot_be_meant(value: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        trusted_packages(compose_config("sample", f"trusted_packages={value}"))


def test_the_environment_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PACKAGES", "mine,builtins")
    with pytest.raises(UserError, match="TRUSTED_PACKAGES cannot name builtins"):
        trusted_packages(compose_config("train"))
