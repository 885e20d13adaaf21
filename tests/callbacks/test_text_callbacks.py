"""What a run of a model that reads text shows, and what others leave out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from src.callbacks.guidance import MEASURED, LogGuidance
from src.callbacks.quality import LogQuality
from src.callbacks.text_callbacks import ROWS, LogPromptAccuracy, LogPromptGrid, some_prompts
from src.errors import UserError
from src.models.prompts import LENGTH, Prompts, to_codes, to_texts
from src.report.curves import AGAINST, draw_curves
from src.report.run_folder import Run
from src.run.run_record import RunRecord, read_rows
from src.train import train
from tests.callbacks.test_quality import Replaying
from tests.conftest import QUICK, build, compose_config, wandb_records
from tests.metrics.digits import CACHE_DIR, digits, references

SMALL = ["datamodule.img_size=8", "model.condition_dim=32", "model.denoiser.width=16", "model.denoiser.depth=1"]
SMALL += ["trainer.max_epochs=2", "trainer.limit_train_batches=3", "callbacks.quality.n_val=100", *QUICK]
TEXT = ["experiment=train_mnist_text2image", *SMALL, "callbacks.prompt_grid.every_n_epochs=1", "model.guidance=1.5"]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder, with W&B's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run_dir = tmp_path_factory.mktemp("run")
        chosen = ['callbacks.prompt_grid.prompts=["a nine","show the figure three"]']
        chosen += ["callbacks.prompt_grid.n_per_prompt=4", "callbacks.guidance.n=20"]
        chosen += ["callbacks.guidance.guidances=[2,1]", "callbacks.guidance.steps=[1,4]"]
        train(compose_config("train", *TEXT, *chosen, run_dir=run_dir))
        yield run_dir


def test_prompts_are_a_grid_an_epoch_with_their_words(text_run: Path) -> None:
    rows = [record["history"]["item"] for record in wandb_records(text_run) if record["type"] == "history"]
    captions = [row["prompt_imgs.captions"] for row in rows if "prompt_imgs.captions" in row]
    assert captions == [[f"epoch {i}, batch {3 * i + 3}: a nine; show the figure three"] for i in range(2)]
    files = sorted((text_run / "pictures" / "prompt_imgs").iterdir())
    assert [file.name for file in files] == ["epoch_0000.png", "epoch_0001.png"]
    first, last = (np.asarray(Image.open(file)) for file in files)
    grid = 4 * 10 + 2  # pixels: four images of 8, with borders
    assert first.shape[1] > grid + 50
    assert np.array_equal(first[:, :-grid], last[:, :-grid]) and not np.array_equal(first[:, -grid:], last[:, -grid:])


def test_accuracy_of_prompts_stands_beside_that_of_real_images(text_run: Path) -> None:
    metrics = json.loads((text_run / "results.json").read_text(encoding="utf-8"))["metrics"]
    for kind in ("seen", "held_out", "typo"):
        assert 0 <= metrics[f"test/prompt_accuracy_{kind}"] <= 1
        assert metrics[f"test/prompt_accuracy_{kind}_floor"] == pytest.approx(1.0, abs=0.05)


def test_quality_against_guidance_and_steps_is_recorded_and_shown(text_run: Path) -> None:
    recorded = {name: value for row in read_rows(text_run / "metrics.jsonl") for name, value in row.items()}
    rows = [record["history"]["item"] for record in wandb_records(text_run) if record["type"] == "history"]
    for option, values in (("guidance", [1, 2]), ("steps", [1, 4])):
        table = recorded[f"by_{option}"]
        assert [row[option] for row in table] == values
        assert set(table[0]) == {option, "seconds", *(f"{name}{end}" for name in MEASURED for end in ("", "_floor"))}
        (file,) = [row[f"by_{option}.path"] for row in rows if f"by_{option}.path" in row]
        (written,) = text_run.glob(f"wandb/offline-run-*/files/{file}")
        table_of_wandb = json.loads(written.read_text(encoding="utf-8"))
        assert table_of_wandb == {"columns": [*table[0]], "data": [[*row.values()] for row in table]} | table_of_wandb
        (caption,) = next(row[f"{option}.captions"] for row in rows if f"{option}.captions" in row)
        usual = {"guidance": "steps 7, solver multistep", "steps": "guidance 1.5, solver multistep"}
        assert caption == f"the test, 20 images a point: {usual[option]}"
        assert (text_run / "pictures" / f"{option}.png").exists()
    titles = {panel.title for panel, _ in draw_curves([Run(text_run)], [0], [""])}
    assert {panel.title for panel in AGAINST} <= titles


class Drawing(Replaying):
    """Draws the digit that a prompt names in its own templates, and noughts for others."""

    condition_shape = (LENGTH,)
    names: ClassVar = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    prompts = Prompts(names, ["a {}"], ["some {}"])

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.from_numpy(to_codes(prompts))

    def generate(self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        if labels.dim() > 1:
            known = {f"a {name}": label for label, name in enumerate(self.names)}
            labels = torch.tensor([known.get(text, 0) for text in to_texts(labels.numpy())])
        return super().generate(labels, rng)


def after_test(
    model: LightningModule, *callbacks: Callback, folder: Path | None = None, **options: Any
) -> dict[str, float]:
    """What is logged after the test of a model on the embedded digits; in a folder, with the record of a run."""
    references()  # the feature net is in the cache
    parts = [LogQuality(n_test=100, cas=False, picture=False, cache_dir=CACHE_DIR), *callbacks]
    logger = RunRecord(folder, {}) if folder else False
    options |= {"default_root_dir": folder, "logger": logger, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", callbacks=parts, **options)
    trainer.test(model, datamodule=digits(), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_what_a_prompt_names_must_be_drawn() -> None:
    """Only in the phrasings that it knows it draws more than noughts, a tenth of what is asked for."""
    found = after_test(Drawing("train"), LogPromptAccuracy(n=100))
    assert found["test/prompt_accuracy_seen"] > 0.95
    assert found["test/prompt_accuracy_held_out"] == found["test/prompt_accuracy_typo"] == pytest.approx(0.1, abs=0.02)


def test_all_else_is_as_without_prompts_and_nothing_without_text() -> None:
    rates = after_test(Drawing("train"), LogPromptAccuracy(n=20))
    alone = after_test(Drawing("train"))
    assert {name: rates[name] for name in alone} == alone
    assert after_test(Replaying("train"), LogPromptAccuracy(n=20)) == alone
    short = after_test(Drawing("train"), LogPromptAccuracy(n=20), limit_test_batches=1)
    assert short == after_test(Drawing("train"), limit_test_batches=1)


class Guided(Replaying):
    """Draws the right digit up to a guidance of 2 and beyond it noughts, and copies of one image in a single step."""

    drawing: Mapping[str, Any] = {"guidance": 1.5, "steps": 4, "solver": "heun"}

    def __init__(self) -> None:
        super().__init__("train")
        self.asked: list[tuple[float, int, int]] = []

    def generate(self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        self.asked.append((self.drawing["guidance"], self.drawing["steps"], len(labels)))
        images = super().generate(labels if self.drawing["guidance"] <= 2 else torch.zeros_like(labels), rng)
        return images if self.drawing["steps"] > 1 else images[:1].expand_as(images)


def by(option: str, folder: Path) -> dict[float, dict[str, float]]:
    """What is recorded of each value of an option."""
    (table,) = [row[f"by_{option}"] for row in read_rows(folder / "metrics.jsonl") if f"by_{option}" in row]
    return {row[option]: row for row in table}


def test_each_way_to_draw_is_measured_once_and_the_model_draws_as_before(tmp_path: Path) -> None:
    model = Guided()
    torch.manual_seed(0)
    alone, state = after_test(Guided()), torch.get_rng_state()
    torch.manual_seed(0)
    guidance = LogGuidance(guidances=[3, 1.5], steps=[1, 4], n=50)
    assert after_test(model, guidance, folder=tmp_path) == alone
    assert torch.equal(torch.get_rng_state(), state)
    assert model.drawing is Guided.drawing
    each = [[(*setting, 50), (*setting, 64), (*setting, 64)] for setting in ((1.5, 4), (3, 4), (1.5, 1))]
    assert model.asked[1:] == [draw for draws in each for draw in draws]

    found = by("guidance", tmp_path)
    assert found[1.5]["label_accuracy"] > 0.95 and found[3]["label_accuracy"] < 0.3
    assert found[1.5]["label_accuracy_floor"] > 0.95 and found[1.5]["fd"] < found[3]["fd"]
    found = by("steps", tmp_path)
    assert found[4]["recall"] > 0.5 and found[1]["recall"] == 0


def test_the_model_draws_as_before_where_measuring_fails(tmp_path: Path) -> None:
    class Failing(Guided):
        def generate(self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
            if self.drawing["steps"] == 2:
                raise MemoryError
            return super().generate(labels, rng)

    model = Failing()
    with pytest.raises(MemoryError):
        after_test(model, LogGuidance(steps=[2], n=50), folder=tmp_path)
    assert model.drawing is Guided.drawing


@pytest.mark.parametrize(("model", "limit"), [(Replaying("train"), 1.0), (Guided(), 1)])
def test_guidance_is_left_out_without_any_and_in_a_short_test(tmp_path: Path, model: Replaying, limit: float) -> None:
    after_test(model, LogGuidance(n=50), folder=tmp_path, limit_test_batches=limit)
    assert "by_guidance" not in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


class Captioned:
    """A validation split of captions."""

    texts = ("a red bird", "a blue bird", "", "a red bird")

    def __init__(self) -> None:
        self.sets = {"val": self}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, index: list[int]) -> tuple[None, Tensor]:
        return None, torch.from_numpy(to_codes([self.texts[i] for i in index]))


class Reader:
    n_classes = 20
    prompts: Prompts | None = None


@pytest.mark.parametrize("held_out", [["some {}"], []])
def test_prompts_that_nobody_chose(held_out: list[str]) -> None:
    model: Any = Reader()
    captions = ["a red bird", "a blue bird"]
    assert some_prompts(model, Captioned(), 0) == captions
    model.prompts = Prompts([f"n{i}" for i in range(20)], [])
    assert some_prompts(model, Captioned(), 0) == captions
    model.prompts = Prompts([f"n{i}" for i in range(20)], ["a {}"], held_out)
    word = "some" if held_out else "a"
    assert some_prompts(model, Captioned(), 0) == [f"{word} n{2 * i}" for i in range(ROWS)]


def test_a_model_of_classes_draws_no_prompts_and_refuses_them(train_here: Callable[..., Path]) -> None:
    run_dir = train_here("run", *SMALL[:1], "trainer.max_epochs=1", "trainer.limit_train_batches=1", "logger=none")
    assert not (run_dir / "pictures" / "prompt_imgs").exists()
    with pytest.raises(UserError, match=r"callbacks.prompt_grid.prompts are for a model that reads text"):
        train_here("other", 'callbacks.prompt_grid.prompts=["a nine"]', "logger=none")


def test_prompts_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="'!' has no letter and no digit"):
        build(LogPromptGrid, prompts=["a nine", "!"])
