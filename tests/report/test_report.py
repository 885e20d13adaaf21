"""The report: what it says of run folders, whole and broken, and the page as a browser shows it."""

import functools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from run import main
from src.errors import UserError
from src.models.gan_curves import gan_curves, gan_tables
from src.report.command import find_runs, render, report
from src.report.measures import MEASURES
from src.report.pictures import picture_of
from src.report.run_folder import Run
from src.report.several_runs import by_seed, compare, compare_configurations, group_runs
from src.report.verdict import judge
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from tests.conftest import compose_config
from tests.forked import run_forked

CLASSES = ["zero", "one", "two", "three"]
# What good generated images get, and what real ones.
QUALITY = {
    "label_accuracy": (0.985, 0.99),
    "worst_class_accuracy": (0.97, 0.98),
    "fd": (0.15, 0.1),
    "kid": (0.002, 0.001),
    "precision": (0.84, 0.86),
    "recall": (0.8, 0.87),
    "density": (0.95, 0.92),
    "coverage": (0.93, 0.95),
    "within_class_variance": (0.94, 1.02),
    "nearest_train": (1.66, 1.67),
    "copied": (0.012, 0.01),
}
GOOD = {name: good for name, (good, _) in QUALITY.items()}
FLOORS = {f"{name}_floor": floor for name, (_, floor) in QUALITY.items()}
COLLAPSED = GOOD | {"label_accuracy": 0.4, "worst_class_accuracy": 0.0, "fd": 9.0, "recall": 0.0}
COLLAPSED |= {"within_class_variance": 0.02}
TEXT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


# Run folders ----------------------------------------------------------------------------------------------------------


def grid(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (52, 42), level).convert("RGB").save(path)


def append(folder: Path, *rows: dict[str, Any]) -> None:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(
    folder: Path,
    seed: int = 1,
    epochs: int = 3,
    quality: dict[str, float] | None = None,
    model: dict[str, Any] | None = None,
    status: str = "finished",
    alarms: int = 0,
    **about: Any,
) -> Path:
    measured = GOOD | (quality or {}) | FLOORS
    folder.mkdir(parents=True)
    config = {
        "task": "train",
        "name": folder.name,
        "seed": seed,
        "work_dir": str(folder.parent),
        "trainer": {"max_epochs": epochs, "default_root_dir": str(folder)},
        "model": {"n_classes": 4, "optimizer_g": {"lr": 1e-3}} | (model or {}),
        "datamodule": {"_target_": "src.datamodules.mnist_datamodule.MNISTDataModule", "img_size": 8, "seed": seed},
        "callbacks": {
            "sample_grid": {"_target_": "src.callbacks.wandb_callbacks.LogSampleGrid", "n_per_class": 10 + seed},
            "model_checkpoint": {"monitor": "val/fd", "mode": "min", "dirpath": str(folder / "ckpts")},
        },
        "logger": {"csv": {"save_dir": str(folder)}},
    }
    data = {"source": "mnist", "classes": CLASSES, "sha256": "ab" * 32, "train": 5500, "val": 500, "test": 1000}
    record = {
        "format": 1,
        "name": folder.name,
        "status": status,
        "command": f"python run.py experiment=x seed={seed}",
        "overrides": ["experiment=x", f"seed={seed}"],
        "commit": "0123456789ab",
        "machine": "some CPU, 2 cores, Linux, 1 thread",
        "versions": {"torch": "2.15.0"},
        "started": "2026-11-21T08:00:00+00:00",
        "seconds": None if status == "running" else 784.0,
        "data": data | {"img_size": 8, "channels": 1},
        "curves": gan_curves(0.0),
        "tables": gan_tables(0.0),
        "config": config,
    }
    (folder / "run.json").write_text(json.dumps(record | about), encoding="utf-8")

    trained = {"train/g_loss": 0.7, "train/d_loss": 0.6, "train/d_real": 0.2, "train/d_fake": -0.2}
    trained |= {"train/grad_norm_g": 1.0, "train/grad_norm_d": 2.0, "train/images_per_s": 900.0}
    for epoch in range(epochs):
        here = {"epoch": epoch, "seconds": 60.0 * (epoch + 1)}
        append(folder, *({"step": 10 * epoch + batch, **here, **trained} for batch in range(10)))
        validated = {f"val/{name}": value for name, value in measured.items()}
        validated |= {"val/fd": measured["fd"] * (epochs - epoch), "val/alarms": 0, "val/d_pair_accuracy": 0.7}
        here["step"] = 10 * epoch + 9
        append(folder, here | validated, here | {"val/d_confusion": [[300, 200], [100, 400]]})
        grid(folder / "samples" / f"epoch_{epoch:04d}.png", 40 + 50 * epoch % 200)
        grid(folder / "samples" / f"raw_{epoch:04d}.png", 60 + 50 * epoch % 180)
        grid(folder / "pictures" / "interpolation" / f"epoch_{epoch:04d}.png", 90)
    grid(folder / "pictures" / "real_imgs.png", 250)
    if status == "finished":
        tested = {f"test/{name}": value for name, value in measured.items()} | {"test/alarms": float(alarms)}
        confusion = [[500 - 30 * i if i == j else 10 * i for j in range(4)] for i in range(4)]
        tables = {"test/label_confusion": confusion, "test/d_confusion": [[612, 388], [71, 929]]}
        append(folder, {"step": 10 * epochs, "epoch": epochs, "seconds": 60.0 * epochs + 50, **tested, **tables})
    return folder


