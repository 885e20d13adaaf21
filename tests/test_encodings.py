"""Text files are UTF-8, and output never ends a run, whatever the locale and the console."""

import ast
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import run
from src.run.console import show_what_can_be_shown
from tests.conftest import ROOT, Typed, run_cli

SOURCES = [
    ROOT / "run.py",
    *(path for folder in ("src", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")),
]
OPENS_NO_TEXT = ("Image", "archive", "gzip", "opener", "tarfile", "zipfile", "os")  # their `open` is for bytes


def in_the_locales_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text and do not say in which encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in keywords:
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", None)
        if name == "open" and not (method and ast.unparse(call.func.value) in OPENS_NO_TEXT):
            at = 0 if method else 1  # of the mode
            mode = keywords.get("mode", call.args[at] if len(call.args) > at else None)
            is_text = "b" not in getattr(mode, "value", "r")
        else:
            is_text = name in ("read_text", "write_text") or ("text" in keywords and name in ("run", "Popen"))
        if is_text:
            yield call


def test_every_text_file_names_its_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path in SOURCES
        for call in in_the_locales_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_what_cannot_be_encoded_is_shown_in_a_plainer_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show_what_can_be_shown()
    print("• größe… ↑ 你 \udcf6 \u2839", flush=True)
    assert written.getvalue() == b"* gro?e... ^ ? ? *\n"
    assert os.environ["PYTHONIOENCODING"] == "ascii:replace"  # for the processes that are started


TEXT = "größe 你好 😀"


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "gbk"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["a GBK console", "the C locale"],
)
def test_a_run_where_text_cannot_be_shown(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "größe 😀"
    folder.mkdir()
    short = ["datamodule=digits", "callbacks=progress", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    process = run_cli(*short, f"name='{TEXT}'", f"notes='{TEXT}'", "hydra.run.dir=run", cwd=folder, **environment)
    assert process.returncode == 0, process.stderr
    run_dir = folder / "run"
    about = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert about["name"] == about["config"]["notes"] == TEXT
    assert f"name: {TEXT}" in (run_dir / "config_tree.txt").read_text(encoding="utf-8")
    assert f"name='{TEXT}'" in (run_dir / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_env_file_as_editors_on_windows_save_it(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("A_NAME=größe\r\nANOTHER=2\r\n", encoding=encoding)
    for name in ("A_NAME", "ANOTHER"):  # to be removed again afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "task=none"])
    assert run.main() == 2
    assert (os.environ["A_NAME"], os.environ["ANOTHER"]) == ("größe", "2")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("A_NAME=ok\n# größe\nDATA_DIR /data\n".encode(), ", line 3, is not NAME=value: mend or delete it"),
        (b'DATA_DIR="/data\n', ", line 1, is not NAME=value: mend or delete it"),
        ("A_NAME=größe\n".encode("cp1252"), " cannot be read ('utf-8' codec can't decode byte 0xf6"),
        ("A_NAME=1\n".encode("utf-16-le"), " cannot be read (it has null bytes): save it as UTF-8 text"),
        (b"A_NAME=a\x00b\n", " cannot be read (it has null bytes): save it as UTF-8 text of NAME=value lines"),
        (b"\xff\xfe\x00junk", " cannot be read ('utf-16-le' codec"),
    ],
)
def test_a_broken_env_file_is_told(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed
) -> None:
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.delenv("A_NAME", raising=False)
    code, said = typed("task=nothing")
    assert code == 2 and said.startswith(f"error: {tmp_path / '.env'}{says}") and "A_NAME" not in os.environ


def test_a_configuration_that_is_not_utf8_is_named(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_bytes("# Größe\n".encode("latin-1"))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr("src.run.failures.CONFIGS", tmp_path / "configs")
    code, said = typed("experiment=mine")
    assert code == 2 and len(said.splitlines()) == 1
    assert f"{tmp_path / 'configs' / 'experiment' / 'mine.yaml'} cannot be read" in said and "UTF-8" in said
