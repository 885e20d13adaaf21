"""The core install holds what the code and its tests import, and nothing else."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {"src", "tests", "run", "benchmarks"}
FILES = [ROOT / "run.py", *sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
CARRIED = (
    ROOT / "src" / "mlflow_logging" / "registered_model.py"
)  # nothing imports it: MLflow runs it, with what it needs
BY_HAND = {"tensorrt"}  # is of use on an NVIDIA GPU alone, and a message says how to install it
SERVING = ROOT / "src" / "serve"  # imported by task=serve alone, which may find nothing else installed
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(file: str) -> set[str]:
    """The packages of a requirements file, without those of the files it includes."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines if re.match(r"\w", line)}


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Each package that is imported, and whether only when a function is called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], lazy
        rarely = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or rarely
        yield from imports(node, lazy or later)


def third_party(file: Path) -> set[tuple[str, bool]]:
    """The distributions that a file needs: `PIL` is pillow's, and `mlflow` is in mlflow-skinny, too."""
    found = imports(ast.parse(file.read_text(encoding="utf-8")))
    return {
        (normal(name if name in DISTRIBUTIONS.get(name, [name]) else DISTRIBUTIONS[name][0]), lazy)
        for name, lazy in found
        if name not in OURS and name not in sys.stdlib_module_names
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_what_is_installed(file: Path) -> None:
    serving = listed("requirements-serve.txt")
    if file.is_relative_to(SERVING):
        assert {package for package, lazy in third_party(file)} <= serving
        return
    core, extras = (
        listed("requirements.txt"),
        listed("requirements-extras.txt")
        | serving
        | listed("requirements-text.txt")
        | listed("requirements-scale.txt"),
    )
    if file.is_relative_to(ROOT / "tests"):  # such a test is skipped where its tool is not there
        extras |= listed("requirements-dev.txt")
    for package, lazy in third_party(file):
        assert package in core or (package in extras | BY_HAND and (lazy or file == CARRIED)), (
            f"{package}: list it in requirements.txt, or in requirements-extras.txt and import it inside a function"
        )


def test_nothing_is_installed_for_nothing() -> None:
    imported = {package for file in FILES for package, _ in third_party(file)}
    assert listed("requirements.txt") - imported == {"pytest-xdist"}  # pytest's own: setup.cfg asks for it


def test_every_requirement_states_a_range() -> None:
    for name in (
        "requirements.txt",
        *(f"requirements-{kind}.txt" for kind in ("extras", "dev", "scale", "serve", "text")),
    ):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if re.match(r"\w", line):
                assert re.match(r"[\w.-]+(>=|==)\d", line), f"{name}: {line}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import a.b, c", {("a", False), ("c", False)}),
        ("from a.b import c\nfrom . import d", {("a", False)}),
        ("def f():\n    if x:\n        import a", {("a", True)}),
        ("class C:\n    import a\n    def f(self):\n        from b import c", {("a", False), ("b", True)}),
        ("try:\n    import a\nexcept ImportError:\n    pass", {("a", False)}),
    ],
)
def test_imports_are_found(code: str, found: set[tuple[str, bool]]) -> None:
    assert set(imports(ast.parse(code))) == found
