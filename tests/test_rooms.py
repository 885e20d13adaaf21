"""The house: imports run one way, and a room that training does not need can be deleted."""

import ast
import json
import shutil
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.forked import run_forked

# A room may import itself and those of the lines before its own.
LEVELS = [
    ["errors"],
    ["config", "pictures"],
    ["models"],
    ["datamodules"],
    ["run"],
    ["metrics", "sampling"],
    ["export"],
    ["callbacks", "mlflow_logging"],
    ["train", "sample", "interpolate", "evaluate", "serve", "report"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
OPTIONAL = {
    "sample": ["src/sample.py", "configs/sample.yaml"],
    "interpolate": ["src/interpolate.py", "configs/interpolate.yaml"],
    "evaluate": ["src/evaluate", "configs/evaluate.yaml"],
    "export": ["src/export", "configs/export.yaml"],
    "serve": ["src/serve", "configs/serve.yaml"],
    "report": ["src/report", "configs/report.yaml"],
    "mlflow_logging": ["src/mlflow_logging", "configs/logger/mlflow.yaml"],
}
FILES = sorted((ROOT / "src").rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """The modules of this project that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names = [f"src.{each.name}" for each in node.names] if node.module == "src" else [node.module or ""]
        yield from (name for name in names if name.startswith("src."))


def test_every_room_has_a_level() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("room", LEVEL)
def test_imports_run_one_way(room: str) -> None:
    for file in (each for each in FILES if room_of(each) == room):
        for other in {name.split(".")[1] for name in imported(file)} - {room}:
            assert LEVEL[other] < LEVEL[room], f"{file.relative_to(ROOT)} imports src.{other}"


def test_no_files_import_each_other() -> None:
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    tuple(TopologicalSorter({name: [*imported(file)] for name, file in names.items()}).static_order())


@pytest.mark.parametrize("room", OPTIONAL)
def test_training_does_without(room: str, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", copy)
    for part in (copy / each for each in OPTIONAL[room]):
        shutil.rmtree(part) if part.is_dir() else part.unlink()

    typed = ["datamodule=digits", "trainer.max_steps=2", "callbacks=none", "optimized_metric=null"]
    typed += ["logger=many_loggers", "~logger.tensorboard"] if room == "mlflow_logging" else ["logger=csv"]
    done = run_forked(*typed, "test_after_training=false", cwd=tmp_path, root=copy)

    assert done.returncode == 0, done.stderr
    (about,) = tmp_path.glob("logs/runs/*/*/run.json")
    assert json.loads(about.read_text(encoding="utf-8"))["status"] == "finished"
