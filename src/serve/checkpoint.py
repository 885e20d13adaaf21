"""Opens what the service draws with. Only the process that exports a checkpoint loads torch."""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from src.config.explain import EXTRAS
from src.errors import UserError
from src.models.request import Request
from src.run.console import plain_console
from src.sampling.options import open_sampler
from src.sampling.sampler import Noise, Sampler


def open_for_serving(path: Path, weights: str, trusted: Sequence[str]) -> Sampler:
    """Opens a checkpoint or ONNX file with ONNX Runtime, and draws two images with it.

    A checkpoint is exported by a process of its own: torch takes ten times the memory of serving.

    `trusted` has packages beside ours whose classes a checkpoint may name, each with a dot at its end.

    Raises:
        UserError: the file cannot be used, or a package is missing.
    """
    if path.suffix == ".onnx":
        sampler = open_sampler(path, weights, threads=1)
    else:
        with (
            plain_console().status(f"exporting {path.name} for ONNX Runtime"),
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
        ):
            file = Path(folder) / "generator.onnx"
            try:
                process.submit(export_checkpoint, path, weights, file, trusted).result()
            except ImportError as error:
                raise UserError(
                    f"ckpt_path={path} needs {error.name} to be exported: {EXTRAS}, or serve the generator.onnx that"
                    " task=export makes of it elsewhere"
                ) from error
            sampler = open_sampler(file, weights, threads=1)
    about = sampler.about
    shape = (2, about.channels, about.img_size, about.img_size)
    if about.channels not in (1, 3) or about.img_size > 2048:  # a file can claim anything
        raise UserError(f"ckpt_path={path} claims images of {shape[1:]}, which cannot be served: choose another one")
    try:
        images = sampler.run(Request(Noise(about.noise_shape, 0)(2), np.zeros(2, np.int64)))
    except Exception as error:  # onnxruntime's kinds share no base
        raise UserError(f"ckpt_path={path} cannot draw ({str(error)[:200]}): choose another one") from error
    if images.shape != shape or images.dtype != np.float32 or not np.isfinite(images).all():
        raise UserError(f"ckpt_path={path} does not draw the images that it claims: choose another one")
    return sampler


def export_checkpoint(path: Path, weights: str, out: Path, trusted: Sequence[str]) -> None:
    """Writes a checkpoint's generator as ONNX file `out`."""
    from src.export.to_onnx import export_generator
    from src.sampling.checkpoint_sampler import CheckpointSampler

    sampler = CheckpointSampler(path, weights, trusted)
    export_generator(sampler.model, out, sampler.about)
