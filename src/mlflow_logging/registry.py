"""Trained generators in MLflow's model registry, and the alias that the best of them carries."""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
from pydantic import Field

from src.export.to_onnx import export_generator
from src.models.image_model import ImageModel
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.sampling.checkpoint_sampler import about_model
from src.sampling.sampler import About

Name = Annotated[
    str,
    Field(
        pattern=r"^(?=.*\S)([^/:{}]|\{data\}|\{img_size\})+\Z",
        description="a name without / and :, in which {data} and {img_size} may stand,",
    ),
]
Alias = Annotated[
    str,
    Field(pattern=r"^(?!(?i:latest|v\d+)$)[\w-]+\Z", description="a word other than latest and v1, v2, ..."),
]
TestMetric = Annotated[str, Field(pattern=r"^test/.", description="a metric of the test such as test/fd")]


@dataclass(frozen=True)
class ModelRegistry:
    """Registers a finished run's generator as a version, and lets an alias follow the best.

    A version is an ONNX file with `registered_model.py`, which needs mlflow, numpy and onnxruntime and nothing of this
    project. Its tags say where it comes from: the run, the commit, the data and the checkpoint with their checksums,
    and the test's metric. Numbers compare within one data set and image size alone, so an alias never moves from one
    to another. `SteadyMLFlowLogger` says what the arguments mean.
    """

    registered_model: str = "generator-{data}-{img_size}px"
    alias: str | None = "champion"
    judged_by: str = "test/fd"
    mode: str = "min"

    def __post_init__(self) -> None:
        measured = self.judged_by.removeprefix("test/")
        wanted = "max" if measured in HIGHER_IS_BETTER else "min" if measured in LOWER_IS_BETTER else self.mode
        if self.mode != wanted:
            raise ValueError(
                f"mode is {self.mode}, by which the worst {self.judged_by} would win: set logger.mlflow.mode={wanted}"
            )

    def name_for(self, data: Mapping[str, Any], model: ImageModel) -> str:
        source = re.sub(r"[/:]", "-", str(data["source"]))
        return self.registered_model.replace("{data}", source).replace("{img_size}", str(model.img_size))

    def register(
        self,
        client: Any,
        run_id: str,
        model: ImageModel,
        metrics: Mapping[str, float],
        about_run: Mapping[str, Any],
        checkpoint: Path | None = None,
        step: int = 0,
    ) -> str:
        """Registers `model`, moves the alias to it if its test is the best so far, and says what was done.

        Args:
            about_run: what `run.json` says of the run: `commit` and `data`.
            checkpoint: the file that was tested; None: the model was tested as it was.
            step: where the test's metrics are, which MLflow then shows as the model's, too.

        Raises:
            ValueError: the model cannot be exported, or was not tested.
        """
        if model.not_exported:
            raise ValueError(f"{model.not_exported}: set logger.mlflow.registered_model=null")
        if self.judged_by not in metrics:
            raise ValueError(
                f"the run has no {self.judged_by}: set logger.mlflow.judged_by to what its test measures, or"
                " logger.mlflow.registered_model=null"
            )
        run, data, commit = client.get_run(run_id).info.run_name, about_run["data"], about_run["commit"]
        about = about_model(model, "ema", run, data, commit, checkpoint)
        floor = f"{self.judged_by}_floor"
        tags = {key: f"{metrics[key]:.7g}" for key in (self.judged_by, floor) if key in metrics}
        tags |= {"run_id": run_id, "data_sha256": str(data.get("sha256", ""))}
        tags |= {key: str(getattr(about, key)) for key in ("commit", "data", "img_size")}
        tags |= {key: str(getattr(about, key)) for key in ("checkpoint", "checkpoint_sha256")}
        name = self.name_for(data, model)
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MLFLOW_TRACKING_URI=client.tracking_uri):
            onnx = Path(folder) / "generator.onnx"
            export_generator(model, onnx, about)
            version = log_model(name, run_id, about, onnx, tags, step)
        what, example = "of a class", '{"labels": [5, 5, 3]}'
        if about.reads_text:
            few = {"prompts": example_of(about)["prompts"][:3]}
            what, example = "of what a text asks for", json.dumps(few, ensure_ascii=False)
        client.update_registered_model(
            name,
            f"Draws images {what}. Load it with mlflow.pyfunc.load_model(uri), and draw with"
            f' .predict({example}, params={{"seed": 0}}): images uint8 [N, H, W, C].',
        )
        real = f" (real images {metrics[floor]:.4g})" if floor in metrics else ""
        client.update_model_version(name, version, f"{run}: {self.judged_by} {metrics[self.judged_by]:.4g}{real}")

        made = f"{name} version {version}"
        if self.alias is None:
            return f"{made} is registered"
        theirs: dict[str, Any] | None = None
        if holder := client.get_registered_model(name).aliases.get(self.alias):
            held = client.get_model_version(name, holder)
            # Not its tags alone: it may have been judged by another metric.
            theirs = client.get_run(str(held.run_id)).data.metrics | held.tags
        is_better, why = self.compare(tags, theirs)
        if not is_better:
            stays = f"version {holder} stays the {self.alias}" if holder else f"there is no {self.alias}"
            return f"{made} is registered, but {stays}: {why}"
        client.set_registered_model_alias(name, self.alias, version)
        return f"{made} is the {self.alias}: {why}"

    def compare(self, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> tuple[bool, str]:
        """Whether a version is better than the one that has the alias, if there is one, by their tags; and why."""
        score = float(ours[self.judged_by])
        if not math.isfinite(score):
            return False, f"its {self.judged_by} is not known"
        if theirs is None:
            return True, f"{self.judged_by} {score:.4g}, and it is the first"
        same = {"data": "another data set", "data_sha256": "other images", "img_size": "another image size"}
        for key, what in same.items():
            if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
                return False, f"that one has {what}, on which numbers do not compare"
        try:
            best = float(theirs[self.judged_by])
        except (KeyError, ValueError):
            best = math.nan
        if not math.isfinite(best):
            return False, f"the {self.alias} has no tag {self.judged_by} to compare with"
        is_better = score < best if self.mode == "min" else score > best
        return is_better, f"{self.judged_by} {score:.4g} is {'' if is_better else 'not '}better than {best:.4g}"


def example_of(about: About) -> dict[str, Any]:
    """What to try a version with."""
    if about.reads_text:
        return {"prompts": list(about.prompts) or ["what to draw"]}
    return {"labels": np.arange(about.n_classes)}


def log_model(name: str, run_id: str, about: About, onnx: Path, tags: dict[str, str], step: int) -> str:
    """Uploads the ONNX file, the code that draws with it, signature and example; returns the version's number."""
    import mlflow
    import onnxruntime
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    code = Path(__file__).with_name("registered_model.py")
    image = TensorSpec(np.dtype("uint8"), (-1, about.img_size, about.img_size, about.channels), "images")
    # MLflow refuses other types and missing columns. Where a version takes prompts or labels, neither is required:
    # its own code refuses both and none.
    prompts: Any = ColSpec(DataType.string, "prompts", required=not about.prompts)
    labels: Any = ColSpec(DataType.long, "labels", required=not about.reads_text)
    columns = [prompts, labels] if about.prompts else [prompts if about.reads_text else labels]
    mlflow.start_run(run_id=run_id)
    try:
        logged = mlflow.pyfunc.log_model(
            name="generator",
            model_type="image generator",
            python_model=str(shutil.copy(code, onnx.parent)),  # MLflow records where it was
            artifacts={"generator": str(onnx)},
            signature=mlflow.models.ModelSignature(
                inputs=Schema(columns),
                outputs=Schema([image]),
                params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
            ),
            input_example=(example_of(about), {"seed": 0}),
            pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (mlflow, np, onnxruntime)],
            registered_model_name=name,
            tags=tags,
            step=step,
        )
    finally:
        mlflow.end_run()  # finished, whatever becomes of the model
    return str(logged.registered_model_version)
