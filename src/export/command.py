"""The verb `export`: the generator of a checkpoint as files that draw without this project."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from src.config.explain import EXTRAS
from src.errors import UserError
from src.export.latency import latencies, threads, to_table, ways_to_draw
from src.export.to_int8 import quantise
from src.export.to_onnx import REQUIRED, export_generator
from src.export.to_tensorrt import build_engine, check_tensorrt
from src.export.to_torch import export_program
from src.models.request import Request
from src.run.commands import a_list, find_checkpoint, next_command
from src.run.console import plain_console
from src.run.trust import trusted_packages
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.options import HOW, drawing_options, open_sampler, out_folder, out_is_full
from src.sampling.sampler import Noise

FILES = {
    "onnx": "generator.onnx",
    "int8": "generator.int8.onnx",
    "torch": "generator.pt2",
    "tensorrt": "generator.engine",
}
USUAL = ["onnx", "int8", "torch"]
TIMED_S = 0.25  # for each way of drawing and batch size


def export(config: DictConfig) -> None:
    """Writes the generator in every format that was asked for, each compared with the model, and times them.

    Where no format was asked for, those that need a missing package are left out, which is said.

    Raises:
        UserError: the checkpoint cannot be used, or a package is missing.
    """
    chosen = [config.formats] if isinstance(config.formats, str) else config.formats or USUAL
    formats = [each for each in FILES if each in chosen]
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    drawing = drawing_options(config, *HOW)
    sampler = open_sampler(path, config.weights, trusted=trusted_packages(config), drawing=drawing)
    if not isinstance(sampler, CheckpointSampler):
        raise UserError(f"ckpt_path={path} has been exported already: choose the checkpoint that it was made from")
    if sampler.model.not_exported:
        raise UserError(
            f"ckpt_path={path} cannot be exported, as {sampler.model.not_exported}: draw with the checkpoint by"
            " task=sample or task=serve"
        )
    images = sampler.run(Request(Noise(sampler.about.noise_shape, 0)(1), sampler.about.examples(1)))
    if not np.isfinite(images).all():
        raise UserError(
            f"ckpt_path={path} draws images that are not finite, as its training has diverged: choose another"
            " checkpoint"
        )
    out = out_folder(config.out).resolve()
    missing = [name for name in REQUIRED if find_spec(name) is None] if formats != ["torch"] else []
    if missing and config.formats is not None:
        raise UserError(f"formats needs {', '.join(missing)} for all but torch: {EXTRAS}, or type formats=[torch]")
    if "tensorrt" in formats:
        check_tensorrt()

    console = plain_console()
    about = sampler.about
    alone = ", as there is no moving average" if config.weights == "ema" and about.weights == "raw" else ""
    console.print(f"{path} of {about.run}: {about.in_words()}{alone}")
    if missing:
        formats = ["torch"]
        console.print(f"left out    onnx and int8, which need {', '.join(missing)}: {EXTRAS}")
    try:
        with TemporaryDirectory(prefix=".partial-", dir=out) as scratch:
            made = write_files(sampler, formats, out, Path(scratch), config, console)
    except OSError as error:
        raise out_is_full(error) from error
    if config.latency:
        with console.status("timing"):
            ways = ways_to_draw(sampler, made, config.compile)
            found = latencies(ways, about, TIMED_S)
        console.print(to_table(found, f"median of a batch, {threads()}"))
    ours = [str(made[each]) for each in ("onnx", "int8") if each in made] or [str(path)]
    console.print(f"sample      {next_command('task=sample', f'ckpt_path={ours[0]}')}")
    console.print(f"serve       {next_command('task=serve', f'ckpt_path={ours[0]}')}")
    inputs = ours[0] if len(ours) == 1 else a_list(ours)
    console.print(f"quality     {next_command('task=evaluate', f'ckpt_path={inputs}')}")


def write_files(
    sampler: CheckpointSampler, formats: list[str], out: Path, scratch: Path, config: DictConfig, console: Console
) -> dict[str, Path]:
    """Writes each format to `scratch`, and moves it to `out` when it is whole and draws well; returns the files.

    Raises:
        OSError: there is no room, or a folder cannot be written to.
        ValueError: a file does not draw what the model draws.
    """
    model, about = sampler.model, sampler.about
    more = {"license": config.license, "precision": "float32"}
    onnx = scratch / FILES["onnx"]  # what int8 and TensorRT start from
    made = {}
    if formats != ["torch"]:
        with console.status("exporting to ONNX"):
            largest = export_generator(model, onnx, about, more)
    for each in formats:
        path, partial = out / FILES[each], scratch / f"new.{FILES[each]}"
        with console.status(f"writing {path.name}"):
            if each == "onnx":
                shutil.copyfile(onnx, partial)
                said = f"differs from the model by at most {largest:.1e}"
            elif each == "int8":
                most, mean = quantise(onnx, partial, config.calibration, config.seed, more | {"precision": "int8"})
                said = f"differs from float32 by {mean:.4f} on average, at most {most:.2f}"
            elif each == "torch":
                said = f"differs from the model by at most {export_program(model, partial, about, more):.1e}"
            else:
                said = f"differs from the model by at most {build_engine(onnx, partial, model, about):.1e}"
            size = partial.stat().st_size
            os.replace(partial, path)
        console.print(f"{each:<11} {path}, {size / 1e6:,.2f} MB, {said}")
        made[each] = path
    return made
