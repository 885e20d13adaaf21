"""The CLIP score against CLIP's own cosines, in `task=evaluate`, and after the test of a run."""

import json
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.evaluate import evaluate
from src.metrics.clip_score import ClipScore
from src.train import train
from tests.conftest import QUICK, SMALL_TEXT_MODEL, compose_config
from tests.models.tiny_encoders import write_clip, write_t5

pytestmark = pytest.mark.extras("transformers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_it_is_the_mean_of_cosines_that_are_not_negative(clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    texts = ["a nine", "a seven", "a nine", "the four", "zero", "six"]
    pixels = torch.randint(256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model, process = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        out = model(**process(text=texts, images=list(pixels), return_tensors="pt", padding=True))
    cosines = out.logits_per_image.diagonal() / model.logit_scale.exp()
    assert (cosines < 0).any() and (cosines > 0).any()

    score = ClipScore(str(clip), "clip", torch.device("cpu"))
    assert score(pixels, texts) == pytest.approx(100 * float(cosines.clamp(min=0).mean()), rel=1e-4)
    assert score(pixels[:1].repeat(120, 1, 1, 1), texts[:1] * 120) == pytest.approx(score(pixels[:1], texts[:1]))
    grey = pixels[:, :1]
    assert score(grey, texts) == pytest.approx(score(grey.repeat(1, 3, 1, 1), texts))


def test_what_sees_no_images_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"clip={write_t5(tmp_path)} holds a model of type 't5', which sees no images"):
        ClipScore(str(tmp_path), "clip", torch.device("cpu"))


def test_evaluate_measures_it_beside_real_images(text_checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    config = [f"ckpt_path={text_checkpoint}", f"clip={clip}", f"out={tmp_path}"]
    evaluate(compose_config("evaluate", *config, run_dir=tmp_path))
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    (one,) = found["inputs"]
    assert 0 < one["metrics"]["clip_score"] < 100 and 0 < one["floors"]["clip_score"] < 100
    assert one["metrics"]["clip_score"] != one["floors"]["clip_score"]
    assert found["clip"]["weights"] == str(clip) and len(found["clip"]["sha256"]) == 64
    assert found["clip"]["texts"][:2] == ["zero", "one"]


@pytest.mark.parametrize("model", [SMALL_TEXT_MODEL, ["model/networks=mlp"]], ids=["text", "classes"])
def test_a_run_measures_it_after_its_test(model: list[str], clip: Path, tmp_path: Path) -> None:
    typed = [*QUICK, *model, "callbacks=clip_score", f"callbacks.clip_score.weights={clip}", "logger=none"]
    typed += ["callbacks.clip_score.n=50", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    typed += ["callbacks.guidance=null", "callbacks.prompt_accuracy=null"]
    train(compose_config("train", *typed, run_dir=tmp_path))
    metrics = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["metrics"]
    assert 0 < metrics["test/clip_score"] < 100 and metrics["test/clip_score"] != metrics["test/clip_score_floor"]
