"""The embedded digits and their feature net, trained once for all tests of a process."""

import functools
import tempfile
from pathlib import Path

import torch

from src.datamodules.digits_datamodule import DigitsDataModule
from src.metrics.evaluator import Evaluator
from src.metrics.references import References, load_references

CPU = torch.device("cpu")


@functools.cache
def digits() -> DigitsDataModule:
    datamodule = DigitsDataModule()
    datamodule.setup()
    return datamodule


folder = tempfile.TemporaryDirectory(prefix="features-")  # removed when the process ends


def cache_dir() -> Path:
    return Path(folder.name)


@functools.cache
def references() -> References:
    return load_references(digits(), cache_dir(), CPU)


@functools.cache
def evaluator(n: int = 2_000) -> Evaluator:
    return Evaluator(digits(), references(), n, CPU)
