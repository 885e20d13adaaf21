"""What `task=evaluate` says of models, exported models and files of samples whose quality is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from src.datamodules.mnist_datamodule import MNISTDataModule
from src.errors import UserError
from src.evaluate import evaluate
from src.evaluate.inputs import ModelInput, open_inputs, short_names
from src.evaluate.neighbours import CELL as SIDE
from src.evaluate.neighbours import GAP, LEFT, TOP
from src.export.to_onnx import export_generator
from src.pictures.confusion import draw_confusion
from src.pictures.pixels import to_pixels
from src.sampling.checkpoint_sampler import CheckpointSampler
from tests.conftest import compose_config, needs_onnx
from tests.forked import run_forked
from tests.metrics.digits import CACHE_DIR, digits, references
from tests.metrics.test_evaluator import KEYS

Evaluated = Callable[..., dict[str, Any]]
DIGITS = "datamodule=digits"


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The digits' feature net is at hand, in a data folder that holds nothing else."""
    references()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "features").symlink_to(CACHE_DIR)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluated:
    """Evaluates files; returns `evaluation.json`, with what was printed as `printed`."""

    def run(*paths: Path, typed: tuple[str, ...] = ()) -> dict[str, Any]:
        out = tmp_path / "out"
        named = ",".join(map(str, paths))
        evaluate(compose_config("evaluate", f"ckpt_path=[{named}]", f"out={out}", *typed, run_dir=out))
        return json.loads((out / "evaluation.json").read_text(encoding="utf-8")) | {"printed": capsys.readouterr().out}

    return run


def pixels_of(split: str, index: Any) -> np.ndarray:
    """Real digits as the model is served them, uint8 [N, 32, 32, 1]."""
    images, _ = digits().sets[split].__getitems__(list(index))
    return to_pixels(images).permute(0, 2, 3, 1).numpy()


def save(path: Path, split: str, index: Any = None, shift: int = 0, noise: int = 0) -> Path:
    """Real digits as a file of samples, labelled wrongly by `shift`, with some noise."""
    index = range(len(digits().sets[split])) if index is None else index
    images = pixels_of(split, index).astype(int)
    images += np.random.default_rng(0).integers(-noise, noise + 1, images.shape)
    labels = (digits().sets[split].labels[list(index)].numpy() + shift) % 10
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return path


