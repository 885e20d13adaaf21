"""Trained generators in MLflow's model registry, and the alias that the best of them carries."""

import contextlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config.explain import EXTRAS
from src.export.to_onnx import REQUIRED, export_generator
from src.models.image_model import ImageModel
from src.run.files import sha256_of
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.sampling.checkpoint_sampler import about_model

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

MODEL_CODE = Path(__file__).with_name("registered_model.py")
RANKING = (*LOWER_IS_BETTER, *HIGHER_IS_BETTER)
# The tags that two versions must share to be compared.
SAME = {"data": "another data set", "data_sha256": "other images", "img_size": "another image size"}
DESCRIPTION = (
    "Draws images of a class. Load it with mlflow.pyfunc.load_model(uri), and draw with"
    ' .predict({"labels": [5, 5, 3]}, params={"seed": 0}): images uint8 [N, H, W, C].'
)


class ModelRegistry:
    """Registers each finished run's generator as a version, and lets an alias follow the best.

    A version is an ONNX file with `registered_model.py`, which needs mlflow, numpy and onnxruntime and nothing of this
    project. Its tags say where it comes from: the run, the commit, the data with their checksum, the checkpoint with
    its checksum, and the test's metrics. Numbers compare within one data set and image size alone, so an alias never
    moves from one to another.

    Args:
        registered_model: what versions are registered under; `{data}` and `{img_size}` in it become the run's.
        alias: of the version with the best test; None: no alias is moved.
        judged_by: the test metric that decides.
        mode: `min` or `max`: which of its values is best.

    Raises:
        ValueError: an argument cannot be meant.
    """

    def __init__(
        self,
        registered_model: str = "generator-{data}-{img_size}px",
        alias: str | None = "champion",
        judged_by: str = "test/fd",
        mode: str = "min",
    ) -> None:
        plain = re.sub(r"\{(data|img_size)\}", "", registered_model)
        if not registered_model.strip() or re.search(r"[/:{}]", plain):
            raise ValueError(
                "registered_model must be a name without / and :, in which {data} and {img_size} may stand, or null,"
                f" not {registered_model!r}"
            )
        if alias is not None and not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", alias, re.IGNORECASE):
            raise ValueError(f"alias must be a word other than latest and v1, v2, ..., or null, not {alias!r}")
        split, _, measured = judged_by.partition("/")
        if split != "test" or not measured:
            raise ValueError(f"judged_by must be a metric of the test such as test/fd, not {judged_by!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, not {mode!r}")
        wanted = "max" if measured in HIGHER_IS_BETTER else "min" if measured in LOWER_IS_BETTER else mode
        if mode != wanted:
            raise ValueError(
                f"mode is {mode}, by which the worst {judged_by} would win: set logger.mlflow.mode={wanted}"
            )
        self.registered_model = registered_model
        self.alias = alias
        self.judged_by = judged_by
        self.mode = mode

    @staticmethod
    def lacks() -> str | None:
        """What has to be installed before anything can be registered, in a sentence; None: nothing."""
        missing = [package for package in REQUIRED if find_spec(package) is None]
        return f"that needs {', '.join(missing)}: {EXTRAS}" if missing else None

    def name_for(self, data: Mapping[str, Any], model: ImageModel) -> str:
        """The registered model's name for a run on `data`."""
        source = re.sub(r"[/:]", "-", str(data.get("source", "images")))
        return self.registered_model.replace("{data}", source).replace("{img_size}", str(model.img_size))

    def register(
        self,
        client: "MlflowClient",
        run_id: str,
        model: ImageModel,
        metrics: Mapping[str, float],
        data: Mapping[str, Any],
        checkpoint: Path | None,
        commit: str,
    ) -> str:
        """Registers `model` as a new version, and moves the alias to it if its test is the best so far.

        Args:
            client: of the server.
            run_id: the run that trained the model.
            model: as it was tested.
            metrics: the run's last ones.
            data: what the run says about its data: `source`, `sha256`.
            checkpoint: the file that was tested.
            commit: of the code.

        Returns:
            What was done, in a sentence.

        Raises:
            Exception: the model cannot be exported, or the server does not take it.
        """
        from mlflow.exceptions import MlflowException

        name = self.name_for(data, model)
        tested = {key: value for key, value in metrics.items() if self._ranks(key)}
        floor = f"{self.judged_by}_floor"
        tags = {key: f"{metrics[key]:.7g}" for key in (self.judged_by, floor) if key in metrics}
        tags |= {"run_id": run_id, "commit": commit, "img_size": str(model.img_size)}
        tags |= {"data": str(data.get("source", "")), "data_sha256": str(data.get("sha256", ""))}
        if checkpoint is not None:
            tags |= {"checkpoint": checkpoint.name, "checkpoint_sha256": sha256_of(checkpoint)}

        run = client.get_run(run_id)
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / "generator.onnx"
            export_generator(model, onnx, about_model(model, "ema", run.info.run_name, data, commit, checkpoint))
            logged = client.create_logged_model(
                run.info.experiment_id, "generator", run_id, tags, model_type="image generator"
            )
            try:
                # Some versions of MLflow look for a server while they save, and would make a database where we are.
                with environment(MLFLOW_TRACKING_URI=client.tracking_uri):
                    saved = save_model(
                        Path(folder) / "model", onnx, model, logged.model_id, logged.artifact_location, run_id
                    )
                client.log_model_artifacts(logged.model_id, str(saved))
            except Exception:
                with contextlib.suppress(Exception):
                    client.finalize_logged_model(logged.model_id, "FAILED")
                raise
        client.finalize_logged_model(logged.model_id, "READY")
        self._link(client, run, logged.model_id, tested)

        with contextlib.suppress(MlflowException):  # it is there already; what else is wrong the next call says
            client.create_registered_model(name, description=DESCRIPTION)
        real = f" (real images {metrics[floor]:.4g})" if floor in metrics else ""
        description = f"{run.info.run_name}: {self.judged_by} {metrics[self.judged_by]:.4g}{real}"
        version = client.create_model_version(
            name, logged.artifact_location, run_id, tags, description=description, model_id=logged.model_id
        ).version
        made = f"{name} version {version}"
        if self.alias is None:
            return f"{made} is registered"
        holder = client.get_registered_model(name).aliases.get(self.alias)
        is_better, why = self.compare(tags, self._tags_of(client, name, holder) if holder else None)
        if not is_better:
            stays = f"version {holder} stays the {self.alias}" if holder else f"there is no {self.alias}"
            return f"{made} is registered, but {stays}: {why}"
        client.set_registered_model_alias(name, self.alias, version)
        return f"{made} is the {self.alias}: {why}"

    def compare(self, ours: Mapping[str, str], theirs: Mapping[str, str] | None) -> tuple[bool, str]:
        """Whether a version is better than the alias's present one, and why, from the tags of both.

        Args:
            ours: the new version's.
            theirs: those of the version that has the alias; None: there is none.
        """
        score = number(ours, self.judged_by)
        if not math.isfinite(score):
            return False, f"its {self.judged_by} is not known"
        if theirs is None:
            return True, f"{self.judged_by} {score:.4g}, and it is the first"
        for key, what in SAME.items():
            if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
                return False, f"that one has {what}, on which numbers do not compare"
        best = number(theirs, self.judged_by)
        if not math.isfinite(best):
            return False, f"the {self.alias} has no tag {self.judged_by} to compare with"
        is_better = score < best if self.mode == "min" else score > best
        return is_better, f"{self.judged_by} {score:.4g} is {'' if is_better else 'not '}better than {best:.4g}"

    def _tags_of(self, client: "MlflowClient", name: str, version: str) -> dict[str, str]:
        """A version's tags; if it was judged by something else, its run knows the metric."""
        found = client.get_model_version(name, version)
        if self.judged_by in found.tags or not found.run_id:
            return found.tags
        metrics = client.get_run(found.run_id).data.metrics
        return found.tags | {self.judged_by: str(metrics.get(self.judged_by))}

    def _ranks(self, key: str) -> bool:
        split, _, name = key.partition("/")
        return key == self.judged_by or (split == "test" and name.removesuffix("_floor") in RANKING)

    def _link(self, client: "MlflowClient", run: Any, model_id: str, tested: Mapping[str, float]) -> None:
        """Shows the model as the run's, with its test metrics; a server that is too old for this loses nothing else."""
        from mlflow.entities import LoggedModelOutput, Metric

        with contextlib.suppress(Exception):
            client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, 0)])
            # The very points that the run has, so that none is there twice.
            points = [client.get_metric_history(run.info.run_id, name)[-1] for name in tested]
            again = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id) for p in points]
            client.log_batch(run.info.run_id, metrics=again)


