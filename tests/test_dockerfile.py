"""What the Dockerfile promises, as far as it shows without Docker; tests/test_serve.py runs its command."""

import json
import re
from pathlib import Path

from tests.conftest import ROOT
from tests.test_requirements import listed

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line and not line.startswith("#")]


def steps(name: str) -> list[str]:
    return [rest for word, rest in STEPS if word == name]


def test_the_image_is_pinned_and_small() -> None:
    (image,) = steps("FROM")
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", image)


def test_nothing_of_torch_is_installed() -> None:
    (install,) = (run for run in steps("RUN") if "pip install" in run)
    assert re.findall(r"-r (\S+)", install) == ["requirements-serve.txt"]
    text = (ROOT / "requirements-serve.txt").read_text(encoding="utf-8")
    assert not re.search(r"^-r", text, re.MULTILINE)
    assert not listed("requirements-serve.txt") & {"torch", "torchvision", "pytorch-lightning", "wandb", "scikit-learn"}


def test_what_is_copied_is_there_and_sent() -> None:
    copied = [name for each in steps("COPY") for name in each.split()[:-1]]
    assert {"run.py", "configs", "src", "requirements-serve.txt"} <= set(copied)
    sent = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    for name in copied:
        assert (ROOT / name).exists() and name in sent
    assert sorted(sent) == sorted(copied) and not any(Path(name).name.startswith(".env") for name in sent)


def test_it_does_not_run_as_root() -> None:
    order = [word for word, _ in STEPS]
    (user,) = steps("USER")
    assert user not in ("root", "0") and any(user in run and "useradd" in run for run in steps("RUN"))
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_signals_reach_the_server_and_its_health_is_asked_for() -> None:
    (entry,) = map(json.loads, steps("ENTRYPOINT"))  # a list: no shell in between
    assert entry[:3] == ["python", "run.py", "task=serve"] and "host=0.0.0.0" in entry
    (port,) = (word.partition("=")[2] for word in entry if word.startswith("port="))
    assert steps("EXPOSE") == [port]
    (check,) = steps("HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/ready" in check
