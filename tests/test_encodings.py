"""Text files are UTF-8, and output never ends a run, whatever the locale and the console."""

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

SOURCES = [
    ROOT / "run.py",
    *(path for folder in ("src", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")),
]
OPENS_NO_TEXT = ("Image", "archive", "gzip", "tarfile", "zipfile", "os")  # their `open` is for bytes


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
