"""What the tests share: composing and running as a user would, quickly and away from the user's files.

Choose the cheapest that tests what is meant (seconds of CPU time):

- `compose_config(...)` composes without running: 0.1. `build(...)` makes one part.
- `typed(...)` types a command in this process; returns exit code and stderr, for mistakes: 0.2.
- `checkpoint` is a trained model, shared by all tests and workers: nothing. Copy it before changing it.
- `train_here(...)` trains in this process: 1 for two epochs of `trainer.limit_train_batches=2`, 3 of whole epochs.
- `run_forked(...)` is a command in a process of its own, for signals, exit codes and what is printed: 1 and the run.
  It is in tests/forked.py.
- `run_cli(...)` starts Python for it: 5 and the run. It is for what depends on how Python starts (PYTHON..., locales).

Expensive fixtures that no test changes are made once for all workers by `made_once`. Each test has its own `tmp_path`,
ports are chosen by the system (port 0), and nothing is written beside the sources: tests run in parallel, in any order.

What needs more than requirements.txt says so: `@pytest.mark.extras("mlflow", "curl")` names packages and programs and
skips the test without them. No other skips are allowed. A test that does other things where extras are installed is
marked, too, without names: `.ci/run` runs everything without extras, and then with them what is marked.
"""

import fcntl
import functools
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
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
from omegaconf import DictConfig, OmegaConf
from wandb.util import get_core_path

import run
from src.config.instantiate import instantiate
from src.export.to_onnx import REQUIRED
from src.run.checks import follow_data
from tests.forked import run_forked as run_forked  # for all tests

ROOT = Path(__file__).resolve().parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job of a shell's background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One folder for all tests and workers where the user has none, so that the digits' feature net is trained once.
if "DATA_DIR" not in os.environ:
    data_folder = tempfile.TemporaryDirectory(prefix="data-")
    os.environ["DATA_DIR"] = str(ROOT / "data" if (ROOT / "data").is_dir() else data_folder.name)
# Real data, a few seconds a run: the embedded digits, 22 batches of 64 an epoch, and no classifier trained at the end.
QUICK = ["datamodule=digits", "print_config=false", "trainer.enable_model_summary=false"]
QUICK += ["callbacks.quality.cas=false"]

SMALL_TEXT_MODEL = [
    "model=flow_model",
    "model/condition=digits",
    "datamodule.img_size=8",
    "model.denoiser.width=16",
    "model.denoiser.depth=1",
    "model.condition_dim=32",
]
needs_onnx = pytest.mark.extras(*REQUIRED)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker a core; none for tests that are typed one by one."""
    if config.args and all("::" in each for each in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped has failed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.extras("playwright", "chromium"))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: a collector that looks at it again and again takes a tenth of the time


def missing(item: pytest.Item) -> list[str]:
    """What a test needs, by its mark `extras`, and is not there: packages, and programs."""
    needed = {name for mark in item.iter_markers("extras") for name in mark.args}
    there = {"chromium"} if CHROMIUM else set()
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    there |= {name for name in needed if name.startswith("hydra-") and any(distributions(name=name))}
    return sorted(name for name in needed - there if not (find_spec(name) or shutil.which(name, path=beside)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if lacks := missing(item):
        programs = "chromium curl slurmctld slurmd slurm-client munge"
        pytest.skip(f"needs {', '.join(lacks)}: pip install -r requirements-dev.txt, apt-get install {programs}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test may be skipped for what its mark `extras` names and is missing, and for nothing else."""
    report = yield
    may_be = hasattr(report, "wasxfail") or (missing(item) and not item.config.getoption("no_skips"))
    if report.skipped and not may_be:
        report.outcome, report.longrepr = "failed", f"it was skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no home, no leftovers of Hydra, one seed: a test behaves the same on every machine, each time."""
    torch.manual_seed(0)
    theirs = [name for name in os.environ if name.startswith("WANDB_")]
    for name in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI", "STABLE_DIFFUSION", *theirs):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("PYTHONIOENCODING", "")  # a command that a test runs in this process sets it
    monkeypatch.delenv("PYTHONIOENCODING")
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


def build(kind: Callable[..., Any], **arguments: Any) -> Any:
    """A part as it is built from a configuration, with its arguments checked."""
    part = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments}
    return instantiate(OmegaConf.create({"part": part}), "part")


def build_model(config: DictConfig) -> Any:
    """The model of a training run."""
    follow_data(config, instantiate(config, "datamodule"))
    return instantiate(config, "model")


@pytest.fixture
def train_here(tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process; returns the run folder."""
    from src.train import train

    def run(name: str, *overrides: str) -> Path:
        run_dir = tmp_path / "logs" / "runs" / "today" / name
        run_dir.mkdir(parents=True)
        quality = not any(each.startswith("callbacks=") for each in overrides)  # else it may not be there to be changed
        quick = [each for each in QUICK if quality or not each.startswith("callbacks.quality.")]
        train(compose_config("train", *quick, f"work_dir={tmp_path}", *overrides, run_dir=run_dir))
        return run_dir

    return run


Typed = Callable[..., tuple[int, str]]
Train = Callable[..., Path]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """`python run.py ARGUMENTS` in an empty folder, in this process; returns the exit code and stderr."""

    def type_in(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        capsys.readouterr()
        code = run.main()
        return code, capsys.readouterr().err

    yield type_in
    for handler in [h for h in logging.root.handlers if type(h) in (logging.StreamHandler, logging.FileHandler)]:
        logging.root.removeHandler(handler)  # Hydra's, which write to this test's stdout and run folder
        handler.close()


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers share, and whether it is already made; the block makes it if not.

    Other workers wait until the block has ended.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with open(base / f"{name}.lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        folder = base / name
        made = bool(lock.read())
        folder.mkdir(exist_ok=True)
        yield folder, made
        if not made:
            lock.write("made")


def trained_once(tmp_path_factory: pytest.TempPathFactory, name: str, *typed: str) -> Path:
    """The last checkpoint of a run that is trained once for all workers."""
    from src.train import train

    with made_once(tmp_path_factory, name) as (folder, made):
        run_dir = folder / "logs" / "runs" / "today" / "trained"
        if not made:
            run_dir.mkdir(parents=True, exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("WANDB_MODE", "offline")
                every = [*QUICK, "logger=none", "model.ema_half_life=500", "trainer.max_epochs=2", "name=trained"]
                train(compose_config("train", *every, *typed, f"work_dir={folder}", run_dir=run_dir))
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
    return run_dir / "ckpts" / "last.ckpt"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two epochs on the digits, with a moving average, for what is done with a trained model."""
    return trained_once(tmp_path_factory, "checkpoint")


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a model that reads text."""
    return trained_once(tmp_path_factory, "text_checkpoint", *SMALL_TEXT_MODEL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's own Chromium, which looks at rendered pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
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
    """What `wandb leet inspect` prints, without starting Python to start W&B's own program."""
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    command += ["--run-file", str(file), str(file.parents[1])]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
