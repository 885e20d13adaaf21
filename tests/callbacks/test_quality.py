"""What the quality callback logs, says, and leaves alone."""

import csv
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from src.callbacks import quality
from src.callbacks.inception import LogInception
from src.callbacks.quality import LogQuality
from src.errors import UserError
from src.models.image_model import ImageModel
from src.models.modules.generators import Generator
from src.pictures.confusion import CELL, MARGIN
from src.pictures.pixels import to_pixels
from src.run.run_record import RunRecord, read_rows
from tests.conftest import assert_same, build, load
from tests.metrics.digits import CACHE_DIR, digits, references
from tests.metrics.test_evaluator import KEYS

Train = Callable[..., Path]
LOGGED = {f"{name}{suffix}" for name in KEYS for suffix in ("", "_floor")} | {"alarms"}


class Replaying(ImageModel):
    """Draws, for the classes asked for, the images of the validation split one after another."""

    n_classes, channels, img_size = 10, 1, 32

    def __init__(self, split: str = "val", shift: int = 0, noise: float = 0.0) -> None:
        super().__init__()
        self.split, self.shift, self.noise = split, shift, noise
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.drawn = 0

    def draw_noise(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 4, generator=rng)

    def generate(self, labels: Tensor, rng: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        data = digits().sets[self.split]
        members = [(data.labels == (label + self.shift) % 10).nonzero().flatten().tolist() for label in range(10)]
        index = [members[label].pop(0) for label in labels.tolist()]
        self.drawn += len(index)
        images = to_pixels(data.__getitems__(index)[0]).float() / 127.5 - 1  # exactly as a file would hold them
        return images + self.noise * torch.rand(images.shape, generator=rng).mul(2).sub(1)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass


def measured(
    model: LightningModule,
    verb: str = "validate",
    folder: Path | None = None,
    trainer: dict[str, Any] | None = None,
    **options: object,
) -> dict[str, float]:
    """What is logged after validating or testing `model` on the embedded digits."""
    references()  # the feature net is in the cache
    callback = LogQuality(cache_dir=CACHE_DIR, **({"cas": False, "picture": False} | options))  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_progress_bar": False} | (trainer or {})
    lightning = Trainer(accelerator="cpu", callbacks=[callback], default_root_dir=folder, **quiet)  # type: ignore[arg-type]
    getattr(lightning, verb)(model, datamodule=digits(), verbose=False)
    return {name: float(value) for name, value in lightning.callback_metrics.items()}


def test_what_each_class_is_taken_for_is_a_picture(tmp_path: Path) -> None:
    measured(Replaying("test", shift=1), "test", tmp_path, picture=True)
    picture = np.asarray(Image.open(tmp_path / "pictures" / "label_confusion" / "test.png"))
    for asked in range(10):
        shades = [int(picture[MARGIN + CELL * asked + 3, MARGIN + CELL * seen + 3].sum()) for seen in range(10)]
        assert shades.index(min(shades)) == (asked + 1) % 10


def test_the_record_names_the_classifier(tmp_path: Path) -> None:
    """Numbers of different classifiers of the same data differ a little."""
    measured(Replaying("test", shift=1), "test", tmp_path, {"logger": RunRecord(tmp_path, {})})
    (named,) = [row["features"] for row in read_rows(tmp_path / "metrics.jsonl") if "features" in row]
    assert named == f"{references().name}, weights {references().net.sha256()[:8]}"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger=quality.__name__)
    return lambda: [record.getMessage() for record in caplog.records if record.name == quality.__name__]


@pytest.mark.parametrize(("verb", "split"), [("validate", "val"), ("test", "test")])
def test_real_images_score_their_floor_and_raise_no_alarm(
    verb: str, split: str, warnings: Callable[[], list[str]]
) -> None:
    logged = measured(Replaying(), verb)
    assert logged.keys() == {f"{split}/{name}" for name in LOGGED}
    for name in KEYS:
        assert logged[f"{split}/{name}"] == pytest.approx(logged[f"{split}/{name}_floor"], abs=1e-3)
    assert logged[f"{split}/alarms"] == 0
    assert warnings() == []