class Words(HTMLParser):
    """What a page shows as text, its elements, and their attributes; without its style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1][0] not in ("script", "style"):
            self.text += f" {data}"


def words(page: str) -> str:
    return " ".join(Words(page).text.split())


def page_of(*folders: Path) -> str:
    return render([Run(folder) for folder in folders])


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "first", seed=3))
    assert (run.name, run.about.status, run.seed, run.about.seconds, run.epochs) == ("first", "finished", 3, 784.0, 3)
    assert run.about.data.classes == CLASSES and run.about.data.train == 5500
    curve = run.curves["val/fd"]
    assert curve.steps.tolist() == [9, 19, 29] and curve.epochs.tolist() == [0, 1, 2]
    assert curve.values == pytest.approx([0.45, 0.3, 0.15])
    assert run.metrics["test/fd"] == 0.15 and run.metrics["test/fd_floor"] == 0.1
    assert run.tables["test/d_confusion"] == ([[612, 388], [71, 929]], 3)
    assert list(run.grids) == list(run.raw_grids) == [0, 1, 2]
    assert run.missing == run.damaged == []


def test_a_value_that_is_not_finite_is_told_and_a_step_that_is_logged_again_replaces_the_first(tmp_path: Path) -> None:
    """As a resumed run does with the batches that its checkpoint did not have."""
    folder = make_run(tmp_path / "run", status="failed")
    append(folder, {"step": 45, "epoch": 4, "train/g_loss": None}, {"step": 19, "epoch": 1, "val/fd": 0.25})
    run = Run(folder)
    curve = run.curves["val/fd"]
    assert curve.steps.tolist() == [9, 19, 29] and curve.values == pytest.approx([0.45, 0.25, 0.15])
    said = [each.text for each in judge(run).sentences]
    assert "train/g_loss was not a finite number any more, first at batch 45." in said


Damage = Callable[[Path], object]


def edited(name: str, change: Callable[[str], str]) -> Damage:
    return lambda run: (run / name).write_text(change((run / name).read_text(encoding="utf-8")), encoding="utf-8")


def about(**values: Any) -> Damage:
    return edited("run.json", lambda text: json.dumps(json.loads(text) | values))


def replaced(name: str, make: Damage) -> Damage:
    return lambda run: ((run / name).unlink(), make(run / name))


def link_outside(run: Path) -> None:
    grid(run.parent / "secret.png", 7)
    replaced(GRID, lambda path: path.symlink_to(run.parent / "secret.png"))(run)


UNREADABLE = "\x00\xff not JSON\n" + '["no object"]\n' + '{"step": "three"}\n' + "[" * 100_000 + "\n"
ENDLESS = '{"step": 1, "val/fd": ' + "1" * 3_000_000 + "}\n"
GRID = "samples/epoch_0001.png"
NO_PNG = f"{GRID} is cut short or not a PNG"
NO_JSON = "run.json is cut short or not JSON"
DEEP = json.loads('{"a": ' * 99 + "0" + "}" * 99)
WRONG = {"name": 5, "command": ["x"], "seconds": "long", "overrides": "x", "config": 3, "data": 4}
WRONG["versions"] = {"a": []}
UNUSABLE = "run.json has values that cannot be used"
# How a run folder may be hurt, and what the page then says.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut metrics": (
        edited("metrics.jsonl", lambda text: text[: text.index('"test/fd"') - 5]),
        "last line of metrics.jsonl is cut short",
    ),
    "unreadable": (edited("metrics.jsonl", UNREADABLE.__add__), "4 lines of metrics.jsonl cannot be read"),
    "endless": (edited("metrics.jsonl", ENDLESS.__add__), "1 line of metrics.jsonl cannot be read"),
    "cut picture": (lambda run: os.truncate(run / GRID, 60), NO_PNG),
    "huge picture": (replaced(GRID, Image.new("1", (9_000, 9_000)).save), f"{GRID} has more pixels than any"),
    "other picture": (lambda run: Image.new("RGB", (8, 8)).save(run / GRID, "BMP"), NO_PNG),
    "no pictures": (
        lambda run: [shutil.rmtree(run / name) for name in ("samples", "pictures")],
        "missing: samples/epoch_*.png, pictures/real_imgs.png",
    ),
    "link": (link_outside, f"{GRID} is a link that leads out of the run folder"),
    # Opening a pipe would wait for ever.
    "pipe": (replaced("pictures/real_imgs.png", os.mkfifo), "missing: pictures/real_imgs.png"),
    "cut run.json": (edited("run.json", lambda text: text[: len(text) // 2]), NO_JSON),
    "deep": (about(config=DEEP), NO_JSON),
    "newer format": (about(format=2), "run.json has the format 2, but this version reads 1"),
    "newer values": (about(status="resting", curves=[{"title": "x"}]), f"{UNUSABLE}: curves, status"),
    "wrong": (about(**WRONG), f"{UNUSABLE}: command, config, data, name, overrides, seconds, versions"),
}


def reported(work_dir: Path, runs: str, out: str = "null") -> Path:
    return report(compose_config("report", f"runs={runs}", f"work_dir={work_dir}", f"out={out}", run_dir=work_dir))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_shown_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """The page and one warning say what is wrong."""
    folder = make_run(tmp_path / "hurt")
    damage, said = DAMAGES[name]
    damage(folder)
    page = reported(tmp_path, str(folder)).read_text(encoding="utf-8")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "not everything is there, see the page: hurt" in caplog.text
    assert said in words(page)
    assert "0.150" in page  # its FD, whatever else is broken
    assert "data:image/webp" in page or name == "no pictures"


def test_damaged_runs_stand_beside_whole_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, (damage, _) in DAMAGES.items():
        damage(make_run(tmp_path / "runs" / name))
    make_run(tmp_path / "runs" / "whole")
    text = words(reported(tmp_path, "runs/*").read_text(encoding="utf-8"))
    assert len(caplog.records) == 1
    assert f"Comparison of {len(DAMAGES) + 1} runs" in text
    assert all(said.removeprefix("missing: ") in text for _, said in DAMAGES.values())


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ("logs/runs/day/samples", r"samples is not a run folder.*no run.json.*such as logs/runs"),
        ("nowhere", r"runs=nowhere does not exist in .*: check the path, or type runs=last"),
        ("logs/runs/day", r"holds runs, but is not one itself: type runs='.*/day/\*'"),
        ("logs/*", r"runs='?logs/\*'? matches 1 path, none of which is a run folder"),
        ("logs/runs/day/one/run.json", r"is a file: name the folder that it is in"),
    ],
)
def test_folders_that_are_not_runs_are_refused(tmp_path: Path, runs: str, said: str) -> None:
    hydra = tmp_path / "logs" / "runs" / "day" / "samples" / ".hydra"  # by task=sample
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text("task: sample\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"runs=last finds no run in"):
        find_runs("last", tmp_path)
    make_run(tmp_path / "logs" / "runs" / "day" / "one", epochs=1)
    with pytest.raises(UserError, match=said):
        find_runs(runs, tmp_path)


def test_runs_are_named_by_folder_list_pattern_and_last(tmp_path: Path) -> None:
    work_dir = tmp_path / "work [1] *?"  # patterns say nothing of the folder that they are looked for in
    day = work_dir / "logs" / "runs" / "day"
    a, b, c = (make_run(day / name) for name in "abc")
    (day / "sampled" / ".hydra").mkdir(parents=True)  # by task=sample, later than all runs
    (day / "sampled" / ".hydra" / "config.yaml").write_text("task: sample\n", encoding="utf-8")
    for folder, when in ((a, 300), (b, 500), (c, 400)):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("[]", encoding="utf-8")
        os.utime(folder / ".hydra" / "overrides.yaml", (when, when))
    for wanted, found in [
        ("logs/runs/day/a", [a]),
        (["logs/runs/day/c", str(a)], [c, a]),
        ("logs/runs/*/*", [a, b, c]),
        (["logs/runs/day/c", "logs/runs/day/[ac]"], [c, a]),  # each once
        ("last", [b]),
    ]:
        assert find_runs(wanted, work_dir) == found


# What is said ---------------------------------------------------------------------------------------------------------


def test_the_directions_are_those_of_the_project() -> None:
    for better, names in [("higher ↑", HIGHER_IS_BETTER), ("lower ↓", LOWER_IS_BETTER)]:
        ours = {measure.name for measure in MEASURES if measure.better == better}
        assert {name for name in ours if not name.startswith("inception")} == {*names}


@pytest.mark.parametrize(
    ("options", "mark", "line", "sentence"),
    [
        ({}, "good", "Finished: the images are close to real ones", "FD is 0.150, 1.5 times the 0.100 that"),
        ({"quality": {"fd": 0.35}}, "fair", "with reservations", "FD is 0.350, 3.5 times"),
        ({"quality": {"recall": 0.3}}, "bad", "not good", "It shows little of the variety there is"),
        ({"quality": {"label_accuracy": 0.5}}, "bad", "not good", "50.0% of the images are of the class that"),
        ({"quality": {"worst_class_accuracy": 0.1}}, "bad", "not good", "In the class that does worst it is 10.0%"),
        ({"quality": {"copied": 0.2}}, "bad", "not good", "20.0% of the images are nearer to a training image than"),
        ({"quality": COLLAPSED}, "bad", "and it collapsed", "It collapsed: each class is nearly one image (0.02 of"),
        ({"alarms": 2}, "bad", "not good", "The test raised 2 alarms"),
        ({}, "good", "Finished", "No alarm was raised by 3 validations and by the test."),
        ({"status": "stopped"}, "good", r"Stopped: .* \(by the last validation: there", "stopped after 3 of 3 epochs"),
        ({"status": "running"}, "good", "Running or killed: ", "It has not ended, or was killed"),
        ({"status": "failed"}, "good", "Failed: ", "It failed after 3 of 3 epochs"),
        ({"commit": "0123456789ab+changes"}, "good", "Finished", "The code had changes that commit 0123456789ab does"),
        ({"data": {"source": "digits-fallback"}}, "good", "Finished", "stand in for the data that were asked for"),
    ],
)
def test_the_verdict_follows_numbers(tmp_path: Path, options: Any, mark: str, line: str, sentence: str) -> None:
    verdict = judge(Run(make_run(tmp_path / "run", **options)))
    assert verdict.mark == mark
    assert re.search(line, verdict.headline)
    assert any(sentence in each.text for each in verdict.sentences)


def test_a_run_says_which_alarms_it_raised(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", alarms=1)
    append(folder, {"step": 40, "alarm": "the test of x: a class is lost"}, {"step": 40, "remark": "not an alarm"})
    text = words(page_of(folder))
    assert "The test raised 1 alarm: “the test of x: a class is lost”" in text and "not an alarm" not in text


def test_the_page_shows_what_a_reviewer_asks(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "my-run", model={"ema_half_life": 1000})
    (folder / "diff.patch").write_text("-old = 1\n+new = 2\n", encoding="utf-8")
    grid(folder / "pictures" / "prompt_imgs" / "epoch_0001.png", 80)
    page = page_of(folder)
    assert page_of(folder) == page
    text = words(page)
    for said in [
        *("my-run finished", "python run.py experiment=x seed=1", "0123456789ab", "13 min 4 s", "torch 2.15.0"),
        *("mnist; 4 classes; 8 by 8 pixels, 1 channel; 5,500 train / 500 val / 1,000 test", "sha256 abab", "1 thread"),
        "Label accuracy 98.50% 99.00% higher ↑",
        "FD 0.150 0.100 lower ↓",
        "Variance in class 0.94 1.02 near 1",
        "on 2,000 generated images",
        "the checkpoint with the best val/fd, of epoch 2",
        "real 61 39 generated 7 93",  # percent of each row of [[612, 388], [71, 929]]
        "Samples with averaged weights, epoch 2",
        "Prompts, epoch 1",
        "Real images, for comparison",
        "From each class to the next, epoch 2",
        "Finished: the images are close to real ones. ✓ good: 98.5% of the images are of the class that was asked for",
        "-old = 1 +new = 2",
        "optimizer_g: lr: 0.001",
    ]:
        assert said in text, said
    titles = re.findall(r'<title id="f\d+-title">(.*?)</title>', page)
    assert titles == [
        *("Fréchet distance", "Label accuracy", "Variety", "Variance within classes", "Losses", "D&#x27;s scores"),
        *("Pairs that D puts in order", "Gradient norms", "Speed"),
    ]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_quality_against_guidance_and_steps_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    damaged = [
        "x",
        {"guidance": "2", "fd": 1.0},
        {"guidance": 3, "fd": None},
        {"guidance": True, "fd": 0.1},
        {"fd": 1.0},
    ]
    rows = [{"guidance": value, "fd": fd, "fd_floor": 0.25, "recall": 0.5} for value, fd in ((1.25, 0.5), (4, 2.0))]
    append(folder, {"step": 40, "by_guidance": [*rows, *damaged], "by_steps": [[1]]})
    run = Run(folder)
    assert [axis.tolist() for axis in run.against["guidance/fd"]] == [[1.25, 4], [0.5, 2.0]]
    assert not [name for name in run.against if name.startswith("steps")]
    text = words(page_of(folder))
    assert "FD: from 0.5 at 1.25 to 2 at 4 (guidance); real: 0.25." in text
    assert "recall: from 0.5 at 1.25 to 0.5 at 4 (guidance)." in text


def test_a_matrix_of_many_classes_shows_the_worst(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", data={"source": "many", "classes": [f"class{i}" for i in range(30)]})
    table = [[0] * 30 for _ in range(30)]
    for i in range(30):
        table[i][i], table[i][(i + 1) % 30] = 100 - i, i
    append(folder, {"step": 31, "epoch": 3, "test/label_confusion": table})
    text = words(page_of(folder))
    assert "class29 71.0% class0 (29.0%)" in text and "class20 80.0%" in text and "class19" not in text
    assert "The 10 classes of 30 that do worst" in text


# Several runs ---------------------------------------------------------------------------------------------------------


def test_welchs_interval_is_that_of_the_textbook() -> None:
    """Student's sleep data, as R's documentation of t.test() has them: -3.3654832 to 0.2054832 for drug 1 - drug 2."""
    one = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
    two = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
    *found, mark = compare(two, one, MEASURES[0]) or ()
    assert found == pytest.approx([-1.58, -3.3654832, 0.2054832]) and mark == "within"
    assert compare((0.1, 0.2), (0.5,), MEASURES[0]) is None
    assert compare((0.1, 0.1), (0.1, 0.1), MEASURES[0]) == (0, 0, 0, "within")


def test_runs_that_differ_in_the_seed_and_paths_are_a_group(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in (1, 2)]
    folders += [make_run(tmp_path / f"b{seed}", seed=seed, model={"optimizer_g": {"lr": 2e-3}}) for seed in (1, 2)]
    folders.append(make_run(tmp_path / "other-data", data={"source": "digits"}))
    folders.append(make_run(tmp_path / "unknown", config=None))
    runs = [Run(folder) for folder in folders]
    groups = group_runs(runs)
    assert [members for _, members in groups] == [[0, 1], [2, 3], [4], [5]]
    assert [title for title, _ in groups[:2]] == ["mnist, lr=0.001", "mnist, lr=0.002"]
    matter, aside, equal = compare_configurations(runs)
    assert list(matter) == ["model.optimizer_g.lr"]
    assert {"name", "seed", "datamodule.seed", "callbacks.sample_grid.n_per_class", "logger.csv.save_dir"} <= set(aside)
    assert "model.n_classes" in equal
    again = [*runs[:2], Run(make_run(tmp_path / "again", seed=1, quality={"fd": 0.35}))]
    assert [members for _, members in group_runs(again)] == [[0, 1, 2]]
    assert by_seed(again, "test/fd") == pytest.approx([0.25, 0.15])  # a seed that ran twice counts once


def several(folder: Path, *groups: tuple[float, ...]) -> list[Path]:
    return [
        make_run(folder / f"{g}-{seed}", seed, quality={"fd": fd}, model={"optimizer_g": {"lr": 1e-3 * g}})
        for g, fds in enumerate(groups, 1)
        for seed, fd in enumerate(fds, 1)
    ]


APART = "Group 2 (lr=0.002) differs from Group 1 (lr=0.001)"


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (
            [(0.20, 0.21, 0.22), (0.15, 0.14, 0.16)],
            [
                f"{APART} by more than the spread between seeds: better in FD. In all else it does not.",
                "0.210 ± 0.010",
                "0.060 (\N{MINUS SIGN}0.083 to \N{MINUS SIGN}0.037): better",  # Welch: 4 degrees of freedom
            ],
        ),
        ([(0.20, 0.30, 0.25), (0.15, 0.26, 0.20)], [f"{APART} in nothing by more than", "within the spread"]),
        ([(0.2,), (0.1,)], ["No configuration was run with two seeds", "cannot be said"]),
        ([(0.2, 0.21), (0.1,)], ["Only one configuration was run with two seeds or more"]),
        ([(0.2, 0.21), (0.1,), (0.2, 0.22)], ["Group 2 has one seed: nothing", "Group 3 (lr=0.003) differs from"]),
    ],
    ids=["clear", "unclear", "single seeds", "one group", "one single seed"],
)
def test_only_what_exceeds_the_spread_between_seeds_is_called_a_difference(
    tmp_path: Path, groups: list[tuple[float, ...]], said: list[str]
) -> None:
    folders = several(tmp_path, *groups)
    page = page_of(*folders)
    assert page_of(*folders) == page  # the same runs give the same bytes
    text = words(page)
    assert all(each in text for each in said)
    assert ("better in" in text) == any("better in" in each for each in said)


def test_the_best_is_marked_where_runs_compare(tmp_path: Path) -> None:
    def best(page: str) -> list[str]:
        return re.findall(r'<td class="number best">([\d.%]+)<', page)

    a, b = several(tmp_path / "same", (0.2,), (0.1,))
    assert best(page_of(a, b)) == ["0.100"]  # all else is equal
    c = make_run(tmp_path / "c", quality={"fd": 0.05}, data={"source": "digits", "sha256": "cd" * 32})
    page = page_of(a, b, c)
    assert best(page) == [] and "do not compare between all of them" in words(page)
    running = make_run(tmp_path / "d", status="running")
    page = page_of(a, running)  # the last validation of both
    assert "Numbers of the last validation, as not all runs were tested" in words(page)


def test_the_configuration_shows_what_differs(tmp_path: Path) -> None:
    page = page_of(*several(tmp_path, (0.2, 0.2), (0.1,)))
    table = page.partition("<p>Keys that differ")[2].partition("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\"><code>(.*?)</code></th>(.*?)</tr>", table)
    assert rows == [
        ("model.optimizer_g.lr", "<td><span>0.001</span></td><td><span>0.001</span></td><td><mark>0.002</mark></td>")
    ]


# Trust ----------------------------------------------------------------------------------------------------------------


def hostile(folder: Path) -> Path:
    make_run(
        folder,
        name=TEXT,
        command=f"python run.py {TEXT}",
        overrides=[TEXT],
        commit=TEXT,
        machine=f'"{TEXT}',
        versions={TEXT: TEXT},
        started=TEXT,
        data={"source": TEXT, "classes": [TEXT] * 4, "sha256": TEXT},
        config={TEXT: {TEXT: TEXT}, "seed": 1, "callbacks": {"model_checkpoint": {"monitor": TEXT}}},
        curves=[
            {"title": TEXT, "unit": f"$\\frac{TEXT}", "note": TEXT, "levels": {TEXT: 0.5}, "compare": True}
            | {"lines": {"train/g_loss": TEXT, "train/d_loss": "$\\not math$"}}
        ],
        tables={"d_confusion": {"title": TEXT, "rows": TEXT, "columns": TEXT, "names": [TEXT, TEXT], "note": TEXT}},
    )
    (folder / "diff.patch").write_text(f"</pre>{TEXT}", encoding="utf-8")
    append(folder, {"step": 40, "epoch": 4, f"val/{TEXT}": 1.0, "val/alarms": 1.0}, {"step": 40, "alarm": TEXT})
    return folder


def test_nothing_of_a_run_becomes_part_of_the_page(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "evil")
    for folders in ([folder], [folder, make_run(tmp_path / "good")]):
        found = Words(page_of(*folders))
        assert [tag for tag, _ in found.elements].count("script") == 1
        assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
        assert found.text.count(TEXT) > 5  # shown as it was written
        links = [a[key] for _, a in found.elements for key in ("href", "src") if a.get(key)]
        assert all(str(link).startswith(("#", "data:")) for link in links)


def test_letters_that_hide_or_turn_others_are_replaced(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", name="good\u202egnp.exe\x00\ud800", command="x" * 20_000)
    run = Run(folder)
    assert run.name == "good\ufffdgnp.exe\ufffd\ufffd"
    assert len(run.about.command) <= 10_001
    (tmp_path / "page.html").write_text(render([run]), encoding="utf-8")


def test_a_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of noise in colour, which cannot be compressed, 342 pixels wide, as CIFAR-10's grids are."""
    folder = make_run(tmp_path / "run", epochs=20)
    for path in [*folder.glob("samples/*.png"), *folder.glob("pictures/**/*.png")]:
        Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (342, 342, 3), np.uint8)).save(path)
    run = Run(folder)
    page = render([run])
    assert len(page) < 5_000_000
    assert page.count('class="frame') == 40 and "compressed with loss" in page
    once = functools.cache(functools.partial(picture_of, run))  # ten runs have the same pictures
    monkeypatch.setattr("src.report.pictures.picture_of", lambda run, path, n_bytes: once(path, n_bytes))
    assert len(render([run] * 10)) < 30_000_000


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_one_file_and_says_where(tmp_path: Path) -> None:
    make_run(tmp_path / "logs" / "runs" / "day" / "a=1")
    make_run(tmp_path / "logs" / "runs" / "day" / "b", seed=2)
    before = sorted(tmp_path.rglob("*"))
    done = run_forked("task=report", "runs=logs/runs/day/a=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "logs" / "runs" / "day" / "a=1" / "report.html"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, page])
    assert f"{page} (1 run, " in done.stdout and page.as_uri() in done.stdout


def test_a_pattern_is_taken_as_typed_and_a_wrong_folder_costs_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "logs" / "runs" / "day" / "a")
    monkeypatch.chdir(tmp_path)

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["run.py", "task=report", "runs=logs/runs/d*/[ab]", "out=page.html"])
    assert main() == 0
    assert (tmp_path / "page.html").exists()
    capsys.readouterr()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it
    monkeypatch.setattr(sys, "argv", ["run.py", "task=report", "runs=logs"])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    folder = tmp_path / "logs"
    assert line == f"error: {folder} holds runs, but is not one itself: type runs='{folder}/*/*/*'"


