"""A trained generator as MLflow loads and serves it: labels in, images out.

MLflow keeps a copy of this file with every registered version, beside `generator.onnx`, and runs it when the version is
loaded ("models from code", so that nothing is unpickled). So it imports nothing of the project, and no torch.
"""

from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 256  # images drawn at a time, so that memory does not grow with the number of labels


class RegisteredGenerator(PythonModel):
    """Draws one image a label."""

    def load_context(self, context: PythonModelContext) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it would warn that two inputs have a value already
        self.session = onnxruntime.InferenceSession(
            context.artifacts["generator"], options, providers=onnxruntime.get_available_providers()
        )
        self.n_classes = int(self.session.get_modelmeta().custom_metadata_map["n_classes"])
        self.noise_shape = self.session.get_inputs()[0].shape[1:]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Images uint8 [N, H, W, C] of the classes in the column `labels`, int64.

        `params` may have a `seed`, whose noise is the same on every machine.

        Raises:
            ValueError: a label is not one of the classes.
        """
        labels = np.asarray(model_input["labels"], dtype=np.int64)
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.n_classes):
            raise ValueError(f"labels must be 0 to {self.n_classes - 1}, not {labels.min()} to {labels.max()}")
        rng = np.random.default_rng((params or {}).get("seed", 0))
        noise = rng.standard_normal((len(labels), *self.noise_shape)).astype(np.float32)
        drawn = []
        for start in range(0, max(len(labels), 1), BATCH):
            part = slice(start, start + BATCH)
            (images,) = self.session.run(None, {"noise": noise[part], "labels": labels[part]})
            pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
            drawn.append(pixels.transpose(0, 2, 3, 1))
        return np.concatenate(drawn)


set_model(RegisteredGenerator())