def test_images_are_rounded_as_in_a_file() -> None:
    """A difference that no file could hold makes no difference; one of two levels does."""
    exact, half, two = (measured(Replaying(noise=levels / 127.5))["val/fd"] for levels in (0, 0.49, 2))
    assert half == exact != two


@pytest.mark.parametrize(
    ("model", "verb", "says"),
    [
        (Replaying(shift=1), "validate", "epoch 0 of digits.*labels are mixed up"),
        (Replaying("train"), "test", "the test of digits.*training images are copied"),
    ],
)
def test_failures_are_said(model: Replaying, verb: str, says: str, warnings: Callable[[], list[str]]) -> None:
    logged = measured(model, verb, n_val=50)

    assert [value for name, value in logged.items() if name.endswith("/alarms")] == [1]
    (warning,) = warnings()
    assert re.match(says, warning) and references().name in warning


def test_as_many_images_as_asked_for_where_there_are_enough() -> None:
    for n_val, drawn in ((40, 40), (5_000, 128)):
        measured(model := Replaying(), n_val=n_val)
        assert model.drawn == drawn


@pytest.mark.parametrize(
    ("verb", "limit", "drawn"), [("validate", 1, 64), ("validate", 0.5, 64), ("validate", 1.0, 128), ("test", 1, 64)]
)
def test_no_more_images_than_the_batches_hold(
    monkeypatch: pytest.MonkeyPatch, verb: str, limit: float, drawn: int
) -> None:
    """So that a run on a few batches takes seconds, also where an image costs many evaluations."""
    monkeypatch.setattr(digits(), "batch_size", 16)  # 64 in validation and test
    split = {"validate": "val"}.get(verb, verb)
    logged = measured(model := Replaying(), verb, trainer={f"limit_{split}_batches": limit})
    assert model.drawn == drawn
    assert logged.keys() == {f"{split}/{name}" for name in LOGGED}


def test_a_classifier_trained_on_samples_knows_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the training images it is the floor's own recipe; with labels off by one it is mostly wrong."""
    monkeypatch.setattr("src.metrics.evaluator.DRAW_BATCH", 2_000)
    logged = measured(Replaying("train"), "test", cas=True)
    real = references().real["test"]
    assert logged["test/cas_floor"] == pytest.approx(float((real.predicted == real.labels).float().mean()))
    assert abs(logged["test/cas"] - logged["test/cas_floor"]) < 0.02

    class OffByOne(Replaying):
        def generate(self, labels: Tensor, rng=None, noise=None) -> Tensor:  # type: ignore[no-untyped-def]
            # As many of each class are there as asked for, but under the next class's name.
            images = super().generate(labels.sort().values, rng)
            return images.roll(int((labels == 9).sum()), 0)[labels.argsort(stable=True).argsort()]

    assert measured(OffByOne("train"), "test", cas=True)["test/cas"] < 0.35


def test_a_run_logs_every_number_on_the_axis_of_batches(train_here: Train) -> None:
    run_dir = train_here("run", "trainer.max_epochs=2", "logger=csv", "callbacks.model_checkpoint.monitor=val/fd")

    rows = list(csv.DictReader((run_dir / "csv" / "metrics.csv").open(encoding="utf-8")))
    assert {f"{split}/{name}" for split in ("val", "test") for name in LOGGED} <= rows[0].keys()
    assert [int(row["step"]) for row in rows if row["val/fd"]] == [21, 43]
    # The test draws other images than the validation that chose the checkpoint.
    (test,) = [row["test/fd"] for row in rows if row["test/fd"]]
    assert test not in [row["val/fd"] for row in rows]
    # Known to be logged before training began, the best is kept by it.
    assert (run_dir / "ckpts" / "best.ckpt").exists()
    assert not [key for key in load(run_dir)["state_dict"] if "quality" in key]


def test_training_is_the_same_to_the_bit_without_it(train_here: Train) -> None:
    ema, no_best = "model.ema_half_life=500", "callbacks.model_checkpoint.monitor=null"
    options = ["trainer.max_epochs=2", "logger=none", ema, no_best]
    watched = load(train_here("watched", *options))
    alone = load(train_here("alone", *options, "callbacks.quality=null"))

    for key in ("state_dict", "optimizer_states"):
        assert_same(watched[key], alone[key], key)


