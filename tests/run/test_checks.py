"""The model has as many classes and channels as its data, whatever they are, and reads what they serve."""

import json
import logging
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


# Captions


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """40 grey pictures with a text each."""
    folder = tmp_path / "shades"
    folder.mkdir()
    rows = [
        {"file_name": f"{i:02}.png", "text": f"shade {i}", "class": "dark" if i < 20 else "light"} for i in range(40)
    ]
    for i, row in enumerate(rows):
        Image.new("L", (8, 8), 6 * i).save(folder / str(row["file_name"]))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def without_classes(folder: Path) -> Path:
    table = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    table.write_text(
        "\n".join(json.dumps({key: row[key] for key in ("file_name", "text")}) for row in rows), encoding="utf-8"
    )
    return folder


def of(folder: Path) -> list[str]:
    return [*SMALL, "datamodule.channels=1", f"datamodule.folder={folder}"]


READS = ["model=flow_model", "model/condition=captions", "datamodule.captions=text", "model.denoiser.width=16"]


def test_captions_without_classes_simply_train(
    train_here: Train, captioned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_dir = train_here("shades", *of(without_classes(captioned)), *READS, "logger=none", "trainer.max_epochs=2")
    assert [text for text in caplog.messages if "classes" in text] == [
        "the data have no classes: callbacks.sample_grid, callbacks.interpolation, callbacks.real_images,"
        " callbacks.quality are left out, and val/loss chooses the best checkpoint"
    ]
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert {"val/loss", "test/loss"} <= results["metrics"].keys() and "val/fd" not in results["metrics"]
    best = read_checkpoint(run_dir / "ckpts" / "best.ckpt")
    assert best["config"]["optimized_metric"] == "val/loss"
    assert (best["config"]["model"]["n_classes"], best["config"]["model"]["prompts"]["names"]) == (0, [])


def test_a_class_is_asked_for_by_its_name_where_captions_are_learnt(train_here: Train, captioned: Path) -> None:
    model = build_model(compose_config("train", *of(captioned), *READS))
    assert torch.equal(model.as_condition(torch.tensor([1, 0])), model.encode(["light", "dark"]))
    shares = "datamodule.train_val_test_split=[0.4,0.3,0.3]"  # what metrics need
    typed = [*of(captioned), *READS, shares, "trainer.max_epochs=1", "logger=none"]
    run_dir = train_here("shades", *typed, f"data_dir={captioned.parent}")
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert "test/label_accuracy" in results["metrics"] and "test/prompt_accuracy_seen" not in results["metrics"]


@pytest.mark.parametrize(
    ("classes", "arguments", "says"),
    [
        (
            True,
            "datamodule.captions=text",
            "captions is 'text', but the model reads no text: type datamodule.captions=n",
        ),
        (
            False,
            "datamodule.captions=text",
            "captions is 'text', but the model reads no text: type datamodule.captions",
        ),
        (
            False,
            "model=flow_model datamodule.captions=text",
            "is 'text', but the model reads no text: type datamodule.",
        ),
        (
            True,
            "model=flow_model model/condition=captions",
            "templates is empty, as the model learns from captions, but",
        ),
        (True, "model=flow_model model/condition=text model.prompts=null", "remove model.prompts=null"),
    ],
)
def test_what_serves_and_reads_other_conditions_is_refused(
    typed: Typed, captioned: Path, classes: bool, arguments: str, says: str
) -> None:
    code, stderr = typed(*of(captioned if classes else without_classes(captioned)), *arguments.split(), *FEW)
    assert code == 2 and says in stderr.splitlines()[-1]
