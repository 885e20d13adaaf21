"""MLflow for real: a server process and an S3 store, started as docker-compose.yaml starts them, and whole runs."""

import csv
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from src.errors import UserError
from src.mlflow_logging import logger as mlflow_logger
from src.mlflow_logging.logger import SteadyMLFlowLogger
from src.mlflow_logging.registry import ModelRegistry
from src.mlflow_logging.replay import flat
from src.models.mnist_gan_model import MNISTGANModel
from src.models.modules.discriminators import Discriminator
from src.models.modules.generators import Generator
from src.pictures.grid import to_uint8
from src.run.checkpoints import build_model, read_checkpoint
from src.run.files import sha256_of
from src.train import train
from tests.conftest import QUICK, ROOT, compose_config, load
from tests.forked import run_forked

PACKAGES = ("mlflow", "onnx", "onnxscript", "onnxruntime", "boto3")
WEED = shutil.which("weed", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.extras(*PACKAGES, "weed")

Train = Callable[..., Path]
KEYS = {"MLFLOW_DB_PASSWORD": "unused", "MLFLOW_S3_ACCESS_KEY": "somebody", "MLFLOW_S3_SECRET_KEY": "made-up"}
BUCKET = "mlflow"
NAME = "generator-digits-32px"
TINY = [*QUICK, "trainer.limit_train_batches=3", "callbacks.quality.cas=false"]
LONG_NOTE = "long" * 1750
# What a user types where this project is not: draws, and says what else was imported.
ELSEWHERE = """
import importlib.util, sys
import mlflow, numpy
assert importlib.util.find_spec("src") is None
model = mlflow.pyfunc.load_model(sys.argv[1])
draw = lambda labels, **params: model.predict({"labels": labels}, params=params)
three = [draw([5, 5, 3], seed=3), draw([5, 5, 3], seed=3), draw([5, 5, 3], seed=4)]
many, default = draw([*range(10)] * 30, seed=3), draw([7])
try:
    draw([10])
    refusal = ""
except Exception as error:
    refusal = str(error)
numpy.savez("drawn.npz", three=three, many=many, default=default, refusal=refusal, torch="torch" in sys.modules)
"""


class Service:
    """A server process and those that it starts, in a process group of their own; `probe` answers once it is up."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, probe: str) -> None:
        self.command, self.environment, self.folder, self.probe = command, environment, folder, probe
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it unless it runs, and waits until it answers."""
        if self.process is not None and self.process.poll() is None:
            return
        output = self.folder / "output.txt"
        with open(output, "ab") as file:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=os.environ | self.environment, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, output.read_text(encoding="utf-8")
            try:
                urllib.request.urlopen(self.probe, timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(output.read_text(encoding="utf-8"))

    def kill(self) -> None:
        """Ends it at once, without a chance to tidy up."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Stack:
    """The services `mlflow` and `s3` of docker-compose.yaml, from Python packages and with SQLite for PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]
        with ExitStack() as sockets:  # ports that nobody listens on
            free = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(11)]
            web, endpoint, *inner = [each.getsockname()[1] for each in free]
        (folder / "s3").mkdir()
        (folder / "mlflow").mkdir()

        flags = ["master", "master.port.grpc", "volume", "volume.port.grpc", "filer", "filer.port.grpc"]
        flags += ["s3.port.grpc", "admin", "admin.port.grpc"]
        ports = [f"-{flag if '.' in flag else f'{flag}.port'}={port}" for flag, port in zip(flags, inner, strict=True)]
        here = {"-dir=/data": f"-dir={folder / 's3'}", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1"}
        command = [here.get(word, word) for word in services["s3"]["command"]]
        assert WEED is not None
        self.sockets = [f"seaweedfs-*-{port}.sock" for port in (endpoint, *inner)]  # which it leaves in /tmp
        self.s3_url = f"http://127.0.0.1:{endpoint}"
        command = [WEED, *command, f"-s3.port={endpoint}", *ports]
        self.s3 = Service(command, settings(services["s3"]), folder / "s3", f"{self.s3_url}/healthz")

        here = {"mlflow": str(Path(sys.executable).with_name("mlflow")), "--host=0.0.0.0": "--host=127.0.0.1"}
        here |= {"--port=5000": f"--port={web}", "--workers=2": "--workers=1"}
        command = [here.get(word, word) for word in services["mlflow"]["command"]]
        own = {"MLFLOW_BACKEND_STORE_URI": "sqlite:///server.db", "MLFLOW_S3_ENDPOINT_URL": self.s3_url}
        self.uri = f"http://127.0.0.1:{web}"
        self.server = Service(command, settings(services["mlflow"]) | own, folder / "mlflow", f"{self.uri}/health")

    @property
    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    def start(self) -> None:
        self.s3.start()
        self.server.start()

    def kill(self) -> None:
        self.server.kill()
        self.s3.kill()
        for left in (path for name in self.sockets for path in Path("/tmp").glob(name)):
            left.unlink()

    def objects(self, prefix: str) -> dict[str, bytes]:
        """What the bucket holds under `prefix`, by the rest of its key; asked of the store itself."""
        import boto3

        access = {"aws_access_key_id": "somebody", "aws_secret_access_key": "made-up", "region_name": "us-east-1"}
        bucket = boto3.resource("s3", endpoint_url=self.s3_url, **access).Bucket(BUCKET)
        return {
            each.key.removeprefix(prefix): each.get()["Body"].read() for each in bucket.objects.filter(Prefix=prefix)
        }


def settings(service: dict[str, Any]) -> dict[str, str]:
    """A service's environment, with what `.env` would hold."""
    keys, values = re.compile(r"\$\{(\w+)[^}]*\}"), service["environment"]
    return {name: keys.sub(lambda match: KEYS[match[1]], value) for name, value in values.items()}


class SendSignal(Callback):
    """Sends a signal to a process group when an epoch begins."""

    def __init__(self, group: int, epoch: int, signum: int) -> None:
        self.group, self.epoch, self.signum = group, epoch, signum

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            os.killpg(self.group, self.signum)


def sending(stack: Stack, **epochs: int) -> list[str]:
    """Overrides that make a run send signals to the server, each when an epoch begins."""
    assert stack.server.process is not None
    typed = []
    for name, epoch in epochs.items():
        values = {"group": stack.server.process.pid, "epoch": epoch, "signum": int(getattr(signal, name))}
        typed += [f"+callbacks.{name}._target_=tests.mlflow_logging.test_mlflow.SendSignal"]
        typed += [f"+callbacks.{name}.{key}={value}" for key, value in values.items()]
    return typed


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start()
        yield stack
    finally:
        stack.kill()


@pytest.fixture
def stack(running: Stack) -> Stack:
    running.start()  # again, if the test before has killed the server or the store
    return running


@pytest.fixture(scope="module")
def trained(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of three batches on the server, with every logger there is."""
    running.start()
    work = tmp_path_factory.mktemp("work")
    run_dir = work / "logs" / "runs" / "today" / "trained"
    run_dir.mkdir(parents=True)
    more = ["logger=many_loggers", f"logger.mlflow.tracking_uri={running.uri}", "trainer.max_epochs=2"]
    more += ["model.ema_half_life=300", "model.spectral_norm_g=true", f"notes={LONG_NOTE}", "tags=[for-review]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        train(compose_config("train", *TINY, f"work_dir={work}", *more, run_dir=run_dir))
    return run_dir


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The logger's warnings so far."""
    caplog.set_level(logging.WARNING, logger=SteadyMLFlowLogger.__module__)
    return lambda: [each.getMessage() for each in caplog.records if each.name == SteadyMLFlowLogger.__module__]


def newest_run(stack: Stack) -> Any:
    """The run that began last."""
    experiment = stack.client.get_experiment_by_name("conditional-image-generation")
    return stack.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


def run_of(stack: Stack, run_dir: Path) -> Any:
    """The run whose checkpoint was registered first, which is the run in `run_dir`."""
    version = stack.client.get_model_version(NAME, "1")
    assert version.tags["checkpoint_sha256"] == sha256_of(run_dir / "ckpts" / "best.ckpt")
    return stack.client.get_run(version.run_id)


def files_of(stack: Stack, run: Any) -> dict[str, bytes]:
    """What the bucket has of a run."""
    return stack.objects(run.info.artifact_uri.removeprefix("mlflow-artifacts:/") + "/")


def pictures(stack: Stack, run: Any) -> dict[str, list[str]]:
    """The names of the pictures that the bucket has of a run, by their folder."""
    names = [name.split("/") for name in sorted(files_of(stack, run)) if name.endswith(".png")]
    return {key: [file for folder, file in names if folder == key] for key, _ in names}


def steps(stack: Stack, run: Any, metric: str) -> list[int]:
    return [point.step for point in stack.client.get_metric_history(run.info.run_id, metric)]


# A run on a server


def test_a_run_says_who_it_is_what_it_was_configured_with_and_how_it_ended(stack: Stack, trained: Path) -> None:
    run = run_of(stack, trained)

    assert run.info.status == "FINISHED"
    assert run.info.run_name == json.loads((trained / "run.json").read_text(encoding="utf-8"))["name"]
    assert run.data.tags["for-review"] == run.data.tags["digits"] == "true"
    assert run.data.tags["mlflow.note.content"] == LONG_NOTE
    config = load(trained)["config"]
    params = dict(flat(config))
    assert len(params) > 100 and params["model/optimizer_g/lr"] == str(config["model"]["optimizer_g"]["lr"])
    assert {key: run.data.params[key] for key in params} == params
    assert {"commit", "command", "data/sha256"} <= run.data.params.keys()
    # A value that is too long for a parameter is whole in the file.
    cut = run.data.params["notes"]
    assert cut.endswith("(whole in config.yaml)") and LONG_NOTE.startswith(cut.partition(" ")[0]) and len(cut) == 6000
    assert yaml.safe_load(files_of(stack, run)["config.yaml"])["notes"] == LONG_NOTE


def test_metrics_are_those_of_the_csv_file_at_the_same_batches(stack: Stack, trained: Path) -> None:
    run = run_of(stack, trained)

    rows = list(csv.DictReader((trained / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    logged = {name for name in rows[0] if name not in ("step", "epoch")}
    assert {"train/g_loss", "val/fd", "test/fd", "test/fd_floor"} <= logged
    for name in logged:
        points = stack.client.get_metric_history(run.info.run_id, name)
        expected = [row for row in rows if row[name]]
        assert [point.step for point in points] == [int(row["step"]) for row in expected], name
        values = [float(row[name]) for row in expected]
        assert [point.value for point in points] == pytest.approx(values, nan_ok=True), name
    assert steps(stack, run, "train/g_loss") == [2, 5]


def test_the_bucket_has_the_files_and_pictures_of_the_run(stack: Stack, trained: Path) -> None:
    kept = files_of(stack, run_of(stack, trained))

    for name in ["config_tree.txt", "metrics.jsonl", "results.json", "ckpts/last.ckpt", "ckpts/best.ckpt"]:
        assert kept[name] == (trained / name).read_bytes(), name
    about, ours = kept["run.json"], (trained / "run.json").read_text(encoding="utf-8")
    assert json.loads(about)["command"] == json.loads(ours)["command"]
    assert {name for name in kept if name.startswith("ckpts/")} == {"ckpts/last.ckpt", "ckpts/best.ckpt"}
    for name in ("epoch_0000.png", "epoch_0001.png"):
        assert kept[f"gen_imgs/{name}"] == (trained / "samples" / name).read_bytes()
    made = Counter(path.read_bytes() for name in ("samples", "pictures") for path in (trained / name).rglob("*.png"))
    assert Counter(content for name, content in kept.items() if name.endswith(".png")) == made


# The model registry


def test_the_tested_generator_is_a_version_that_says_where_it_comes_from(stack: Stack, trained: Path) -> None:
    run, version = run_of(stack, trained), stack.client.get_model_version(NAME, "1")

    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))["metrics"]
    about = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert float(version.tags["test/fd"]) == pytest.approx(results["test/fd"], rel=1e-5)
    assert float(version.tags["test/fd_floor"]) == pytest.approx(results["test/fd_floor"], rel=1e-5)
    assert version.tags["run_id"] == version.run_id == run.info.run_id
    assert (version.tags["data"], version.tags["data_sha256"]) == ("digits", about["data"]["sha256"])
    assert version.tags["commit"] == about["commit"]
    assert version.tags["checkpoint"] == "best.ckpt"


def test_a_version_is_made_of_code_and_onnx_without_a_pickle(stack: Stack, trained: Path) -> None:
    location = stack.client.get_model_version_download_uri(NAME, "1")
    kept = stack.objects(location.removeprefix("mlflow-artifacts:/") + "/")

    assert {"MLmodel", "registered_model.py", "artifacts/generator.onnx", "input_example.json"} <= kept.keys()
    assert not [name for name in kept if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    described = yaml.safe_load(kept["MLmodel"])
    (inputs,), (outputs,), (params,) = (
        json.loads(described["signature"][key]) for key in ("inputs", "outputs", "params")
    )
    assert (inputs["name"], inputs["type"]) == ("labels", "long")
    assert outputs["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 32, 32, 1]}
    assert (params["name"], params["default"]) == ("seed", 0)
    assert json.loads(kept["input_example.json"])["inputs"] == {"labels": [*range(10)]}
    assert str(ROOT).encode() not in kept["MLmodel"]
    packages = {re.split(r"\W", line)[0] for line in kept["requirements.txt"].decode().split()}
    assert packages == {"mlflow", "numpy", "onnxruntime"}


def test_the_champion_draws_what_the_checkpoint_draws_where_this_project_is_not(
    stack: Stack, trained: Path, tmp_path: Path
) -> None:
    uri = {"MLFLOW_TRACKING_URI": stack.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, f"models:/{NAME}@champion"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | uri, check=True)

    drawn = dict(np.load(tmp_path / "drawn.npz"))
    same, again, other = drawn["three"]
    assert same.shape == (3, 32, 32, 1) and same.dtype == np.uint8
    assert np.array_equal(same, again) and not np.array_equal(same, other)
    assert drawn["many"].shape == (300, 32, 32, 1) and drawn["default"].shape == (1, 32, 32, 1)
    assert "labels must be 0 to 9, not 10" in str(drawn["refusal"])
    assert not drawn["torch"]
    # With the average of G's weights, and its spectral norm worked in.
    path = trained / "ckpts" / "best.ckpt"
    model = build_model(read_checkpoint(path), path)
    noise = np.random.default_rng(3).standard_normal((3, 100)).astype(np.float32)
    expected = to_uint8(model.generate(torch.tensor([5, 5, 3]), noise=torch.from_numpy(noise)).numpy())
    assert np.abs(same.astype(int) - expected.astype(int)).max() <= 1
    assert same.std() > 1


def test_the_alias_moves_only_to_a_version_with_a_better_test(stack: Stack) -> None:
    generator, discriminator = Generator(3, 4, 1, 4), Discriminator(3, 1, 4)
    model = MNISTGANModel(generator, discriminator, n_classes=3, latent_dim=4, img_size=4)
    run = stack.client.create_run("0")
    registry = ModelRegistry("judged")

    holders = []
    about = {"data": {"source": "made", "sha256": "abc"}, "commit": "unknown"}
    for score in (0.5, 0.7, 0.3):
        registry.register(stack.client, run.info.run_id, model, {"test/fd": score}, about)
        holders.append(stack.client.get_registered_model("judged").aliases["champion"])

    assert holders == ["1", "1", "3"]
    assert len(stack.client.search_model_versions("name='judged'")) == 3


# Servers that fail


@pytest.fixture(scope="module")
def killed(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A run of four epochs, in whose third the server is killed."""
    running.start()
    typed = [*TINY, "trainer.max_epochs=4", "logger=mlflow", f"logger.mlflow.tracking_uri={running.uri}"]
    typed += ["callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]
    return run_forked(*typed, *sending(running, SIGKILL=2), cwd=tmp_path_factory.mktemp("killed"))


def test_a_server_that_is_killed_costs_two_sentences_and_gets_the_rest_by_a_command(
    running: Stack, killed: subprocess.CompletedProcess[str]
) -> None:
    assert killed.returncode == 0, killed.stdout + killed.stderr
    first, last = [line for line in (killed.stdout + killed.stderr).splitlines() if "WARNING" in line]
    assert f"MLflow at {running.uri} does not take what is logged (Connection refused): the run goes on" in first
    assert f"MLflow at {running.uri} lacks a part of this run (Connection refused)" in last
    running.start()
    run = newest_run(running)
    assert (run.info.status, steps(running, run, "train/g_loss")) == ("RUNNING", [2, 5])

    variable, python, *arguments = shlex.split(last.partition("type ")[2])
    name, _, value = variable.partition("=")
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=os.environ | {name: value})

    run = newest_run(running)
    assert (run.info.status, steps(running, run, "train/g_loss")) == ("FINISHED", [2, 5, 8, 11])
    run_dir = Path(arguments[-2])
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for key in ("epoch", "train/d_loss", "val/g_loss"):
        history = running.client.get_metric_history(run.info.run_id, key)
        expected = [(row["step"], row[key]) for row in rows if key in row and len(row) > 4]
        assert [(point.step, pytest.approx(point.value)) for point in history] == expected
    kept = pictures(running, run)
    assert kept["gen_imgs"] == [f"epoch_000{i}.png" for i in range(4)]
    assert kept["d_confusion"] == [*kept["gen_imgs"], "test.png"] and kept["real_imgs"] == ["real_imgs.png"]


def test_a_server_that_hangs_for_a_while_has_the_whole_record_in_the_end(
    stack: Stack, train_here: Train, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(mlflow_logger, "SECONDS", "2")  # as if it were the default: files get more time
    typed = [*TINY, "trainer.max_epochs=4", "logger=mlflow", f"logger.mlflow.tracking_uri={stack.uri}"]
    typed += ["logger.mlflow.registered_model=null"]
    run_dir = train_here("run", *typed, *sending(stack, SIGSTOP=1, SIGCONT=3))

    (sentence,) = said()
    assert "does not take what is logged (Read timed out): the run goes on, and sends the rest when it ends" in sentence
    run = newest_run(stack)
    assert steps(stack, run, "train/g_loss") == [2, 5, 8, 11]
    assert run.info.status == "FINISHED"
    assert files_of(stack, run)["ckpts/last.ckpt"] == (run_dir / "ckpts" / "last.ckpt").read_bytes()
    assert pictures(stack, run)["gen_imgs"] == [f"epoch_000{i}.png" for i in range(4)]


def test_a_store_that_is_down_loses_no_metrics(
    stack: Stack, train_here: Train, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    stack.s3.kill()

    train_here("run", *TINY, "trainer.max_epochs=2", "logger=mlflow", f"logger.mlflow.tracking_uri={stack.uri}")

    first, last = said()
    assert re.match(rf"MLflow at {stack.uri} does not take what is logged \([\w ]+\)", first)
    assert re.match(rf"MLflow at {stack.uri} lacks a part of this run \([\w ]+\), but the run folder has it", last)
    run = newest_run(stack)
    assert steps(stack, run, "train/g_loss") == [2, 5]
    assert run.info.status == "FINISHED"


def test_a_deleted_experiment_is_a_mistake_with_a_remedy(stack: Stack, tmp_path: Path) -> None:
    number = stack.client.create_experiment("gone")
    stack.client.delete_experiment(number)

    remedy = f"experiment_name=gone was deleted on {stack.uri}: type mlflow experiments restore -x {number}, or choose"
    with pytest.raises(UserError, match=re.escape(remedy)):
        SteadyMLFlowLogger("gone", str(tmp_path), tracking_uri=stack.uri)
