"""MLflow: a run's record on a server or in a database file, which the server may leave without stopping the run."""

import http.client
import logging
import os
import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from src.errors import UserError
from src.mlflow_logging.registry import ModelRegistry, environment
from src.models.image_model import ImageModel

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 3.0
RETRY_S = 300.0  # between attempts at a server that has stopped taking what is logged
REQUEST_TIMEOUT_S, UPLOAD_TIMEOUT_S = 5, 120
# MLflow's own settings; what you have set wins. By default it waits minutes for a server that is down, tells what it
# does at length, and reports to its makers that it is used.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_S),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
# What of the run folder is kept with the run when it ends.
FILES = ("config_tree.txt", "run.json", "metrics.jsonl", "results.json", "diff.patch", "run.log")
MAX_PARAM, MAX_KEY = 6000, 250  # characters; MLflow cuts or refuses more
MAX_PARAMS, MAX_METRICS = 100, 1000  # in one call
WHOLE_VALUE = " ... (whole in config.yaml)"


def make_mlflow_logger(
    experiment_name: str,
    save_dir: str,
    run_name: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    tracking_uri: str | None = None,
    run_id: str | None = None,
    checkpoints: bool = True,
    registered_model: str | None = None,
    alias: str | None = "champion",
    judged_by: str = "test/fd",
    mode: str = "min",
) -> "SteadyMLFlowLogger":
    """An MLflow run that has begun: on a server, or without one, or where it is down, in a database file.

    Args:
        experiment_name: MLflow experiment.
        save_dir: where `mlflow.db` and `mlartifacts/` go without a server; runs share them.
        run_name: shown for the run.
        tags: words to find the run by.
        notes: free text, the run's description.
        tracking_uri: of a server; None: `MLFLOW_TRACKING_URI`, else the database in `save_dir`.
        run_id: of a run to go on with; None, or where there is no such run: a new run.
        checkpoints: whether the checkpoints are kept with the run when it ends.
        registered_model: what the tested generator is registered as, see `ModelRegistry`; None: it is not.
        alias: of the registered version with the best test; None: none.
        judged_by: the test metric that decides about `alias`.
        mode: `min` or `max`: which of its values is best.

    Raises:
        ValueError: an argument cannot be meant.
        UserError: the server refuses the user, or the experiment was deleted, or the database cannot be used.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri and (uri.startswith("file:") or not re.match(r"[a-z][a-z0-9+]+:/|databricks", uri, re.IGNORECASE)):
        raise ValueError(
            "tracking_uri (or else MLFLOW_TRACKING_URI) must be a server's such as http://127.0.0.1:5000, or null for a"
            f" database file, not {uri!r}: MLflow has given up plain folders"
        )
    if tracking_uri and _public(tracking_uri) != tracking_uri:
        raise ValueError(
            "tracking_uri must not name a user and a password, as it is recorded with the run: set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in .env"
        )
    registry = None if registered_model is None else ModelRegistry(registered_model, alias, judged_by, mode)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we say it ourselves, once
    run_tags = {_clean(tag): "true" for tag in tags} | ({"mlflow.note.content": notes} if notes else {})

    def begun(uri: str, artifacts: str | None) -> SteadyMLFlowLogger:
        logger = SteadyMLFlowLogger(experiment_name, uri, artifacts, run_name, run_tags, checkpoints, registry)
        logger.begin(run_id)
        if registry is not None and (lacks := registry.lacks()) and logger._initialized:
            log.warning("logger.mlflow.registered_model will get no version of this run, as %s", lacks)
            logger.registry = None
        if logger._initialized:
            log.info("the MLflow run, to look at: %s", logger.view)
        return logger

    folder = Path(save_dir).resolve()
    local, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlartifacts").as_uri()
    if uri:
        try:
            return begun(uri, artifacts if uri.startswith("sqlite") else None)
        except (UserError, ModuleNotFoundError):
            raise
        except Exception as error:
            if re.search(r"error code 40[13]\b", str(error)):
                raise UserError(
                    f"logger.mlflow.tracking_uri={_public(uri)} refuses you ({_reason(error)}): set"
                    " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in .env"
                ) from error
            log.warning(
                "MLflow at %s does not answer (%s): recording to %s instead",
                *(_public(uri), _reason(error), folder / "mlflow.db"),
            )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return begun(local, artifacts)
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        remedy = "choose another folder with logger.mlflow.save_dir=DIR"
        if "out-of-date database schema" in str(error):
            remedy = f"type mlflow db upgrade {local}, or move the file away"
        if "Can't locate revision" in str(error):
            remedy = "a newer MLflow made it: type pip install --upgrade mlflow, or move the file away"
        raise UserError(f"logger.mlflow cannot use {folder / 'mlflow.db'} ({_reason(error)}): {remedy}") from error


class SteadyMLFlowLogger(MLFlowLogger):
    """Lightning's logger, for servers that go away and come back.

    What cannot be sent waits. It is tried again every `RETRY_S` seconds and when the run ends, so that a server that is
    down costs a run seconds and one warning, and a server that comes back gets the whole record. How the run ended is
    told by `finish_run`, as Lightning does not know.

    Args:
        experiment_name: MLflow experiment.
        tracking_uri: of a server or a database.
        artifact_location: of a new experiment; None: the server knows.
        run_name: shown for the run.
        tags: of the run.
        checkpoints: whether checkpoints are kept with the run when it ends.
        registry: where the tested generator is registered; None: nowhere.
    """

    def __init__(
        self,
        experiment_name: str,
        tracking_uri: str,
        artifact_location: str | None = None,
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
        checkpoints: bool = True,
        registry: ModelRegistry | None = None,
    ) -> None:
        super().__init__(experiment_name, run_name, tracking_uri, tags, artifact_location=artifact_location)
        self.checkpoints = checkpoints
        self.registry = registry
        self._about: dict[str, Any] = {}  # the configuration, with command, commit and data
        self._config_waits = False
        self._known_params: set[str] = set()
        self._params: list[Any] = []  # those that wait, and so on
        self._metrics: list[Any] = []
        self._pictures: list[tuple[str, Path]] = []
        self._last_step: int | None = None  # of what was sent
        self._next_try: dict[str, float] = {}  # of the record and of files, where they could not be sent
        self._complaints: set[str] = set()

    @rank_zero_only
    def begin(self, run_id: str | None = None) -> None:
        """Finds or makes the experiment, and begins the run, or goes on with the run `run_id` where it is there.

        Raises:
            UserError: the experiment was deleted.
            Exception: the server or the database cannot be used.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        _probe(self._tracking_uri)
        client: Any = self._mlflow_client
        experiment = client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            try:
                client.create_experiment(self._experiment_name, self._artifact_location)
            except MlflowException as error:  # another run has just made it
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = client.get_experiment_by_name(self._experiment_name)
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"logger.mlflow.experiment_name={self._experiment_name} was deleted on {_public(self._tracking_uri)}:"
                f" type mlflow experiments restore -x {experiment.experiment_id}, or choose another name"
            )
        run = self._find(run_id, experiment.experiment_id) if run_id else None
        if run is None:
            run = client.create_run(experiment.experiment_id, tags=resolve_tags(self.tags), run_name=self._run_name)
        else:
            client.update_run(run_id, status="RUNNING")
            self._known_params = set(run.data.params)
        self._experiment_id, self._run_id = experiment.experiment_id, run.info.run_id
        self._initialized = True

    def _find(self, run_id: str, experiment_id: str) -> Any:
        """The run to go on with; None: it is not there any more."""
        from mlflow.exceptions import MlflowException

        try:
            run: Any = self._mlflow_client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            run = None
        if run is None or run.info.experiment_id != experiment_id or run.info.lifecycle_stage == "deleted":
            log.warning(
                "MLflow at %s: the experiment %s has no run %s to go on with: a new run begins",
                *(_public(self._tracking_uri), self._experiment_name, run_id),
            )
            return None
        return run

    @property
    def view(self) -> str:
        """Where the run can be seen, or what to type to see it."""
        if self._tracking_uri.startswith(("http://", "https://")):
            return f"{_public(self._tracking_uri).rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
        return shlex.join(["mlflow", "server", "--backend-store-uri", _public(self._tracking_uri)])

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Logs the configuration, flattened, as parameters, and whole as `config.yaml`."""
        from mlflow.entities import Param

        self._about |= vars(params) if isinstance(params, Namespace) else params
        self._config_waits = True
        for key, value in _flat(self._about):
            text = value if len(value) <= MAX_PARAM else value[: MAX_PARAM - len(WHOLE_VALUE)] + WHOLE_VALUE
            if key not in self._known_params:  # MLflow takes a parameter once
                self._known_params.add(key)
                self._params.append(Param(key, text))
        self._send()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers at `step`, the batches so far."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [
            Metric(_clean(name), float(value), now, step or 0)
            for name, value in metrics.items()
            if not isinstance(value, str)
        ]
        self._send()

    @rank_zero_only
    def log_picture(self, key: str, image: np.ndarray, caption: str, step: int, path: Path) -> None:
        """Keeps a picture with the run, in the folder `key`.

        Not with `log_image`, which would put it on an axis of steps: MLflow's page writes all parameters above such a
        picture, out of sight of which it then is.

        Args:
            key: the picture's name.
            image: uint8 [H, W, C]; what is sent is the file.
            caption: not shown.
            step: not shown; the file's name says the epoch.
            path: the same picture as a file.
        """
        self._pictures.append((_clean(key), path))
        self._send()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Does nothing: Lightning calls it after training and again after the test, and the run ends later."""

    @rank_zero_only
    def finish_run(
        self, status: str, run_dir: Path, model: LightningModule | None, metrics: Mapping[str, float]
    ) -> None:
        """Keeps the run's files with it, registers the generator of a finished run, and says how the run ended.

        Args:
            status: `finished`, `failed` or `stopped`.
            run_dir: the run folder.
            model: as it was tested; None: it was not.
            metrics: the run's last ones.
        """
        if not self._initialized:
            return
        try:
            _probe(self._tracking_uri)
        except OSError as error:
            self._complain("record", error, over=True)
            return
        self._send(at_once=True)
        if not self._next_try:
            limit = "MLFLOW_HTTP_REQUEST_TIMEOUT"
            patience = {limit: str(UPLOAD_TIMEOUT_S)} if os.environ.get(limit) == SETTINGS[limit] else {}
            with environment(**patience):  # files are large
                kept = self._tried(lambda: self._upload(run_dir), "the run's files could not be kept with it")
                if kept and status == "finished" and self.registry is not None and isinstance(model, ImageModel):
                    self._register(self.registry, model, metrics)
        try:
            client, run_id = self._run
            client.set_terminated(run_id, STATUS[status])
        except Exception as error:
            self._complain("record", error, over=True)

    def _register(self, registry: ModelRegistry, model: ImageModel, metrics: Mapping[str, float]) -> None:
        problem = "the generator was not registered"
        if registry.judged_by not in metrics:
            log.warning(
                "MLflow: %s, as the run has no %s: set logger.mlflow.judged_by to what its test measures, or"
                " logger.mlflow.registered_model=null",
                *(problem, registry.judged_by),
            )
            return
        data = self._about.get("data") or {"source": self._about.get("data_source", "images")}
        commit = str(self._about.get("commit", "unknown"))
        checkpoint = tested_checkpoint(model)
        arguments = (*self._run, model, metrics, data, checkpoint, commit)
        self._tried(lambda: log.info("MLflow: %s", registry.register(*arguments)), problem)

    @property
    def _run(self) -> tuple[Any, str]:
        """The client and the run's id."""
        return self._mlflow_client, str(self._run_id)

    def _upload(self, run_dir: Path) -> None:
        """Copies what the run folder holds besides pictures and the other loggers' files."""
        client, run_id = self._run
        for name in FILES:
            if (run_dir / name).is_file():
                client.log_artifact(run_id, str(run_dir / name))
        for path in sorted((run_dir / "ckpts").glob("*.ckpt")) if self.checkpoints else ():
            client.log_artifact(run_id, str(path), "ckpts")

    def _tried(self, work: Callable[[], object], problem: str) -> bool:
        """Whether `work` could be done; otherwise a warning says what the `problem` is."""
        try:
            work()
        except Exception as error:
            log.warning("MLflow at %s: %s (%s)", _public(self._tracking_uri), problem, _reason(error))
            self._complaints.add("record")  # if it is gone, that has been said now
            return False
        return True

    def _send(self, at_once: bool = False) -> None:
        """Sends what waits, unless that has just failed and `at_once` is false."""
        for kind, send in (("record", self._send_record), ("files", self._send_files)):
            waits_until = self._next_try.get(kind)
            if waits_until is not None and not at_once and time.monotonic() < waits_until:
                return
            try:
                if waits_until is not None:
                    _probe(self._tracking_uri)  # fails sooner than a call
                send()
            except Exception as error:
                self._next_try[kind] = time.monotonic() + RETRY_S
                self._complain(kind, error)
                return
            if self._next_try.pop(kind, None) is not None:
                log.info("MLflow at %s takes what is logged again", _public(self._tracking_uri))

    def _send_record(self) -> None:
        client, run_id = self._run
        while part := self._params[:MAX_PARAMS]:
            client.log_batch(run_id, params=part)
            del self._params[: len(part)]
        while part := self._metrics[:MAX_METRICS]:
            client.log_batch(run_id, metrics=part)
            del self._metrics[: len(part)]
            self._last_step = max(metric.step for metric in part)

    def _send_files(self) -> None:
        client, run_id = self._run
        if self._config_waits:
            client.log_dict(run_id, self._about, "config.yaml")
            self._config_waits = False
        while self._pictures:
            key, path = self._pictures[0]
            if path.is_file():
                client.log_artifact(run_id, str(path), key)
            del self._pictures[0]

    def _complain(self, kind: str, error: Exception, over: bool = False) -> None:
        """Says once what MLflow lacks; `over`: that it stays so."""
        if kind == "files":
            try:  # is it the store behind the server, or the server?
                _probe(self._tracking_uri)
            except OSError:
                kind = "record"
        if kind in self._complaints:
            return
        self._complaints.add(kind)
        where, why = _public(self._tracking_uri), _reason(error)
        if kind == "files":
            log.warning("MLflow at %s takes no files (%s): until it does, they are in the run folder alone", where, why)
            return
        reach = "before the first batch" if self._last_step is None else f"at batch {self._last_step}"
        log.warning(
            "MLflow at %s does not take what is logged (%s): its record of this run ends %s%s; the run folder has"
            " everything",
            *(where, why, reach, ", as running" if over else " until it does"),
        )