def test_a_checkpoint_has_the_numbers_of_the_test_that_ended_its_run(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    tested = json.loads((checkpoint.parents[1] / "results.json").read_text(encoding="utf-8"))["metrics"]
    found = evaluated(checkpoint.with_name("best.ckpt"))

    (one,) = found["inputs"]
    assert one["metrics"].keys() == one["floors"].keys() == KEYS
    for name in KEYS:
        assert one["metrics"][name] == pytest.approx(tested[f"test/{name}"], rel=1e-3, abs=1e-3), name
        assert one["floors"][name] == pytest.approx(tested[f"test/{name}_floor"], rel=1e-3, abs=1e-4), name
    assert found["n"] == 128 and found["data"]["source"] == "digits"
    assert one["about"]["run"] == "trained" and len(one["sha256"]) == 64
    assert found["command"].startswith("python run.py") and {"commit", "machine", "versions"} <= found.keys()
    written = [path.name for path in sorted((tmp_path / "out").iterdir())]
    assert written == ["evaluation.json", "label_confusion.png", "neighbours.png"]
    assert f"evaluation  {tmp_path}/out/evaluation.json" in found["printed"]
    assert "compare     python run.py task=evaluate" in found["printed"]


@pytest.mark.parametrize(
    ("trained", "native", "dtype"),
    [
        ("bf16-mixed", "bf16-mixed", torch.bfloat16),
        ("bf16-mixed", "32-true", torch.float32),  # emulated, it takes longer
        ("32-true", "bf16-mixed", torch.float32),
    ],
)
def test_a_model_draws_as_in_its_test_where_the_machine_can(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: str, native: str, dtype: torch.dtype
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["trainer"]["precision"] = trained
    torch.save(content, tmp_path / "edited.ckpt")
    monkeypatch.setattr("src.evaluate.inputs.native_precision", lambda on_cpu: native)
    (opened,) = open_inputs(str(tmp_path / "edited.ckpt"), str(tmp_path), "raw")
    seen: list[torch.dtype] = []
    assert isinstance(opened, ModelInput) and isinstance(opened.sampler, CheckpointSampler)
    linear = next(each for each in opened.sampler.model.generator.modules() if isinstance(each, torch.nn.Linear))
    linear.register_forward_hook(lambda _, __, features: seen.append(features.dtype))
    opened.images(torch.arange(10), "test", Console())
    assert set(seen) == {dtype}


def test_held_out_images_score_their_floor(evaluated: Evaluated, tmp_path: Path) -> None:
    found = evaluated(save(tmp_path / "real.npz", "val"), typed=(DIGITS,))
    (one,) = found["inputs"]
    assert f"task=evaluate 'ckpt_path=[{tmp_path}/real.npz,OTHER]' {DIGITS}\n" in found["printed"]
    for name in KEYS - {"nearest_train"}:
        assert one["metrics"][name] == pytest.approx(one["floors"][name], abs=1e-5), name
    assert one["metrics"]["nearest_train"] == pytest.approx(one["floors"]["nearest_train"], rel=1e-3)
    assert one["alarms"] == {}


def save_folder(folder: Path, names: list[str], mode: str = "L", size: int = 32) -> Path:
    """The held-out digits as a folder of pictures, with a subfolder a class."""
    images, labels = pixels_of("val", range(128)), digits().sets["val"].labels.tolist()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[..., 0]).convert(mode).resize((size, size))
        picture.save(folder / names[label] / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("names", "mode"), [([*map(str, range(10))], "L"), ([f"{i:03}" for i in range(10)], "RGB")], ids=["grey", "colour"]
)
def test_a_folder_of_pictures_scores_as_a_file_of_them(
    evaluated: Evaluated, tmp_path: Path, names: list[str], mode: str
) -> None:
    folder = save_folder(tmp_path / "drawn", names, mode)
    (folder / "notes.txt").touch()
    found = evaluated(folder, save(tmp_path / "real.npz", "val"), typed=(DIGITS,))
    pictures, file = found["inputs"]
    assert found["n"] == 128 and pictures["name"] == "drawn"
    assert pictures["metrics"] == pytest.approx(file["metrics"], abs=1e-4)
    assert len(pictures["sha256"]) == 64 and pictures["alarms"] == {}


def test_folders_of_pictures_that_cannot_be_meant_are_refused(
    evaluated: Evaluated, checkpoint: Path, tmp_path: Path
) -> None:
    digits = [*map(str, range(10))]
    folder = save_folder(tmp_path / "drawn", digits)
    other = save_folder(tmp_path / "other", [*digits[:9], "fox"])
    sizes = save_folder(tmp_path / "sizes", digits)
    Image.new("L", (28, 28)).save(sizes / "5" / "small.png")
    colour = save_folder(tmp_path / "colour", digits)
    for path in colour.rglob("*.png"):
        Image.new("RGB", (32, 32), "red").save(path)
    damaged = save_folder(tmp_path / "damaged", digits)
    for path in (damaged / "3").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    for path, says in [
        (other, r"other has pictures of class 'fox', but of 'digits' there is no class 'fox': .*rename that folder"),
        (sizes, r"sizes has pictures of several sizes.*128 of 32 x 32 pixels, 1 of 28 x 28 pixels.*one size"),
        (colour, "colour has pictures in colour, but the data are grey"),
        (damaged, r"damaged: \d+ pictures cannot be used: .*damaged/3/\d+\.png"),
        (tmp_path / "empty", "empty is a folder without pictures of classes: name a file, or a folder"),
        (checkpoint.parents[1], r"is a folder: name a file in it, such as .*\.ckpt"),
    ]:
        with pytest.raises(UserError, match=says):
            evaluated(path, typed=(DIGITS,))
    with pytest.raises(UserError, match="drawn does not say with which data to compare: add datamodule="):
        evaluated(folder)


def test_memorised_images_are_seen(evaluated: Evaluated, tmp_path: Path) -> None:
    copies = save(tmp_path / "copies.npz", "train", range(400))
    found = evaluated(copies, typed=(DIGITS,))
    (one,) = found["inputs"]
    assert one["metrics"]["copied"] == 1 and one["floors"]["copied"] < 0.05
    assert one["alarms"].keys() == {"copies"} and "training images are copied" in found["printed"]
    picture = np.asarray(Image.open(tmp_path / "out" / "neighbours.png"))
    for row in range(10):
        top = TOP + SIDE * row
        sample, nearest, next_one = (
            picture[top : top + SIDE - 2, left : left + SIDE - 2].astype(int)
            for left in (GAP + LEFT, GAP + LEFT + SIDE + GAP, GAP + LEFT + 2 * SIDE + GAP)
        )
        assert np.array_equal(sample, nearest) and not np.array_equal(sample, next_one)


def test_a_fifth_of_copies_is_seen(evaluated: Evaluated, tmp_path: Path) -> None:
    images, labels = pixels_of("val", range(128)), digits().sets["val"].labels
    train = digits().sets["train"].labels
    for i in range(24):
        images[i] = pixels_of("train", [(train == labels[i]).nonzero()[i].item()])
    np.savez(tmp_path / "some.npz", images=images, labels=labels.numpy())

    (one,) = evaluated(tmp_path / "some.npz", typed=(DIGITS,))["inputs"]
    assert one["metrics"]["copied"] == pytest.approx(24 / 128, abs=0.02)
    assert one["alarms"].keys() == {"copies"} and "nearer to one than 99% of real images" in one["alarms"]["copies"]


def test_wrong_labels_are_seen(evaluated: Evaluated, tmp_path: Path) -> None:
    found = evaluated(save(tmp_path / "shifted.npz", "test", shift=1), typed=(DIGITS,))
    (one,) = found["inputs"]
    assert one["metrics"]["label_accuracy"] < 0.1
    assert "labels are mixed up" in found["printed"] and "1 as 0, 2 as 1" in found["printed"]
    confusion = np.array(one["confusion"])
    assert confusion.argmax(1).tolist() == [9, *range(9)]
    picture = np.asarray(Image.open(tmp_path / "out" / "label_confusion.png"))
    assert np.array_equal(picture, draw_confusion(confusion, list("0123456789")))


def test_a_file_of_some_classes_is_measured_beside_real_images_of_these(evaluated: Evaluated, tmp_path: Path) -> None:
    labels = digits().sets["test"].labels
    threes_and_fives = (((labels == 3) | (labels == 5)).nonzero().flatten()).tolist()
    held_out = digits().sets["val"].labels.bincount()

    found = evaluated(save(tmp_path / "some.npz", "test", threes_and_fives), typed=(DIGITS,))

    (one,) = found["inputs"]
    assert [sum(row) for row in one["confusion"]] == [int(held_out[c]) if c in (3, 5) else 0 for c in range(10)]
    assert one["floors"]["fd"] > 10  # real threes and fives, too, are far from all digits
    assert one["metrics"]["fd"] == pytest.approx(one["floors"]["fd"], rel=0.3)
    assert one["alarms"] == {}


def test_the_better_input_is_marked_and_equal_ones_are_not(evaluated: Evaluated, tmp_path: Path) -> None:
    good, same = (save(tmp_path / f"{name}.npz", "test") for name in ("good", "same"))
    noisy = save(tmp_path / "noisy.npz", "test", noise=120)

    found = evaluated(good, noisy, typed=(DIGITS,))
    assert found["differences"]["fd"]["best"] == "good.npz" and found["differences"]["fd"]["sure"]
    assert found["differences"]["fd"]["ahead"] > 2 * found["differences"]["fd"]["standard_error"] > 0
    (row,) = (line for line in found["printed"].splitlines() if "│ fd " in line)
    assert [("*" in cell) for cell in row.split("│")[2:5]] == [True, False, False]
    assert {"label_confusion_good.npz.png", "neighbours_noisy.npz.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }

    found = evaluated(good, same, typed=(DIGITS,))
    assert not any(each["sure"] for each in found["differences"].values())
    assert not any("*" in line for line in found["printed"].splitlines() if "│" in line)


def test_all_are_measured_on_as_many_images_as_the_smallest_file_has(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    found = evaluated(checkpoint, save(tmp_path / "few.npz", "test", range(60)))

    model, few = found["inputs"]
    assert found["n"] == sum(map(sum, model["confusion"])) <= 60
    assert [sum(row) for row in model["confusion"]] == [sum(row) for row in few["confusion"]]
    assert model["floors"] == few["floors"]


@needs_onnx
def test_an_exported_model_has_the_numbers_of_its_checkpoint(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    sampler = CheckpointSampler(checkpoint)
    export_generator(sampler.model, tmp_path / "generator.onnx", sampler.about)

    found = evaluated(checkpoint, tmp_path / "generator.onnx")

    torch_numbers, onnx_numbers = (each["metrics"] for each in found["inputs"])
    assert onnx_numbers == pytest.approx(torch_numbers, rel=1e-3, abs=1e-3)
    assert not any(each["sure"] for each in found["differences"].values())
    alone = evaluated(tmp_path / "generator.onnx")  # the file says which data it draws
    assert alone["data"] == found["data"]


def test_the_weights_without_their_average(checkpoint: Path, evaluated: Evaluated) -> None:
    averaged, raw = (evaluated(checkpoint, typed=(f"weights={weights}",)) for weights in ("ema", "raw"))
    assert raw["inputs"][0]["about"]["weights"] == "raw"
    assert raw["inputs"][0]["metrics"]["fd"] != averaged["inputs"][0]["metrics"]["fd"]


def test_a_classifier_is_trained_on_samples_if_asked_for(evaluated: Evaluated, tmp_path: Path) -> None:
    right, wrong = save(tmp_path / "right.npz", "train"), save(tmp_path / "wrong.npz", "train", shift=1)
    right, wrong = evaluated(right, wrong, typed=(DIGITS, "cas=true"))["inputs"]
    assert right["metrics"]["cas"] > 0.9 > 0.2 > wrong["metrics"]["cas"]
    assert right["floors"]["cas"] == pytest.approx(right["metrics"]["cas"], abs=0.03)


# Mistakes


def changed(checkpoint: Path, path: Path, **parts: Any) -> Path:
    """The checkpoint with another name for its data, or another datamodule."""
    content = torch.load(checkpoint, weights_only=True)
    content["data"] |= parts.get("data", {})
    content["config"]["datamodule"] |= parts.get("datamodule", {})
    torch.save(content, path)
    return path


def test_models_of_other_data_or_splits_are_not_compared(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    other = changed(checkpoint, tmp_path / "other.ckpt", data={"source": "fashion-mnist"})
    with pytest.raises(
        UserError, match=r"last\.ckpt, trained on 'digits', and other\.ckpt, trained on 'fashion-mnist'"
    ):
        evaluated(checkpoint, other)
    with pytest.raises(UserError, match="leave datamodule out"):
        evaluated(other, typed=(DIGITS,))
    split = {"train_val_test_split": [1_000, 400, 397]}
    other = changed(checkpoint, tmp_path / "other.ckpt", datamodule=split)
    with pytest.raises(UserError, match="different parts of 'digits'"):
        evaluated(checkpoint, other)


def test_a_model_that_may_have_seen_the_test_images_is_said(checkpoint: Path, evaluated: Evaluated) -> None:
    other_split = "datamodule.train_val_test_split=[1000,400,397]"
    found = evaluated(checkpoint, typed=(DIGITS, other_split))
    assert "may have seen what it is tested on" in found["printed"]
    assert "data" in found["inputs"][0]["alarms"]


def test_a_model_of_mnist_is_not_compared_with_the_digits(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNISTDataModule, "mirrors", ["http://127.0.0.1:9/"])  # no network
    mnist = {
        "_target_": "src.datamodules.mnist_datamodule.MNISTDataModule",
        "data_dir": "/somewhere/else",
        "train_val_test_split": [55_000, 5_000, 10_000],
        "offline_fallback": True,
    }
    other = changed(checkpoint, tmp_path / "other.ckpt", data={"source": "mnist"}, datamodule=mnist)
    with pytest.raises(UserError, match=rf"MNIST is not in {tmp_path}/data/MNIST/raw and could not be downloaded"):
        evaluated(other)
    with pytest.raises(UserError, match="can only be compared with itself"):
        evaluated(save(tmp_path / "samples.npz", "val"), typed=("datamodule=mnist",))


def test_a_model_of_the_digits_that_stood_in_for_mnist(checkpoint: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    other = changed(checkpoint, tmp_path / "other.ckpt", data={"source": "digits-fallback"})
    assert evaluated(other)["data"]["source"] == "digits"


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "os.system"},
        {"_target_": "src.run.commands.find_checkpoint"},
        {"_target_": "src.datamodules.published_datamodule.os.system"},
        {"seed": {"_target_": "pathlib.Path"}},
        {"seed": "${oc.env:HOME}"},
    ],
)
def test_a_checkpoint_builds_no_data_but_ours(
    checkpoint: Path, evaluated: Evaluated, tmp_path: Path, part: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"bad\.ckpt asks for .*nothing was built"):
        evaluated(changed(checkpoint, tmp_path / "bad.ckpt", datamodule=part))


def test_samples_that_do_not_fit_the_data(evaluated: Evaluated, tmp_path: Path) -> None:
    images, labels = pixels_of("val", range(60)), digits().sets["val"].labels[:60].numpy()
    colour, ten, few = (tmp_path / f"{name}.npz" for name in ("colour", "ten", "few"))
    np.savez(colour, images=images.repeat(3, 3), labels=labels)
    np.savez(ten, images=images, labels=labels + 1)
    np.savez(few, images=images[:8], labels=labels[:8])
    for path, says in [
        (colour, "has channels=3, but the images of 'digits' have 1"),
        (ten, "images of class 10, but the data's classes are 0 to 9"),
        (few, "at least 10 are needed"),
    ]:
        with pytest.raises(UserError, match=says):
            evaluated(path, typed=(DIGITS,))
    with pytest.raises(UserError, match=r"with which data to compare: add datamodule=cifar10\|digits\|"):
        evaluated(save(tmp_path / "alone.npz", "val"))


def test_names_are_as_long_as_it_takes() -> None:
    a, b, c = Path("/runs/a/ckpts/last.ckpt"), Path("/runs/b/ckpts/last.ckpt"), Path("/runs/b/ckpts/best.ckpt")
    assert short_names([a]) == ["last.ckpt"]
    assert short_names([a, c]) == ["last.ckpt", "best.ckpt"]
    assert short_names([a, b]) == ["a/ckpts/last.ckpt", "b/ckpts/last.ckpt"]


def test_as_a_user_types_it(checkpoint: Path, tmp_path: Path) -> None:
    few = save(tmp_path / "few.npz", "test", range(100))
    done = run_forked("task=evaluate", f"ckpt_path=[{checkpoint},{few}]", "out=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "last.ckpt" in done.stdout and "evaluation  here/evaluation.json" in done.stdout
    (tmp_path / "bad.npz").write_text("nothing", encoding="utf-8")
    done = run_forked("task=evaluate", "ckpt_path=bad.npz", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: ckpt_path={tmp_path}/bad.npz is damaged")
    assert done.stderr.count("\n") == 1
