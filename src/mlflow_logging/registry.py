"""Trained generators in MLflow's model registry, and the alias that the best of them carries."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from src.export.to_onnx import export_generator
from src.models.image_model import ImageModel
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.sampling.checkpoint_sampler import about_model

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_CODE = Path(__file__).with_name("registered_model.py")
# The tags that two versions must share to be compared.
SAME = {"data": "another data set", "data_sha256": "other images", "img_size": "another image size"}
DESCRIPTION = (
    "Draws images of a class. Load it with mlflow.pyfunc.load_model(uri), and draw with"
    ' .predict({"labels": [5, 5, 3]}, params={"seed": 0}): images uint8 [N, H, W, C].'
)


@dataclass(frozen=True)
class ModelRegistry:
    """Registers a finished run's generator as a version, and lets an alias follow the best.

    A version is an ONNX file with `registered_model.py`, which needs mlflow, numpy and onnxruntime and nothing of this
    project. Its tags say where it comes from: the run, the commit, the data and the checkpoint with their checksums,
    and the test's metric. Numbers compare within one data set and image size alone, so an alias never moves from one
    to another.

    Args:
        registered_model: name of the versions; `{data}` and `{img_size}` in it become the run's.
        alias: carried by the version with the best test; None: by no version.
        judged_by: the test metric that decides.
        mode: `min` or `max`: which of its values is best.

    Raises:
        ValueError: MLflow would refuse a name, or the worst version would win.
    """

    registered_model: str = "generator-{data}-{img_size}px"
    alias: str | None = "champion"
    judged_by: str = "test/fd"
    mode: str = "min"

    def __post_init__(self) -> None:
        plain = re.sub(r"\{(data|img_size)\}", "", self.registered_model)
        if not self.registered_model.strip() or re.search(r"[/:{}]", plain):
            raise ValueError(
                "registered_model must be a name without / and :, in which {data} and {img_size} may stand, or null,"
                f" not {self.registered_model!r}"
            )
        if self.alias is not None and not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", self.alias, re.IGNORECASE):
            raise ValueError(f"alias must be a word other than latest and v1, v2, ..., or null, not {self.alias!r}")
        measured = self.judged_by.removeprefix("test/")
        if measured in ("", self.judged_by):
            raise ValueError(f"judged_by must be a metric of the test such as test/fd, not {self.judged_by!r}")
        wanted = "max" if measured in HIGHER_IS_BETTER else "min" if measured in LOWER_IS_BETTER else self.mode
        if self.mode != wanted:
            raise ValueError(
                f"mode is {self.mode}, by which the worst {self.judged_by} would win: set logger.mlflow.mode={wanted}"
            )

    def name_for(self, data: Mapping[str, Any], model: ImageModel) -> str:
        """The registered model's name for a run on `data`."""
        source = re.sub(r"[/:]", "-", str(data["source"]))
        return self.registered_model.replace("{data}", source).replace("{img_size}", str(model.img_size))

    def register(
        self,
        client: "MlflowClient",
        run_id: str,
        model: ImageModel,
        metrics: Mapping[str, float],
        data: Mapping[str, Any],
        commit: str,
        checkpoint: Path | None = None,
        step: int = 0,
    ) -> str:
        """Registers `model` as a new version, and moves the alias to it if its test is the best so far.

        Args:
            client: of the server.
            run_id: the run that trained the model.
            model: as it was tested.
            metrics: the run's last ones.
            data: what the run says about its data: `source`, `sha256`.
            commit: of the code.
            checkpoint: the file that was tested; None: the model was tested as it was.
            step: of the test's metrics, which MLflow then shows as the model's, too.

        Returns:
            What was done, in a sentence.

        Raises:
            Exception: the run has no such metric, the model cannot be exported, or the server does not take it.
        """
        if self.judged_by not in metrics:
            raise ValueError(
                f"the run has no {self.judged_by}: set logger.mlflow.judged_by to what its test measures, or"
                " logger.mlflow.registered_model=null"
            )
        run = client.get_run(run_id).info.run_name
        about = about_model(model, "ema", run, data, commit, checkpoint)
        floor = f"{self.judged_by}_floor"
        tags = {key: f"{metrics[key]:.7g}" for key in (self.judged_by, floor) if key in metrics}
        tags |= {"run_id": run_id, "commit": commit, "data": about.data, "data_sha256": str(data.get("sha256", ""))}
        tags |= {"img_size": str(about.img_size)}
        tags |= {"checkpoint": about.checkpoint, "checkpoint_sha256": about.checkpoint_sha256}
        name = self.name_for(data, model)
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MLFLOW_TRACKING_URI=client.tracking_uri):
            onnx = Path(folder) / "generator.onnx"
            export_generator(model, onnx, about)
            version = log_model(name, run_id, model, onnx, tags, step)
        client.update_registered_model(name, DESCRIPTION)
        real = f" (real images {metrics[floor]:.4g})" if floor in metrics else ""
        client.update_model_version(name, version, f"{run}: {self.judged_by} {metrics[self.judged_by]:.4g}{real}")

        made = f"{name} version {version}"
        if self.alias is None:
            return f"{made} is registered"
        theirs: dict[str, Any] | None = None
        if holder := client.get_registered_model(name).aliases.get(self.alias):
            held = client.get_model_version(name, holder)
            theirs = (
                client.get_run(str(held.run_id)).data.metrics | held.tags
            )  # it may have been judged by another metric
        is_better, why = self.compare(tags, theirs)
        if not is_better:
            stays = f"version {holder} stays the {self.alias}" if holder else f"there is no {self.alias}"
            return f"{made} is registered, but {stays}: {why}"
        client.set_registered_model_alias(name, self.alias, version)
        return f"{made} is the {self.alias}: {why}"

    def compare(self, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> tuple[bool, str]:
        """Whether a version is better than the one that has the alias, and why.

        Args:
            ours: the new version's tags.
            theirs: tags and metrics of the version that has the alias; None: no version has it.
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


def log_model(name: str, run_id: str, model: ImageModel, onnx: Path, tags: dict[str, str], step: int) -> str:
    """Uploads what MLflow loads: the ONNX file, the code that draws with it, signature and an example.

    Returns:
        The number of the version that is registered under `name`.
    """
    import mlflow
    import onnxruntime
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    image = TensorSpec(np.dtype("uint8"), (-1, model.img_size, model.img_size, model.channels), "images")
    mlflow.start_run(run_id=run_id)
    try:
        logged = mlflow.pyfunc.log_model(
            name="generator",
            model_type="image generator",
            python_model=str(shutil.copy(MODEL_CODE, onnx.parent)),  # MLflow records where it was
            artifacts={"generator": str(onnx)},
            signature=mlflow.models.ModelSignature(
                inputs=Schema([ColSpec(DataType.long, "labels")]),
                outputs=Schema([image]),
                params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
            ),
            input_example=({"labels": np.arange(model.n_classes)}, {"seed": 0}),
            pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (mlflow, np, onnxruntime)],
            registered_model_name=name,
            tags=tags,
            step=step,
        )
    finally:
        mlflow.end_run()  # finished, whatever becomes of the model
    return str(logged.registered_model_version)


def number(tags: Mapping[str, Any], key: str) -> float:
    """A tag as a number; NaN where it cannot be read."""
    try:
        return float(tags[key])
    except (KeyError, ValueError):
        return math.nan