def test_alarms_wait_for_the_second_validation_and_survive_a_stop(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, z, labels: forward(self, z, torch.zeros_like(labels)))
    options = ["trainer.limit_train_batches=3", "logger=none", "test_after_training=false"]
    first = train_here("first", *options, "trainer.max_epochs=1")
    assert warnings() == []

    train_here("rest", *options, "trainer.max_epochs=3", f"ckpt_path={first}/ckpts/last.ckpt")
    (warning,) = warnings()  # the third epoch has nothing new to say
    assert warning.startswith("epoch 1 of digits")
    assert "labels are ignored" in warning


def test_the_sanity_check_draws_a_few_images(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = quality.draw

    def counted(trainer: Trainer, model: ImageModel, labels: Tensor, seed: int) -> Tensor:
        drawn.append((trainer.sanity_checking, len(labels)))
        return draw(trainer, model, labels, seed)

    monkeypatch.setattr(quality, "draw", counted)
    train_here("run", "trainer.max_epochs=1", "logger=none", "test_after_training=false")

    assert drawn == [(True, 50), (False, 128)]


class Process:
    """A trainer's view of one of several processes, which see each other's messages but no sum."""

    sent: list[object] = []

    def __init__(self, world_size: int, global_rank: int) -> None:
        self.world_size, self.global_rank, self.is_global_zero = world_size, global_rank, global_rank == 0
        self.strategy = self

    def reduce(self, pixels: Tensor, reduce_op: str) -> Tensor:
        return pixels

    def broadcast(self, result: object) -> object:
        if self.is_global_zero:
            self.sent.append(result)
        return self.sent[-1]


def test_each_process_draws_its_share_of_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noise(Replaying):
        def generate(self, labels: Tensor, rng=None, noise=None) -> Tensor:  # type: ignore[no-untyped-def]
            return torch.rand(len(labels), 1, 32, 32, generator=rng)

    monkeypatch.setattr("src.metrics.evaluator.DRAW_BATCH", 10)
    labels = torch.arange(10).repeat(3)[:25]
    whole = quality.draw(Process(1, 0), Noise(), labels, 0)  # type: ignore[arg-type]
    shares = [quality.draw(Process(2, rank), Noise(), labels, 0) for rank in (0, 1)]  # type: ignore[arg-type]

    assert [int(share.flatten(1).any(1).sum()) for share in shares] == [15, 10]
    assert torch.equal(shares[0] + shares[1], whole)
    assert whole.flatten(1).unique(dim=0).shape[0] == 25


def test_what_one_process_finds_or_refuses_holds_for_all() -> None:
    def refuse() -> None:
        raise UserError("no")

    ranks: list[Any] = [Process(2, 0), Process(2, 1)]
    assert [quality.on_rank_zero(rank, lambda rank=rank: rank.global_rank) for rank in ranks] == [0, 0]
    for rank in ranks:
        with pytest.raises(UserError, match="no"):
            quality.on_rank_zero(rank, refuse)


@pytest.mark.parametrize("value", [9, 0, 100.0, True])
@pytest.mark.parametrize(("callback", "name"), [(LogQuality, "n_val"), (LogQuality, "n_test"), (LogInception, "n")])
def test_numbers_that_cannot_be_are_refused(callback: type, name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} must be a whole number of at least 10"):
        build(callback, **{name: value})


def test_a_model_without_images_is_refused() -> None:
    class Other(LightningModule):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            pass

    with pytest.raises(UserError, match=r"needs a model that is an ImageModel.* set callbacks.quality=null"):
        measured(Other())


def test_a_subset_is_measured_against_the_same_real_images(train_here: Train) -> None:
    """So that its numbers compare with those of a run on everything."""
    rows = []
    for name, subset in (("whole", "null"), ("part", "200")):
        run_dir = train_here(name, "logger=csv", "trainer.max_epochs=1", f"datamodule.subset={subset}")
        with open(run_dir / "csv" / "metrics.csv", encoding="utf-8") as file:
            rows.append(next(row for row in csv.DictReader(file) if row["test/fd"]))
    floors = [{key: value for key, value in row.items() if key.endswith("_floor")} for row in rows]
    assert floors[0] == floors[1] and rows[0]["test/fd"] != rows[1]["test/fd"]
