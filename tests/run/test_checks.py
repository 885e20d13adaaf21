"""The model has as many classes and channels as its data, whatever they are."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from src.run.checkpoints import read_checkpoint
from tests.conftest import Train, Typed, build_model, compose_config

FEW = ["callbacks=none", "logger=none", "trainer.max_steps=1", "test_after_training=false"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three classes of pictures in colour."""
    for label in ("cat", "dog", "emu"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (60 * i, 99, 0)).save(tmp_path / "pets" / label / f"{i}.png")
    return f"datamodule.folder={tmp_path / 'pets'}"


SMALL = ["datamodule=folder", "datamodule.img_size=8", "datamodule.batch_size=4"]


@pytest.mark.parametrize(("channels", "networks"), [(3, "residual"), (1, "mlp")])
def test_a_folder_simply_trains(train_here: Train, folder: str, channels: int, networks: str) -> None:
    typed = [*SMALL, folder, f"datamodule.channels={channels}", f"model/networks={networks}"]
    run_dir = train_here("pets", *typed, *FEW, "callbacks=checkpoint")

    model = read_checkpoint(run_dir / "ckpts" / "last.ckpt")["config"]["model"]
    for part in (model, model["generator"], model["discriminator"]):
        assert (part["n_classes"], part["channels"]) == (3, channels)
    assert "n_classes: 3" in (run_dir / "config_tree.txt").read_text(encoding="utf-8")


def test_an_experiment_with_other_data() -> None:
    model = build_model(compose_config("train", "experiment=train_mnist_gan", "datamodule=cifar10"))
    assert model.generate(torch.tensor([9]), torch.Generator()).shape == (1, 3, 32, 32)


def test_what_was_typed_stays_and_must_fit(typed: Typed, folder: str) -> None:
    code, stderr = typed(*SMALL, folder, *FEW, "model.n_classes=7", "model.channels=1")
    assert code == 2
    assert "model.channels is 1, but datamodule.channels is 3, and model.n_classes is 7, but" in stderr
    assert stderr.splitlines()[-1].endswith("set model.channels=3 model.n_classes=3")
