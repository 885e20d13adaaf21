"""task=export: files that draw what the model draws, without this project, and say what they are."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.export import export
from src.export.to_onnx import REQUIRED
from src.models.request import Request
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.options import open_sampler
from src.sampling.sampler import Noise
from tests.conftest import ROOT, compose_config, needs_onnx

LABELS, NOISE = np.arange(20) % 10, Noise((100,), 5)(20)
Export = Callable[..., Path]


@pytest.fixture
def export_here(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports the trained checkpoint in this process; what is typed last counts. Returns the folder."""
    monkeypatch.setattr("src.export.command.TIMED_S", 0)

    def run(*overrides: str) -> Path:
        typed = [f"ckpt_path={checkpoint}", f"work_dir={tmp_path}", f"out={tmp_path / 'out'}", "calibration=64"]
        export(compose_config("export", *typed, *overrides, run_dir=tmp_path))
        return tmp_path / "out"

    return run


@needs_onnx
def test_every_file_draws_what_the_model_draws(
    export_here: Export, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_here("license=CC0-1.0")
    said = capsys.readouterr().out

    assert {path.name for path in folder.iterdir()} == {"generator.onnx", "generator.int8.onnx", "generator.pt2"}
    expected = CheckpointSampler(checkpoint).run(Request(NOISE, LABELS))
    import onnxruntime

    plain = onnxruntime.InferenceSession(folder / "generator.onnx", providers=["CPUExecutionProvider"])
    (images,) = plain.run(None, {"noise": NOISE, "labels": LABELS})
    assert np.abs(images - expected).max() < 1e-5
    known = plain.get_modelmeta().custom_metadata_map
    assert (known["license"], known["precision"], known["range"]) == ("CC0-1.0", "float32", "[-1, 1]")
    assert known["n_classes"] == "10" and known["weights"] == "ema" and len(known["checkpoint_sha256"]) == 64

    small = open_sampler(folder / "generator.int8.onnx")
    assert np.abs(small.run(Request(NOISE, LABELS)) - expected).mean() < 0.05
    known = small.session.get_modelmeta().custom_metadata_map  # type: ignore[attr-defined]
    assert (known["license"], known["precision"]) == ("CC0-1.0", "int8")
    assert small.about == CheckpointSampler(checkpoint).about

    for path in folder.iterdir():  # a file for others does not say where it was made
        assert str(ROOT).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()

    # What was made, how well it draws, how fast, and what comes next.
    for words in ("generator.onnx", "differs from the model by at most", "differs from float32 by"):
        assert words in said
    for words in ("torch eager", "torch.export", "ONNX float32", "ONNX int8"):
        assert words in said
    for words in ("task=sample", "task=serve", "task=evaluate"):
        assert f"{words} " in said and f"{folder / 'generator.onnx'}" in said.split(words)[1]


def test_the_program_needs_torch_alone(export_here: Export, checkpoint: Path, tmp_path: Path) -> None:
    folder = export_here("formats=torch", "latency=false", "weights=raw")
    np.savez(tmp_path / "given.npz", noise=NOISE, labels=LABELS)
    code = """
import json, sys
import numpy as np, torch
given, about = np.load("given.npz"), {"metadata.json": ""}
draw = torch.export.load("out/generator.pt2", extra_files=about).module()
noise, labels = torch.from_numpy(given["noise"]), torch.from_numpy(given["labels"])
np.save("one.npy", draw(noise[:1], labels[:1]).numpy())
np.save("all.npy", draw(noise, labels).numpy())
assert not any(name.partition(".")[0] in ("src", "pytorch_lightning", "onnxruntime") for name in sys.modules)
print(about["metadata.json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr

    assert [path.name for path in folder.iterdir()] == ["generator.pt2"]
    expected = CheckpointSampler(checkpoint, "raw").run(Request(NOISE, LABELS))
    assert np.abs(np.load(tmp_path / "all.npy") - expected).max() < 1e-5
    assert np.abs(np.load(tmp_path / "one.npy") - expected[:1]).max() < 1e-5
    known = json.loads(done.stdout)
    assert (known["weights"], known["license"]) == ("raw", "MIT")


def test_a_core_install_exports_what_it_can(
    export_here: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in REQUIRED:
        monkeypatch.setitem(sys.modules, package, None)
    folder = export_here("latency=false")
    said = capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["generator.pt2"]
    assert said.count("pip install -r requirements-extras.txt") == 1
    assert "left out    onnx and int8, which need onnx, onnxscript, onnxruntime: pip install" in said
    with pytest.raises(UserError, match=r"formats needs onnx, .*, or type formats=\[torch\]"):
        export_here("formats=[onnx]")


@needs_onnx
def test_only_what_was_asked_for_is_kept(export_here: Export) -> None:
    assert [path.name for path in export_here("formats=int8", "latency=false").iterdir()] == ["generator.int8.onnx"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("out=/proc/nothing", "out=/proc/nothing cannot be made .*: choose another folder with out=DIR"),
        ("ckpt_path=nope.ckpt", "nope.ckpt does not exist"),
    ],
)
def test_a_mistake_is_explained(export_here: Export, typed: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        export_here(typed)


@needs_onnx
def test_tensorrt_where_there_is_none(export_here: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="asks for tensorrt, which is not installed: pip install tensorrt"):
        export_here("formats=[onnx,tensorrt]")
    assert not list((tmp_path / "out").iterdir())


@needs_onnx
def test_what_is_exported_already(export_here: Export) -> None:
    folder = export_here("formats=onnx", "latency=false")
    with pytest.raises(UserError, match="has been exported already: choose the checkpoint"):
        export_here(f"ckpt_path={folder / 'generator.onnx'}")


def test_a_generator_that_has_diverged(export_here: Export, checkpoint: Path, tmp_path: Path) -> None:
    broken = torch.load(checkpoint, weights_only=True)
    for name, weight in broken["state_dict"].items():
        if name.startswith("ema.network.") and weight.is_floating_point():
            weight.fill_(float("nan"))
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match="not finite, as its training has diverged"):
        export_here(f"ckpt_path={tmp_path / 'broken.ckpt'}")


def test_an_old_checkpoint_says_less(export_here: Export, checkpoint: Path, tmp_path: Path) -> None:
    old = torch.load(checkpoint, weights_only=True)
    torch.save({key: old[key] for key in ("state_dict", "config")}, tmp_path / "old.ckpt")
    folder = export_here(f"ckpt_path={tmp_path / 'old.ckpt'}", "formats=torch", "latency=false")
    found = {"metadata.json": ""}
    torch.export.load(folder / "generator.pt2", extra_files=found)
    known = json.loads(found["metadata.json"])
    assert known["commit"] == "unknown" and json.loads(known["class_names"]) == list("0123456789")


@needs_onnx
def test_a_full_disk_leaves_what_was_there(export_here: Export) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses to write in the same way."""
    folder = export_here("formats=[onnx,torch]", "latency=false")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["generator.onnx"]) // 8, hard))
    try:
        for formats in ("onnx", "torch"):
            with pytest.raises(UserError, match="out: no space left to write"):
                export_here(f"formats={formats}", "weights=raw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