def save_model(folder: Path, onnx: Path, model: ImageModel, model_id: str, location: str, run_id: str) -> Path:
    """Puts together what MLflow loads: the ONNX file, the code that draws with it, signature and an example."""
    import mlflow
    import onnxruntime
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    image = TensorSpec(np.dtype("uint8"), (-1, model.img_size, model.img_size, model.channels), "images")
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.long, "labels")]),
        outputs=Schema([image]),
        params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
    )
    described = Model(artifact_path=location, model_uuid=model_id, run_id=run_id, model_id=model_id)
    mlflow.pyfunc.save_model(
        folder,
        python_model=MODEL_CODE,
        artifacts={"generator": str(onnx)},
        signature=signature,
        input_example=({"labels": np.arange(model.n_classes)}, {"seed": 0}),
        pip_requirements=[
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
            f"onnxruntime=={onnxruntime.__version__}",
        ],
        mlflow_model=described,
    )
    # Paths of this machine mean nothing elsewhere.
    flavor = described.flavors["python_function"]
    flavor["model_code_path"] = MODEL_CODE.name
    flavor["artifacts"]["generator"]["uri"] = onnx.name
    described.save(str(folder / "MLmodel"))
    return folder


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def number(tags: Mapping[str, str], key: str) -> float:
    """A tag as a number; NaN where it is none."""
    try:
        return float(tags[key])
    except (KeyError, ValueError):
        return math.nan