def test_a_place_that_cannot_be_written_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for out, said in [("page.pdf", "out=page.pdf must end in .html"), ("file/page.html", "choose another folder")]:
        with pytest.raises(UserError, match=said):
            reported(tmp_path, str(folder), out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
    secret = tmp_path / "secret"
    secret.write_text("kept", encoding="utf-8")
    for name in ("report.html", ".report.html.partial.html"):  # links in somebody else's run folder
        (folder / name).symlink_to(secret)
    path = reported(tmp_path, str(folder))
    assert "<h1>" in path.read_text(encoding="utf-8") and not path.is_symlink()
    assert secret.read_text(encoding="utf-8") == "kept"


def test_several_runs_are_written_under_logs_each_choice_to_its_own_file(tmp_path: Path) -> None:
    a, b, c = (make_run(tmp_path / name, seed=i) for i, name in enumerate("abc"))
    first, again, other = (reported(tmp_path, f"[{a},{beside}]") for beside in (b, b, c))
    assert first.parent == tmp_path / "logs" and first == again != other


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        make_run(folder / f"a-long-name-of-an-experiment-mnist-hold=0.{g}-seed{seed}", seed, epochs, {"cas": 0.9})
        for g, seeds, epochs in ((3, 4, 3), (5, 4, 3), (7, 2, 5))
        for seed in range(1, seeds + 1)
    ]
    chosen = {"one": runs[:1], "two": runs[:2], "ten": runs, "evil": [hostile(folder / "evil")]}
    for name, folders in chosen.items():
        (folder / f"{name}.html").write_text(page_of(*folders), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in chosen}


