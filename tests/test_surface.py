"""What people type, import or read of a run. Changing a line here is a decision, not an accident."""

import csv
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.models.mnist_gan_model import MNISTGANModel
from src.sample import sample
from tests.conftest import ROOT, compose_config, load
from tests.forked import run_forked

REQUIRED = {"run.py", "configs", "src", "tests", "images", "requirements.txt", "README.md", "setup.cfg"}
ALLOWED = {"LICENSE", "docs", "benchmarks", "Dockerfile", "docker-compose.yaml"}
GROUPS = {"trainer", "model", "datamodule", "callbacks", "logger", "experiment", "hparams_search", "hydra", "debug"}
KEYS = {
    *("task", "seed", "data_dir", "work_dir", "print_config", "ignore_warnings", "test_after_training", "ckpt_path"),
    "optimized_metric",
}
METRICS = {"g_loss", "d_loss", "d_real_loss", "d_fake_loss", "d_real", "d_fake"}
QUALITY = {"fd", "kid", "label_accuracy", "precision", "recall", "density", "coverage"}
SHORT = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")] + ["trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `python run.py` was typed, after a short run."""
    folder = tmp_path_factory.mktemp("work")
    done = run_forked("experiment=train_mnist_gan.yaml", "datamodule=digits", "logger=csv", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    (run_dir,) = (folder / "logs" / "runs").glob("*/*")
    return run_dir


def test_top_level() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    names = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - ignored
    assert names >= REQUIRED
    more = {name for name in names - REQUIRED - ALLOWED if not re.fullmatch(r"requirements-\w+\.txt", name)}
    assert more == set()
    assert (ROOT / ".env.example").is_file()


def test_config_groups_and_run_wide_keys() -> None:
    assert {p.name for p in (ROOT / "configs").iterdir() if p.is_dir()} == GROUPS
    config = compose_config("train")
    assert config.keys() >= KEYS | {"trainer", "model", "datamodule", "callbacks", "logger"}
    assert compose_config("sample").keys() >= {"task", "seed", "work_dir", "ckpt_path"}


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("src.train.train", ["config"]),
        ("src.models.mnist_gan_model.MNISTGANModel", ["generator", "discriminator"]),
        ("src.models.mnist_gan_model.MNISTGANModel.step", ["self", "batch", "batch_idx", "optimizer_idx"]),
        ("src.models.mnist_gan_model.MNISTGANModel.on_epoch_end", ["self"]),
        ("src.models.mnist_gan_model.MNISTGANModel.forward", ["self", "noise", "labels"]),
        ("src.models.mnist_gan_model.MNISTGANModel.generate", ["self", "labels", "rng"]),
        ("src.models.modules.generators.Generator", ["n_classes", "latent_dim", "channels", "img_size"]),
        ("src.models.modules.generators.Generator.forward", ["self", "noise", "labels"]),
        ("src.models.modules.discriminators.Discriminator", ["n_classes", "channels", "img_size"]),
        ("src.models.modules.discriminators.Discriminator.forward", ["self", "images", "labels"]),
        ("src.datamodules.mnist_datamodule.MNISTDataModule", ["data_dir", "train_val_test_split", "batch_size"]),
        ("src.callbacks.wandb_callbacks.LogSampleGrid", []),
    ],
)
def test_importable_names_begin_with_these_parameters(path: str, parameters: list[str]) -> None:
    parts = path.split(".")
    depth = 2 if parts[1] == "train" else 3 if parts[2] != "modules" else 4
    found = import_module(".".join(parts[:depth]))
    for name in parts[depth:]:
        found = getattr(found, name)
    assert list(inspect.signature(found).parameters)[: len(parameters)] == parameters


def test_the_split_and_the_optimizer_have_their_defaults() -> None:
    datamodule = import_module("src.datamodules.mnist_datamodule").MNISTDataModule
    assert list(inspect.signature(datamodule).parameters["train_val_test_split"].default) == [55_000, 5_000, 10_000]
    assert inspect.signature(MNISTGANModel.step).parameters["optimizer_idx"].default is None


# A run


def test_metric_keys(run_dir: Path) -> None:
    rows = list(csv.DictReader((run_dir / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    logged = {key for row in rows for key, value in row.items() if value}
    assert logged >= {f"{split}/{key}" for split in ("train", "val", "test") for key in METRICS}
    assert logged >= {f"{split}/{key}" for split in ("val", "test") for key in QUALITY}


def test_run_folder(folder: Path, run_dir: Path) -> None:
    assert re.fullmatch(r"logs/runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d[-\d]*", str(run_dir.relative_to(folder)))
    assert [p.name for p in folder.iterdir()] == ["logs"]
    files = {str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file()}
    assert files >= {".hydra/config.yaml", ".hydra/overrides.yaml", "config_tree.txt", "ckpts/last.ckpt"}
    assert files >= {"samples/epoch_0000.png", "samples/epoch_0001.png"}
    # Two files, however long the run.
    assert {p.name for p in (run_dir / "ckpts").iterdir()} == {"best.ckpt", "last.ckpt"}
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert results["command"].startswith("python run.py experiment=train_mnist_gan.yaml datamodule=digits")
    assert results["metrics"]["test/g_loss"] > 0 and results["seconds"] > 0
    assert {"commit", "machine", "versions", "name"} <= results.keys()
    tree = (run_dir / "config_tree.txt").read_text(encoding="utf-8")
    assert "MNISTGANModel" in tree and "data_source: digits" in tree


def test_a_sample_grid_has_one_row_a_class(run_dir: Path) -> None:
    pixels = np.asarray(Image.open(run_dir / "samples" / "epoch_0001.png"))
    assert pixels.dtype == np.uint8 and pixels.shape == (10 * 34 + 2, 10 * 34 + 2, 3)
    assert pixels.max() > 100  # not black


def test_the_checkpoint_holds_the_composed_configuration_as_plain_values(run_dir: Path) -> None:
    config = load(run_dir)["config"]  # weights_only=True
    assert config.keys() >= KEYS and config["model"]["_target_"].endswith("MNISTGANModel")
    assert config["data_source"] == "digits"


def test_samples_file(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    typed = ["labels=[5,3]", "n_per_label=3", "ckpt_path=last", f"work_dir={folder}"]
    out = [f"out={tmp_path}/{name}" for name in "abc"]
    for where, more in zip(out, (["batch_size=256"], ["batch_size=2"], ["seed=1"]), strict=True):
        sample(compose_config("sample", *typed, where, *more, run_dir=tmp_path))

    a, b, c = (dict(np.load(tmp_path / name / "samples.npz")) for name in "abc")
    assert a.keys() == {"images", "labels"}
    assert a["images"].dtype == np.uint8 and a["images"].shape == (6, 32, 32, 1)
    assert a["labels"].dtype == np.int64 and a["labels"].tolist() == [5, 5, 5, 3, 3, 3]
    assert np.array_equal(a["images"], b["images"])  # whatever the batch size
    assert not np.array_equal(a["images"], c["images"])
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert grid.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    assert np.array_equal(grid[2:34, 36:68, 0], a["images"][1, :, :, 0])


def test_every_class_is_drawn_by_default(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    typed = ["n_per_label=2", f"ckpt_path={run_dir}/ckpts/last.ckpt", f"out={tmp_path}"]
    sample(compose_config("sample", *typed, f"work_dir={folder}", run_dir=tmp_path))
    labels = np.load(tmp_path / "samples.npz")["labels"]
    assert labels.tolist() == torch.arange(10).repeat_interleave(2).tolist()
