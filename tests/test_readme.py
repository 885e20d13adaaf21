"""The examples of README and docs/: each file is written as shown, and each command does what it says."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, compose_config, load
from tests.forked import run_forked

PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "".join(PAGES.values())
FILES = re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```bash test\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINKS = {  # of each page: the file, and the heading in it or ""
    page: [
        ((page.parent / path).resolve() if path else page, heading)
        for path, heading in re.findall(r"\]\((?!\w+://)([^)#\s]*)#?([^)\s]*)\)", text)
    ]
    for page, text in PAGES.items()
}
QUICK = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none", "hydra.run.dir=run"]
QUICK += ["callbacks.quality.cas=false"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files of the examples added."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    for name, text in FILES:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_there_is_an_example_of_each_kind() -> None:
    folders = {str(Path(name).parent) for name, _ in FILES}

    assert {"configs/experiment", "src/models/modules", "src/models", "src/datamodules", "src/callbacks"} <= folders
    assert len(COMMANDS) == 7


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
        for part in key.removeprefix("+").split("."):
            node = node[part]
        assert str(node) == value
    assert (copy / "run" / "samples" / "epoch_0000.png").exists()


def test_the_python_example_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python test\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(checkpoint.parents[5])
    names: dict[str, Any] = {}

    exec(code, names)

    assert names["fives"].shape == (16, 32, 32, 1) and names["fives"].dtype == "uint8"


def test_the_keys_that_pages_name_exist() -> None:
    options = [["callbacks=inception", "model/networks=residual"], ["datamodule=folder"], ["callbacks=clip_score"]]
    options += [["model=flow_model", "model/condition=text", "model/text_encoder=frozen"], ["model=stable_diffusion"]]
    configs = [compose_config("train", *each) for each in options]
    keys = set(re.findall(r"(?<![\w+])((?:trainer|model|datamodule|callbacks)\.[\w.]+)=", TEXT))
    assert len(keys) > 20
    assert not [key for key in keys if all(OmegaConf.select(each, key, default="-") == "-" for each in configs)]


def test_readme_is_short() -> None:
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in LINKS[page]:
        assert path.is_file()
        titles = [
            re.sub(r"[^\w -]", "", title.lower())
            for title in re.findall(r"^#+ (.*)$", PAGES.get(path, ""), re.MULTILINE)
        ]
        assert not heading or heading in [title.replace(" ", "-") for title in titles]


def test_every_page_can_be_reached_from_readme() -> None:
    found, new = set(), {ROOT / "README.md"}
    while new:
        found |= new
        new = {path for page in new for path, _ in LINKS[page] if path in PAGES} - found
    assert found == PAGES.keys()