def tested_checkpoint(model: LightningModule) -> Path | None:
    """The file whose weights `model` was tested with; None: it was tested as it was."""
    callback = getattr(getattr(model, "_trainer", None), "checkpoint_callback", None)
    used = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")  # as src/train.py does
    return Path(used) if used and Path(used).is_file() else None


def _probe(uri: str) -> None:
    """Raises OSError unless the server at `uri` answers, be it with a refusal, within seconds; asks no database."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{_public(uri).rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow may have been told to trust it
            raise
    except (ValueError, http.client.HTTPException) as error:  # no address, or no HTTP
        raise OSError(str(error)) from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each value with the path to it, `model/optimizer_g/lr`."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}/")
        else:
            yield _clean(key), str(value)


def _clean(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)[:MAX_KEY]


def _public(uri: str) -> str:
    """An address without user and password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def _reason(error: Exception) -> str:
    """The one thing in an error that tells what is wrong."""
    if isinstance(error, ModuleNotFoundError):
        return f"it needs {error.name}: pip install {error.name}"
    text = _public(" ".join(str(error).split())) or type(error).__name__
    for known in (r"\[Errno -?\d+\] ([\w ]+)", r"([Rr]ead timed out|timed out)", r"Caused by .*'([^']+)'"):
        if match := re.search(known, text):
            return match[1]
    return text if len(text) <= 200 else f"{text[:200]}..."
