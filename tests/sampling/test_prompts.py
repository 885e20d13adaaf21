"""What is drawn from text: by checkpoints and by exported files, from prompts and from classes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.evaluate import evaluate
from src.export import export
from src.interpolate import interpolate
from src.models.request import Request
from src.run.checkpoints import build_model, read_checkpoint
from src.sample import sample
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.options import open_sampler
from src.sampling.sampler import Noise
from tests.conftest import compose_config, needs_onnx

Drawn = Callable[..., Path]


@pytest.fixture
def drawn(text_checkpoint: Path, tmp_path: Path) -> Drawn:
    """Samples from the checkpoint into a folder of the given name; what is typed last counts."""

    def run(name: str, *typed: str) -> Path:
        ours = [f"ckpt_path={text_checkpoint}", f"out={tmp_path}/{name}", "n_per_label=3"]
        sample(compose_config("sample", *ours, *typed, run_dir=tmp_path))
        return tmp_path / name

    return run


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz") as file:  # needs no pickle
        return dict(file)


def test_prompts_are_drawn_and_kept(drawn: Drawn) -> None:
    found = arrays(drawn("a", "prompts=['a nine','Please: a TWO!']"))
    assert found["images"].shape == (6, 8, 8, 1)
    assert found["prompts"].tolist() == ["a nine"] * 3 + ["Please: a TWO!"] * 3
    assert set(found) == {"images", "prompts"}


def test_a_seed_gives_the_same_bytes_whatever_the_batch_size(drawn: Drawn) -> None:
    typed = ["prompts=['a nine','a longer prompt about a two']", "n_per_label=70"]
    files = [drawn(f"{size}", *typed, f"batch_size={size}") / "samples.npz" for size in (1, 65, 1000)]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_label_stands_for_its_name(drawn: Drawn) -> None:
    by_label, by_prompt = arrays(drawn("a", "labels=[9]")), arrays(drawn("b", "prompts=Nine"))
    assert np.array_equal(by_label["images"], by_prompt["images"])
    assert by_label["labels"].tolist() == [9] * 3


@pytest.mark.parametrize("other", ["guidance=4", "steps=1", "solver=euler", "negative=nine"])
def test_how_to_draw_can_be_chosen(drawn: Drawn, other: str) -> None:
    usual, otherwise = (arrays(drawn(str(i), "labels=[9]", *typed))["images"] for i, typed in enumerate([[], [other]]))
    assert not np.array_equal(usual, otherwise)


def test_what_is_drawn_says_how(drawn: Drawn, capsys: pytest.CaptureFixture[str]) -> None:
    drawn("a", "prompts=a nine", "guidance=3", "negative=a two")
    assert "guidance 3, steps 4, solver heun, negative a two" in " ".join(capsys.readouterr().out.split())


def test_pngs_of_prompts_have_captions(drawn: Drawn) -> None:
    folder = drawn("a", "prompts=['a nine','nine/two']", "n_per_label=1", "png=true") / "png"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["a nine", "nine/two"]
    assert all((folder / row["file_name"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["prompts=nine", "labels=[9]"], "prompts and labels are both set"),
        (["prompts=[]"], "prompts is an empty list"),
        (["prompts='?!'"], "prompts: '\\?!' has no letter"),
        ([f"prompts={'x' * 200}"], "prompts: .*at most 128"),
        (["truncation=0.7"], "truncation=0.7 suits GANs alone: type guidance=3"),
        (["negative='!'"], "negative: '!' has no letter"),
    ],
)
def test_mistakes(drawn: Drawn, typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        drawn("a", *typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("prompts=nine", r"this model draws classes and reads no text: type labels=\[9\]"),
        ("guidance=2", "guidance=2 is not an option of a MNISTGANModel"),
    ],
)
def test_a_gan_reads_no_text(checkpoint: Path, tmp_path: Path, typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sample(compose_config("sample", f"ckpt_path={checkpoint}", f"out={tmp_path}", typed, run_dir=tmp_path))


def test_between_two_prompts(text_checkpoint: Path, tmp_path: Path) -> None:
    typed = ["prompts=['a nine','a two']", "n_noises=2", "steps=3"]
    interpolate(
        compose_config("interpolate", f"ckpt_path={text_checkpoint}", f"out={tmp_path}", *typed, run_dir=tmp_path)
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"table.png", "noises.png", "noises.gif", "classes.png", "classes.gif"}


def test_evaluation_says_how_images_were_drawn(text_checkpoint: Path, tmp_path: Path) -> None:
    typed = [f"ckpt_path={text_checkpoint}", "n=50", "guidance=2", "steps=2", f"data_dir={tmp_path}"]
    evaluate(compose_config("evaluate", *typed, f"out={tmp_path}", run_dir=tmp_path))
    (found,) = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["inputs"]
    assert found["about"]["drawing"] == {"guidance": 2.0, "steps": 2, "solver": "heun", "negative": ""}


@needs_onnx
def test_an_exported_file_draws_prompts_as_the_model_does(text_checkpoint: Path, tmp_path: Path) -> None:
    typed = [f"ckpt_path={text_checkpoint}", "formats=[onnx,torch]", "latency=false", "steps=2", "guidance=2"]
    export(compose_config("export", *typed, f"out={tmp_path}", run_dir=tmp_path))
    model = build_model(read_checkpoint(text_checkpoint), text_checkpoint)
    condition = model.encode(["a nine", "two", "something else"])  # type: ignore[operator]
    noise = Noise((1, 8, 8), 5)(3)
    weight = np.array([0, 0.5, 1], np.float32)
    request = Request(noise, condition.numpy(), condition.flip(0).numpy(), weight)
    exported = open_sampler(tmp_path / "generator.onnx")
    ours = CheckpointSampler(text_checkpoint, drawing={"steps": 2, "guidance": 2})
    assert np.abs(exported.run(request) - ours.run(request)).max() < 1e-4
    labels = Request(noise, np.array([9, 2, 0]))
    assert np.abs(exported.run(labels) - ours.run(labels)).max() < 1e-4
    program = torch.export.load(tmp_path / "generator.pt2").module()
    with torch.no_grad():
        images = program(torch.from_numpy(noise), condition).numpy()
    assert np.abs(images - ours.run(Request(noise, condition.numpy()))).max() < 1e-4
    with pytest.raises(UserError, match=r"guidance=3 cannot be chosen for .* was exported with guidance=2"):
        open_sampler(tmp_path / "generator.onnx", drawing={"guidance": 3})


@needs_onnx
def test_int8_draws_prompts_nearly_as_well(text_checkpoint: Path, tmp_path: Path) -> None:
    typed = [f"ckpt_path={text_checkpoint}", "formats=[onnx,int8]", "latency=false", "steps=1", "calibration=64"]
    export(compose_config("export", *typed, f"out={tmp_path}", run_dir=tmp_path))
    exact, small = (open_sampler(tmp_path / name) for name in ("generator.onnx", "generator.int8.onnx"))
    request = Request(Noise((1, 8, 8), 5)(20), np.arange(20) % 10)
    assert np.abs(exact.run(request) - small.run(request)).mean() < 0.1