@pytest.fixture
def look(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Opens a page from disk; afterwards nothing may have been asked for and nothing complained about."""
    trouble: list[str] = []
    contexts = []

    def open_page(name: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        ours = (pages[name].as_uri(), "data:")
        page.on("request", lambda request: None if request.url.startswith(ours) else trouble.append(request.url))
        page.goto(ours[0], wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


SHOWN = "() => [...document.querySelectorAll('#samples .frame')].filter(f => f.offsetParent).map(f => f.dataset.epoch)"


def test_the_slider_moves_the_grids(look: Callable[..., Any]) -> None:
    page = look("one")
    assert page.evaluate(SHOWN) == ["2", "2"]  # the averaged generator's and the raw one's
    slider = page.get_by_role("slider", name="Epoch")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(SHOWN) == ["1", "1"] and page.locator("output").inner_text() == "1"
    assert page.locator("#samples figcaption").first.inner_text().endswith("epoch 1")
    page.keyboard.press("Home")
    assert page.evaluate(SHOWN) == ["0", "0"] and slider.get_attribute("aria-valuetext") == "epoch 0"
    broken = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
    assert page.evaluate(broken) == 0


def test_ten_grids_follow_one_slider(look: Callable[..., Any]) -> None:
    page = look("ten")
    assert page.evaluate(SHOWN) == ["2"] * 8 + ["4"] * 2  # two runs went on for longer
    page.get_by_role("slider", name="Epoch").fill("3")
    assert page.evaluate(SHOWN) == ["2"] * 8 + ["3"] * 2
    page.get_by_role("slider", name="Epoch").fill("0")
    assert page.evaluate(SHOWN) == ["0"] * 10


def test_without_javascript_the_last_grid_shows(look: Callable[..., Any]) -> None:
    page = look("one", java_script_enabled=False)
    assert page.locator(".frame:visible").count() == 2
    assert page.locator(".frame:visible").first.get_attribute("data-epoch") == "2"
    assert not page.locator(".slider").is_visible()


@pytest.mark.parametrize("name", ["one", "two", "ten", "evil"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_page_fits_its_window(look: Callable[..., Any], name: str, width: int) -> None:
    page = look(name, viewport={"width": width, "height": 800})
    page.evaluate("() => { for (const each of document.querySelectorAll('details')) each.open = true; }")
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert page.title() != "owned"


def test_a_page_prints_with_everything_unfolded(look: Callable[..., Any]) -> None:
    page = look("one")
    page.get_by_role("slider", name="Epoch").fill("0")
    pdf = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    page.emulate_media(media="print")
    assert page.evaluate(SHOWN) == ["2", "2"]  # the last, wherever the slider stands
    assert page.locator("h1").is_visible() and not page.locator(".slider").is_visible()
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.get_by_text("default_root_dir").is_visible()
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def contrast(a: str, b: str) -> float:
    """WCAG's contrast of two colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_told_from_the_paper(look: Callable[..., Any], scheme: str) -> None:
    page = look("one", color_scheme=scheme)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (contrast(paper, "rgb(0, 0, 0)") > 10) == (scheme == "light")
    for selector, what, least in [
        ("p, dd, dt, td, th", "color", 4.5),
        (".chart text", "fill", 4.5),
        (".chart [id*='line2d'] > path", "stroke", 3.0),
    ]:
        computed = "([s, what]) => [...document.querySelectorAll(s)].map(e => getComputedStyle(e)[what])"
        colours = {each for each in page.evaluate(computed, [selector, what]) if each.startswith("rgb(")}
        # Numbers on a dark cell have the paper's own colour, and grid lines are faint on purpose.
        seen = [colour for colour in colours if contrast(paper, colour) > 2]
        assert len(seen) > 1
        assert all(contrast(paper, colour) >= least for colour in seen), (selector, seen)


def test_the_command_can_be_copied_and_curves_are_read_to_those_who_cannot_see_them(look: Callable[..., Any]) -> None:
    page = look("one", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == "python run.py experiment=x seed=1"
    figure = page.get_by_role("img", name="Fréchet distance")
    described = figure.evaluate("(e) => e.querySelector('desc').textContent")
    assert described == "FD: from 0.45 at 0 to 0.15 at 2 (epoch, from 0); real: 0.1."
