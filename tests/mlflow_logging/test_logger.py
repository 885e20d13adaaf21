"""MLflow without a server: runs in a database file. test_mlflow.py has a server."""

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pytorch_lightning import Callback, Trainer

from src.errors import UserError
from src.mlflow_logging import logger as mlflow_logger
from src.mlflow_logging.logger import SteadyMLFlowLogger

pytestmark = pytest.mark.extras("mlflow")

Train = Callable[..., Path]
SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=3"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, as making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("tables")
    SteadyMLFlowLogger("experiment", str(folder))
    return folder / "mlflow.db"


@pytest.fixture
def database(tables: Path, tmp_path: Path) -> Path:
    """A copy of it, where runs in `tmp_path` look for theirs."""
    copy = tmp_path / "logs" / "mlflow.db"
    copy.parent.mkdir()
    with closing(sqlite3.connect(tables)) as ours, closing(sqlite3.connect(copy)) as theirs:
        ours.backup(theirs)
    return copy


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    """A client of the database file in `folder`, and the runs in it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'logs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("conditional-image-generation")
    return client, client.search_runs([experiment.experiment_id])


class Interrupting(Callback):
    """Interrupts training in its second epoch, as a user or an error would."""

    def __init__(self, by_signal: bool) -> None:
        self.by_signal = by_signal

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step != 4:
            return
        if self.by_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise RuntimeError("something broke")


def test_mlflow_without_a_server_has_record_files_and_champion(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = train_here("run", "logger=mlflow", "callbacks.quality.cas=false", *SHORT)

    client, (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/g_loss")] == [2, 5]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "test/fd")] == [6]
    kept = tmp_path / "logs" / "mlartifacts" / run.info.run_id / "artifacts"
    for name in ("config_tree.txt", "ckpts/last.ckpt", "ckpts/best.ckpt"):
        assert (kept / name).read_bytes() == (run_dir / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    champion = mlflow.pyfunc.load_model("models:/generator-digits-32px@champion")
    assert champion.predict({"labels": [5, 3]}).shape == (2, 32, 32, 1)
    assert champion.metadata.run_id == run.info.run_id


@pytest.mark.parametrize(("by_signal", "status"), [(False, "FAILED"), (True, "KILLED")])
@pytest.mark.usefixtures("database")
def test_an_mlflow_run_ends_as_it_did(train_here: Train, tmp_path: Path, by_signal: bool, status: str) -> None:
    stop = {"_target_": f"{__name__}.Interrupting", "by_signal": by_signal}
    interrupt = [f"+callbacks.stop.{key}={value}" for key, value in stop.items()]
    with pytest.raises(SystemExit if by_signal else RuntimeError):
        train_here("run", "logger=mlflow", "callbacks=checkpoint", *interrupt, *SHORT)

    client, (run,) = mlflow_runs(tmp_path)
    assert run.info.status == status
    assert "ckpts/last.ckpt" in [each.path for each in client.list_artifacts(run.info.run_id, "ckpts")]
    assert client.search_registered_models() == []


def test_an_mlflow_server_that_is_down_costs_a_sentence_and_no_record(
    train_here: Train,
    tmp_path: Path,
    database: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    train_here("run", "logger=mlflow", "callbacks=checkpoint", "logger.mlflow.registered_model=null", *SHORT)

    (said,) = [
        each.getMessage() for each in caplog.records if "MLflow" in each.getMessage() and each.levelname == "WARNING"
    ]
    assert f"MLflow at http://127.0.0.1:9 does not answer (Connection refused): recording to {database}" in said
    client, (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/g_loss")] == [2, 5]
    assert "secret" not in caplog.text


class Refusing(BaseHTTPRequestHandler):
    """A server that wants to know who asks."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def test_an_mlflow_server_that_refuses_the_user_is_a_mistake(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=rf"tracking_uri={uri} refuses you .*: set MLFLOW_TRACKING_USERNAME and"):
            SteadyMLFlowLogger("experiment", str(tmp_path), tracking_uri=uri)
        server.shutdown()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("database")
def test_an_mlflow_run_without_a_test_metric_registers_nothing(
    train_here: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_here("run", "logger=mlflow", "callbacks=checkpoint", "logger.mlflow.checkpoints=false", *SHORT)

    (said,) = [each.getMessage() for each in caplog.records if "registered" in each.getMessage()]
    assert "the run has no test/fd: set logger.mlflow.judged_by" in said
    client, (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FINISHED" and client.search_registered_models() == []
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert "config_tree.txt" in kept and "ckpts" not in kept


@pytest.mark.parametrize("run_id", ["0" * 32, "no id"])
def test_an_mlflow_run_that_is_gone_begins_anew(database: Path, caplog: pytest.LogCaptureFixture, run_id: str) -> None:
    caplog.set_level("WARNING")  # whatever a test before this one has set
    first = SteadyMLFlowLogger("experiment", str(database.parent))
    again = SteadyMLFlowLogger("experiment", str(database.parent), run_id=first.version)
    assert again.version == first.version and not caplog.records
    other = SteadyMLFlowLogger("experiment", str(database.parent), run_id=run_id)
    assert other.version not in (first.version, run_id)
    (said,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert said.endswith(f"the experiment experiment has no run {run_id} to go on with: a new run begins")


def test_a_database_of_another_mlflow_is_named_with_a_remedy(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ff01da956556'")
        connection.commit()

    remedy = rf"cannot use {database} .*: type mlflow db upgrade sqlite:///{database}, or move"
    with pytest.raises(UserError, match=remedy):
        SteadyMLFlowLogger("experiment", str(database.parent))


def test_a_missing_package_for_the_registry_is_named_when_the_run_begins(
    database: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_logger, "find_spec", lambda package: None if package == "onnxscript" else True)

    logger = SteadyMLFlowLogger("experiment", str(database.parent), registered_model="generator")

    assert "as that needs onnxscript: pip install -r requirements-extras.txt" in caplog.text
    assert logger.registry is None
