"""A run's record in MLflow: on a server, which may go away without stopping the run, or in a database file."""

import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.explain import EXTRAS
from src.errors import UserError
from src.export.to_onnx import REQUIRED
from src.mlflow_logging.registry import Alias, ModelRegistry, Name, TestMetric
from src.mlflow_logging.replay import clean, complete, points, send_params
from src.models.image_model import ImageModel

log = logging.getLogger(__name__)

TIMEOUT, SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", "5"
# MLflow's own settings; yours win. By default it waits minutes for a server that is down, prints much, and reports its
# use to its makers.
SETTINGS = {
    TIMEOUT: SECONDS,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class SteadyMLFlowLogger(MLFlowLogger):
    """An MLflow run that has begun: on a server, or in a database file where there is no server or it is down.

    What fails once is not tried again while the run goes on, so a server that goes away costs seconds and a warning.
    When the run ends, MLflow gets what it missed from the run folder.

    Args:
        save_dir: folder of `mlflow.db` and `mlartifacts/` without a server; runs share them.
        tracking_uri: a server's address; None: `MLFLOW_TRACKING_URI`, else the database in `save_dir`.
        run_id: the run to go on with; None, or where it does not exist: a new run.
        checkpoints: whether the checkpoints are kept with the run when it ends.
        registered_model: name under which the tested generator is registered; `{data}` and `{img_size}` in it become
            the run's; None: it is not registered.
        alias: carried by the registered version with the best test; None: by no version.
        judged_by: the test metric that decides about `alias`.
        mode: which of its values is best.

    Raises:
        ValueError: an address or a name that MLflow would refuse.
        UserError: the server refuses the user, the experiment was deleted, or the database cannot be used.
    """

    def __init__(
        self,
        experiment_name: str,
        save_dir: str,
        run_name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        tracking_uri: str | None = None,
        run_id: str | None = None,
        checkpoints: bool = True,
        registered_model: Name | None = None,
        alias: Alias | None = "champion",
        judged_by: TestMetric = "test/fd",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        if uri and (uri.startswith("file:") or not re.match(r"[a-z][a-z0-9+]+:/|databricks", uri, re.IGNORECASE)):
            raise ValueError(
                "tracking_uri (or else MLFLOW_TRACKING_URI) must be a server's such as http://127.0.0.1:5000, or null"
                f" for a database file, not {uri!r}: MLflow has given up plain folders"
            )
        if tracking_uri and public(tracking_uri) != tracking_uri:
            raise ValueError(
                "tracking_uri must not name a user and a password, as it is recorded with the run: set"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in .env"
            )
        self.registry = None if registered_model is None else ModelRegistry(registered_model, alias, judged_by, mode)
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we say it ourselves, once
        self.folder = Path(save_dir).resolve()
        self.checkpoints = checkpoints
        self._about: dict[str, Any] = {}  # the configuration, with command, commit and data
        self._missed: set[str] = set()  # `record` or `files`: what could not be sent
        run_tags = {clean(tag): "true" for tag in tags} | ({"mlflow.note.content": notes} if notes else {})
        self._begin_somewhere(uri, run_id, experiment_name=experiment_name, run_name=run_name, tags=run_tags)

    def _begin_somewhere(self, uri: str | None, run_id: str | None, **options: Any) -> None:
        """Begins the run at `uri`; without one, or where a server does not answer, in the database file."""
        file = self.folder / "mlflow.db"
        database = f"sqlite:///{file}"
        uri = uri or database
        if uri == database:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            super().__init__(tracking_uri=uri, **options)
            self._begin(run_id)
        except (UserError, ModuleNotFoundError):
            raise
        except Exception as error:
            where, why = public(uri), reason(error)
            if re.search(r"error code 40[13]\b", str(error)):
                raise UserError(
                    f"logger.mlflow.tracking_uri={where} refuses you ({why}): set MLFLOW_TRACKING_USERNAME and"
                    " MLFLOW_TRACKING_PASSWORD in .env"
                ) from error
            if uri == database:
                remedy = "choose another folder with logger.mlflow.save_dir=DIR"
                if "out-of-date database schema" in str(error):
                    remedy = f"type mlflow db upgrade {uri}, or move the file away"
                if "Can't locate revision" in str(error):
                    remedy = "a newer MLflow made it: type pip install --upgrade mlflow, or move the file away"
                raise UserError(f"logger.mlflow cannot use {file} ({why}): {remedy}") from error
            log.warning("MLflow at %s does not answer (%s): recording to %s instead", where, why, file)
            self._begin_somewhere(None, run_id, **options)

    @rank_zero_only
    def _begin(self, run_id: str | None) -> None:
        """Finds or makes the experiment. Goes on with the run `run_id` where it exists, else begins one."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        client: Any = self._mlflow_client
        where, name = public(self._tracking_uri), self._experiment_name
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            artifacts = (self.folder / "mlartifacts").as_uri() if where.startswith("sqlite") else None
            try:
                client.create_experiment(name, artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another run has just made it
                    raise
            experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"logger.mlflow.experiment_name={name} was deleted on {where}: type mlflow experiments restore -x"
                f" {number}, or choose another name"
            )
        if run_id and client.search_runs([number], f"attributes.run_id = '{run_id}'"):
            client.update_run(run_id, status="RUNNING")
        else:
            if run_id:
                message = "MLflow at %s: the experiment %s has no run %s to go on with: a new run begins"
                log.warning(message, where, name, run_id)
            run_id = client.create_run(number, tags=resolve_tags(self.tags), run_name=self._run_name).info.run_id
        self._experiment_id, self._run_id, self._initialized = number, run_id, True
        page = f"{where.rstrip('/')}/#/experiments/{number}/runs/{run_id}"
        typed = shlex.join(["mlflow", "server", "--backend-store-uri", where])
        log.info("the MLflow run, to look at: %s", page if where.startswith("http") else typed)
        if self.registry and (missing := [package for package in REQUIRED if find_spec(package) is None]):
            log.warning(
                "logger.mlflow.registered_model will get no version of this run, as that needs %s: %s",
                *(", ".join(missing), EXTRAS),
            )
            self.registry = None

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs the configuration, flattened, as parameters, and whole as `config.yaml`."""
        self._about |= params
        self._send("record", lambda client, run_id: send_params(client, run_id, self._about))
        self._send("files", lambda client, run_id: client.log_dict(run_id, self._about, "config.yaml"))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._send("record", lambda client, run_id: client.log_batch(run_id, points(metrics, step, time.time())))

    @rank_zero_only
    def log_picture(self, key: str, image: np.ndarray, caption: str, step: int, path: Path) -> None:
        """Keeps the picture's file with the run, in the folder `key`."""
        # Not with `log_image`: MLflow's page writes all parameters above such a picture, and pushes it out of sight.
        self._send("files", lambda client, run_id: client.log_artifact(run_id, str(path), clean(key)))

    def _send(self, kind: str, send: Callable[[Any, str], object]) -> None:
        """Calls `send(client, run_id)`, unless that has failed before for this kind."""
        if kind in self._missed:
            return
        try:
            send(self._mlflow_client, str(self._run_id))
        except Exception as error:
            if not self._missed:
                log.warning(
                    "MLflow at %s does not take what is logged (%s): the run goes on, and sends the rest when it ends",
                    *(public(self._tracking_uri), reason(error)),
                )
            self._missed.add(kind)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Does nothing: Lightning calls it after training and again after the test, and the run ends later."""

    def finish_run(self, trainer: Trainer, status: str, metrics: Mapping[str, float]) -> None:
        """Sends what MLflow missed and the run's files, and registers the generator of a finished run."""
        client, run_id, run_dir = self._mlflow_client, str(self._run_id), trainer.default_root_dir
        where = public(self._tracking_uri)
        try:
            client.get_run(run_id)  # does it answer, within seconds?
            with patch.dict(os.environ, {TIMEOUT: "120"} if os.environ[TIMEOUT] == SECONDS else {}):  # for uploads
                complete(client, run_id, Path(run_dir), status, self.checkpoints, self._missed)
        except Exception as error:
            typed = shlex.join(["python", "-m", "src.mlflow_logging.replay", run_dir, run_id])
            log.warning(
                "MLflow at %s lacks a part of this run (%s), but the run folder has it. To send it later, type"
                " MLFLOW_TRACKING_URI=%s %s",
                *(where, reason(error), where, typed),
            )
            return
        model, saved = trainer.lightning_module, trainer.checkpoint_callback
        if status == "finished" and self.registry and isinstance(model, ImageModel):
            tested = Path(getattr(saved, "best_model_path", "") or getattr(saved, "last_model_path", ""))
            checkpoint, step = tested if tested.is_file() else None, trainer.global_step
            try:
                said = self.registry.register(client, run_id, model, metrics, self._about, checkpoint, step)
                log.info("MLflow: %s", said)
            except Exception as error:
                log.warning("MLflow at %s: the generator was not registered (%s)", where, reason(error))


def public(uri: str) -> str:
    """An address without user and password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def reason(error: Exception) -> str:
    """What is wrong, from an error that says more."""
    text = public(" ".join(str(error).split())) or type(error).__name__
    for known in (r"\[Errno -?\d+\] ([\w ]+)", r"([Rr]ead timed out|timed out)", r"Caused by .*'([^']+)'"):
        if match := re.search(known, text):
            return match[1]
    return text if len(text) <= 200 else f"{text[:200]}..."
