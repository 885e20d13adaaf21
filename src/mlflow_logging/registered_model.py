"""A trained generator as MLflow loads and serves it: labels or prompts in, images out.

MLflow keeps a copy of this file with every registered version, beside `generator.onnx`, and runs it when the version is
loaded ("models from code", so that nothing is unpickled). So it imports nothing of the project, and no torch.
"""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 256  # images drawn at a time, so that memory does not grow with the number of rows


class RegisteredGenerator(PythonModel):
    """Draws one image a row."""

    def load_context(self, context: PythonModelContext) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it would warn that two inputs have a value already
        self.session = onnxruntime.InferenceSession(
            context.artifacts["generator"], options, providers=onnxruntime.get_available_providers()
        )
        known = self.session.get_modelmeta().custom_metadata_map
        self.n_classes = int(known["n_classes"])
        self.reads_text = json.loads(known["reads_text"])
        self.prompts = json.loads(known["prompts"])  # what stands for each class
        noise, self.condition = self.session.get_inputs()[:2]
        self.noise_shape = noise.shape[1:]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Images uint8 [N, H, W, C] of the classes in the column `labels`, int64, or of the texts in `prompts`.

        `params` may have a `seed`, whose noise is the same on every machine.

        Raises:
            ValueError: a label is not one of the classes, a prompt is empty or too long, or there are both or neither.
        """
        condition = self.read(model_input)
        rng = np.random.default_rng((params or {}).get("seed", 0))
        noise = rng.standard_normal((len(condition), *self.noise_shape)).astype(np.float32)
        drawn = []
        for start in range(0, max(len(condition), 1), BATCH):
            part = slice(start, start + BATCH)
            (images,) = self.session.run(None, {"noise": noise[part], self.condition.name: condition[part]})
            pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
            drawn.append(pixels.transpose(0, 2, 3, 1))
        return np.concatenate(drawn)

    def read(self, table: pd.DataFrame) -> np.ndarray:
        """What the network reads: labels int64 [N], or prompts as code points int64 [N, length]."""
        if "prompts" in table:
            if "labels" in table:
                raise ValueError("prompts and labels are both there: leave out one of them")
            # Of a dict with a list of texts, MLflow makes one row.
            return self.codes(
                [text for cell in table["prompts"] for text in (cell if isinstance(cell, list) else [cell])]
            )
        if "labels" not in table:
            raise ValueError("there must be a column prompts, or labels for the classes")
        labels = np.asarray(table["labels"], dtype=np.int64)
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.n_classes):
            raise ValueError(f"labels must be 0 to {self.n_classes - 1}, not {labels.min()} to {labels.max()}")
        return self.codes(self.prompts)[labels] if self.reads_text else labels

    def codes(self, prompts: Sequence[Any]) -> np.ndarray:
        """Code points of the cleaned prompts, int64 [N, length], with zeros after the end."""
        codes = np.zeros((len(prompts), self.condition.shape[1]), np.int64)
        for row, prompt in zip(codes, prompts, strict=True):
            # Cleaning takes time that grows with the square of the length.
            text = clean(prompt) if isinstance(prompt, str) and len(prompt) <= 4 * len(row) else ""
            if not 0 < len(text) <= len(row):
                raise ValueError(
                    f"prompts must have 1 to {len(row)} letters, digits and spaces, not {str(prompt)[:40]!r}"
                )
            row[: len(text)] = [ord(character) for character in text]
        return codes


def clean(prompt: str) -> str:
    """As in training: lower case, letters and digits of any script alone, single spaces."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split())


set_model(RegisteredGenerator())
