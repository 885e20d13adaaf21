"""Draws with an ONNX file, without torch."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.config.explain import EXTRAS
from src.errors import UserError
from src.models.prompts import LENGTH
from src.models.request import Request
from src.sampling.sampler import About, Sampler


class OnnxSampler(Sampler):
    """Draws with a file that `task=export` wrote.

    Args:
        path: the file.
        threads: for one batch; None: as many as there are cores.
        providers: where ONNX Runtime computes; None: wherever it can.

    Raises:
        UserError: onnxruntime is missing, or the file cannot be used.
    """

    def __init__(self, path: Path, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"ckpt_path={path} needs onnxruntime: {EXTRAS}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it has to say is raised as well
        # A stranger's file may name others that hold its weights: they are looked for where nothing can be.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=providers or onnxruntime.get_available_providers()
            )
        except OSError as error:
            raise UserError(f"ckpt_path={path} cannot be read ({error.strerror}): choose another file") from error
        except Exception as error:  # of onnxruntime's own kinds, which share no base
            raise UserError(f"ckpt_path={path} is damaged or not an ONNX file: choose another one") from error
        shapes = {each.name: each.shape for each in self.session.get_inputs()}
        try:
            self.about = About.from_metadata(self.session.get_modelmeta().custom_metadata_map)
            self._input = "prompts" if self.about.reads_text else "labels"
            rest = [LENGTH] if self.about.reads_text else []
            if [list(shapes[name][1:]) for name in ("noise", self._input)] != [list(self.about.noise_shape), rest]:
                raise ValueError("the inputs do not fit what is said of them")
        except (KeyError, ValueError) as error:
            raise UserError(
                f"ckpt_path={path} was not exported by this project: choose a generator.onnx of task=export"
            ) from error
        self.can_interpolate = "others" in {each.name for each in self.session.get_overridable_initializers()}

    def run(self, request: Request[np.ndarray]) -> np.ndarray:
        inputs = {"noise": request.noise, self._input: self.about.condition(request.condition)}
        if request.others is not None and request.weight is not None:
            inputs |= {"others": self.about.condition(request.others), "weight": request.weight}
        return self.session.run(["images"], inputs)[0]
