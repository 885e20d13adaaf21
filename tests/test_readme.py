"""README's own examples: each file is written as shown, and each command does what it says."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, load
from tests.forked import run_forked

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```bash test\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
QUICK = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none", "hydra.run.dir=run"]
QUICK += ["callbacks.quality.cas=false"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with README's files added."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    for name, text in FILES:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_there_is_an_example_of_each_kind() -> None:
    folders = {str(Path(name).parent) for name, _ in FILES}

    assert {"configs/experiment", "src/models/modules", "src/models", "src/datamodules"} <= folders
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(copy: Path, command: str) -> None:
    shutil.rmtree(copy / "run", ignore_errors=True)
    python, *words = shlex.split(command)
    assert (python, words[0]) == ("python", "run.py")

    done = run_forked(*words[1:], *QUICK, cwd=copy, root=copy)

    assert done.returncode == 0, done.stderr
    config = load(copy / "run")["config"]
    changed = [word.partition("=")[::2] for word in words[1:] if "._target_=" in word or word.startswith("model.")]
    for key, value in changed:
        node = config
        for part in key.split("."):
            node = node[part]
        assert str(node) == value
    assert (copy / "run" / "samples" / "epoch_0000.png").exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!https?://)[^)#]+)\)", README))))
def test_what_readme_shows_or_links_exists(path: str) -> None:
    assert (ROOT / path).is_file()
