"""The page of an ablation says what was changed, and what that is worth."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

METRICS = ("fd", "label_accuracy", "precision", "recall", "within_class_variance")


def ended(folder: Path, *typed: str, fd: float) -> Path:
    """The folder of a run for which this was typed."""
    folder.mkdir()
    metrics = {f"test/{name}{end}": 0.5 for name in METRICS for end in ("", "_floor")} | {"test/fd": fd}
    command = " ".join(["python run.py experiment=some.yaml", *typed])
    about = {"command": command, "commit": "abc", "machine": "a machine", "versions": "torch 3", "seconds": 7.2}
    (folder / "results.json").write_text(json.dumps(about | {"metrics": metrics}), encoding="utf-8")
    return folder


def test_a_row_names_its_change_and_no_more(tmp_path: Path) -> None:
    base = ended(tmp_path / "base", "trainer.max_epochs=2", "model.flip=true", fd=4.0)
    other = ended(tmp_path / "other", "trainer.max_epochs=2", "model.lr=2", "logger=csv", fd=3.25)
    page = tmp_path / "page.md"
    command = [sys.executable, "benchmarks/ablation.py", "--out", str(page), str(base), str(other)]
    subprocess.run(command, cwd=ROOT, check=True)

    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| as it is | 4.00 (0.50) | 50.0% (50.0%) |") and rows[0].endswith("| 7 |")
    assert rows[1].startswith("| `model.lr=2`, without `model.flip=true` | 3.25 (0.50) |")


def test_a_run_without_a_test_is_refused(tmp_path: Path) -> None:
    folder = ended(tmp_path / "run", fd=1.0)
    (folder / "results.json").write_text('{"metrics": {}}', encoding="utf-8")
    command = [sys.executable, "benchmarks/ablation.py", "--out", str(tmp_path / "page.md"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")

    assert done.returncode == 1 and "has no test: repeat it with test_after_training=true" in done.stderr
    assert not (tmp_path / "page.md").exists()
