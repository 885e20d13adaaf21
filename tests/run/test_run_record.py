"""What a run leaves in its folder, whatever its loggers."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from src.run.provenance import record_diff
from src.run.run_record import RunRecord, read_rows
from tests.conftest import QUICK, Train
from tests.forked import run_forked


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_without_loggers_can_be_judged_from_its_folder(train_here: Train) -> None:
    run_dir = train_here("plain", "trainer.max_epochs=2", "logger=none", "trainer.log_every_n_steps=5")

    about = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert (about["format"], about["status"], about["name"]) == (1, "finished", "mnist_gan_model-digits-seed12345")
    assert about["data"].items() >= {"source": "digits", "train": 1412, "val": 128, "test": 257, "img_size": 32}.items()
    assert about["data"]["classes"] == [str(n) for n in range(10)]
    assert about["config"]["trainer"]["max_epochs"] == 2
    assert about["overrides"][0] == "datamodule=digits"
    rows = lines(run_dir)
    assert [row["step"] for row in rows if "train/g_loss" in row] == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [(row["step"], row["epoch"]) for row in rows if "val/fd" in row] == [(21, 0), (43, 1)]
    assert all("val/fd_floor" in row for row in rows if "val/fd" in row)
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
    (tested,) = [row for row in rows if "test/fd" in row]
    assert tested["test/fd"] == pytest.approx(results["test/fd"])
    asked = [row["test/label_confusion"] for row in rows if "test/label_confusion" in row]
    assert torch.tensor(asked).shape == (1, 10, 10)
    right = torch.tensor(asked[0]).trace() / torch.tensor(asked[0]).sum()
    assert float(right) == pytest.approx(tested["test/label_accuracy"])
    judged = torch.tensor(next(row["test/d_confusion"] for row in rows if "test/d_confusion" in row))
    assert judged.sum(dim=1).tolist() == [257, 257]
    assert float(judged.trace() / judged.sum()) == pytest.approx(tested["test/d_accuracy"])
    # What the model says of its curves and tables is about metrics that exist.
    logged = {name for row in rows for name in row}
    assert {name for panel in about["curves"] for name in panel["lines"]} <= logged
    assert {f"test/{name}" for name in about["tables"]} <= logged
    assert [panel.get("levels") for panel in about["curves"]] == [None, {"limit": 0.5}, None, None]


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    wrong = ["datamodule.img_size=16", "model.discriminator.img_size=8", "logger=none"]
    assert run_forked(*QUICK, *wrong, cwd=tmp_path).returncode == 1
    (path,) = tmp_path.glob("logs/runs/*/*/run.json")
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "failed"


def test_a_killed_run_keeps_what_it_had(tmp_path: Path) -> None:
    """Nothing is held back, and what a resumed run adds follows it."""
    record = RunRecord(tmp_path, {"name": "a"})
    record.log_metrics({"train/g_loss": 0.5, "epoch": 3}, step=7)
    record.log_metrics({"train/g_loss": float("nan"), "train/d_loss": float("inf")}, step=8)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 9, "epo')  # the last line is cut
    again = RunRecord(tmp_path, {"name": "a"}, list(read_rows(tmp_path / "metrics.jsonl")))
    again.add({"val/d_confusion": [[1, 2], [3, 4]]}, step=9)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in lines(tmp_path)]
    assert rows == [
        {"step": 7, "epoch": 3, "train/g_loss": 0.5},
        {"step": 8, "epoch": 3, "train/g_loss": None, "train/d_loss": None},
        {"step": 9, "epoch": 3, "val/d_confusion": [[1, 2], [3, 4]]},
    ]
    RunRecord(tmp_path, {"name": "b"})
    assert lines(tmp_path) == []  # another run in the same folder


def test_the_best_of_all_parts_is_the_best(tmp_path: Path) -> None:
    before = {"step": 2, "epoch": 0, "seconds": 1.0, "val/fd": 0.5, "val/label_accuracy": 0.25}
    record = RunRecord(tmp_path, {"name": "a"}, [before])
    record.log_metrics({"val/fd": 0.75, "val/label_accuracy": 0.5, "val/seconds": 3.0}, step=5)
    assert record.best() == {
        "val/fd": {"min": 0.5, "last": 0.75},
        "val/label_accuracy": {"max": 0.5, "last": 0.5},
    }


def test_uncommitted_changes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("old = 1\n", encoding="utf-8")
    (tmp_path / "run.py").write_text("", encoding="utf-8")
    (tmp_path / "configs").mkdir()
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr("src.run.provenance.ROOT", tmp_path)
    record_diff(tmp_path)
    assert not (tmp_path / "diff.patch").exists()
    (tmp_path / "src" / "a.py").write_text("new = 2\n", encoding="utf-8")
    record_diff(tmp_path)
    patch = (tmp_path / "diff.patch").read_text(encoding="utf-8")
    assert "-old = 1\n+new = 2\n" in patch
