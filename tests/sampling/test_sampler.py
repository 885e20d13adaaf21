"""A checkpoint and the file exported from it draw the same images from a seed, however many at a time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.errors import UserError
from src.export.to_onnx import export_generator
from src.models.request import Request
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.options import open_sampler
from src.sampling.sampler import BLOCK, About, Noise, Sampler
from tests.conftest import ROOT, needs_onnx

ABOUT = About(2, ("no", "yes"), 1, 4, (3,), "ema", "a run", "digits", "0123", "last.ckpt", "ab" * 32)


class Recorder(Sampler):
    """Remembers how many images it is asked for at a time."""

    about = ABOUT

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, request: Request) -> np.ndarray:
        labels = request.condition
        self.asked.append(len(labels))
        return np.broadcast_to((labels / 127.5 - 1)[:, None, None, None], (len(labels), 1, 4, 4)).astype(np.float32)


def test_the_network_always_sees_as_many_images() -> None:
    sampler = Recorder()
    labels = np.arange(150)
    drawn = sampler.draw(Request(np.zeros((150, 3), np.float32), labels))
    assert sampler.asked == [BLOCK] * 3
    assert drawn.shape == (150, 4, 4, 1) and drawn[:, 0, 0, 0].tolist() == labels.tolist()


def test_a_seed_stands_for_the_same_noise_however_it_is_asked_for() -> None:
    whole = Noise((5,), 3)(100)
    noise = Noise((5,), 3)
    assert np.array_equal(whole, np.concatenate([noise(n) for n in (1, 6, 64, 29)]))
    assert not np.array_equal(whole, Noise((5,), 4)(100))
    assert whole.dtype == np.float32 and abs(whole.mean()) < 0.2 and abs(whole.std() - 1) < 0.1
    assert np.array_equal(Noise((5,), 3, truncation=0.5)(100), whole / 2)


def test_what_is_known_survives_as_text() -> None:
    assert About.from_metadata(ABOUT.to_metadata() | {"license": "MIT"}) == ABOUT


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("n_classes", text) for text in ("3", "true", "-2", "1e3", "two", "[2]")),
        *(("class_names", text) for text in ("[1, 2]", '"no"', "[]", "{}")),
        *(("noise_shape", text) for text in ("3", "[0]", '["3"]', "null")),
    ],
)
def test_what_cannot_be_meant_is_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError):
        About.from_metadata(ABOUT.to_metadata() | {key: text})


def test_a_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    about = CheckpointSampler(checkpoint).about
    assert (about.n_classes, about.channels, about.img_size, about.data, about.weights) == (10, 1, 32, "digits", "ema")
    assert about.class_names == tuple("0123456789") and about.checkpoint == "last.ckpt"
    assert about.run == "trained" and about.commit
    assert CheckpointSampler(checkpoint, "raw").about.weights == "raw"


def test_ema_and_raw_weights_draw_other_images(checkpoint: Path) -> None:
    labels, noise = np.arange(10), Noise((100,), 0)(10)
    averaged, raw = (CheckpointSampler(checkpoint, weights).draw(Request(noise, labels)) for weights in ("ema", "raw"))
    assert not np.array_equal(averaged, raw)


@needs_onnx
def test_the_exported_file_draws_the_same_images(checkpoint: Path, tmp_path: Path) -> None:
    ours = CheckpointSampler(checkpoint)
    path = tmp_path / "generator.onnx"
    export_generator(ours.model, path, ours.about, {"license": "MIT"})
    theirs = open_sampler(path)

    assert theirs.about == ours.about and theirs.can_interpolate
    labels, noise = np.arange(70) % 10, Noise(ours.about.noise_shape, 0)(70)
    between = np.flip(labels).copy(), np.linspace(0, 1, 70, dtype=np.float32)
    for given in ((), between):
        difference = ours.draw(Request(noise, labels, *given)).astype(int) - theirs.draw(Request(noise, labels, *given))
        assert np.abs(difference).max() <= 1  # where rounding is close
    with pytest.raises(UserError, match="task=export weights=raw"):
        open_sampler(path, "raw")


@pytest.mark.extras
@pytest.mark.parametrize("content", [b"", b"no onnx", b"\x08\x07" * 100])
def test_a_file_that_is_no_generator_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "generator.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"generator\.onnx (is damaged|was not exported|needs onnxruntime)"):
        open_sampler(tmp_path / "generator.onnx")


@needs_onnx
def test_a_file_reads_no_other_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    ours, path = CheckpointSampler(checkpoint), tmp_path / "generator.onnx"
    export_generator(ours.model, path, ours.about)
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", "mine.bin"),
        ("offset", "0"),
        ("length", str((tmp_path / "mine.bin").stat().st_size)),
    ):
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())

    with pytest.raises(UserError, match=r"generator\.onnx is damaged or not an ONNX file"):
        open_sampler(path)


def test_drawing_with_an_exported_file_needs_no_torch() -> None:
    rooms = "src.sampling.onnx_sampler, src.sampling.options, src.pictures.grid"
    code = f"import sys; import {rooms}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "pytorch_lightning", "torchvision", "wandb", "sklearn"}
