"""What the tests share: composing and running as a user would, quickly and away from the user's files."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the processes that tests start: threads that wait for each other make a
# busy machine ten times slower, and networks this small hardly gain from them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.drawing.onnx_export import REQUIRED

ROOT = Path(__file__).resolve().parents[1]
# One folder for all tests where the user has none, so that the digits' feature net is trained once.
data_folder = tempfile.TemporaryDirectory(prefix="data-")
os.environ.setdefault("DATA_DIR", str(ROOT / "data" if (ROOT / "data").is_dir() else data_folder.name))
# Real data, a few seconds a run: the embedded digits, 22 batches of 64 an epoch.
QUICK = ["datamodule=digits", "print_config=false", "trainer.enable_model_summary=false"]


needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, REQUIRED)), reason="needs pip install -r requirements-extras.txt"
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no home, no leftovers of Hydra: a test behaves the same on every machine."""
    for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def compose_config(task: str, *overrides: str, run_dir: Path | None = None) -> DictConfig:
    """The configuration as `python run.py` composes it, with Hydra's own part where a run folder is given."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(task, list(overrides), return_hydra_config=True)
    config.hydra.runtime.output_dir = str(run_dir)
    config.hydra.runtime.cwd = str(run_dir)
    HydraConfig.instance().set_config(config)
    return config


@pytest.fixture
def train_here(tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process; returns the run folder."""
    from src.train import train

    def run(name: str, *overrides: str) -> Path:
        run_dir = tmp_path / "logs" / "runs" / "today" / name
        run_dir.mkdir(parents=True)
        train(compose_config("train", *QUICK, f"work_dir={tmp_path}", *overrides, run_dir=run_dir))
        return run_dir

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two epochs on the digits, with a moving average, for what is done with a trained model."""
    from src.train import train

    folder = tmp_path_factory.mktemp("checkpoint")
    run_dir = folder / "logs" / "runs" / "today" / "trained"
    run_dir.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        typed = [*QUICK, "logger=none", "model.ema_half_life=500", "trainer.max_epochs=2", "name=trained"]
        train(compose_config("train", *typed, f"work_dir={folder}", run_dir=run_dir))
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    return run_dir / "ckpts" / "last.ckpt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's own Chromium, which looks at rendered pages."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed: pip install -r requirements-dev.txt")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


def run_cli(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python run.py ...` in a process of its own, in an empty folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


def load(run_dir: Path) -> dict[str, Any]:
    """The run's last checkpoint."""
    return torch.load(run_dir / "ckpts" / "last.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, everywhere in two nested structures."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@functools.cache
def wandb_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of the ended run's local W&B file, read by W&B's own reader."""
    for _ in range(50):  # the last record can lag behind `finish()`
        records = [json.loads(line) for line in _inspect(run_dir).splitlines()]
        if records[-1]["type"] == "exit":
            return records
        time.sleep(0.2)
    raise AssertionError(f"the W&B run in {run_dir} has not ended")


def wandb_run(run_dir: Path) -> dict[str, Any]:
    """What the run's local W&B file says of it: `name`, `group`, `tags`, `state`, `config`, `summary`, ..."""
    begun = next(record["run"] for record in wandb_records(run_dir) if record["type"] == "run")
    more = {"tags": begun["tags"], "group": begun["run_group"], "job_type": begun["job_type"]}
    return json.loads(_inspect(run_dir, "--summary")) | more


def _inspect(run_dir: Path, *options: str) -> str:
    (folder,) = run_dir.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
