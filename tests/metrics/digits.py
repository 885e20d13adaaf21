"""The embedded digits and their feature net, which is trained once for all tests."""

import functools
import os
from pathlib import Path

import torch

from src.datamodules.digits_datamodule import DigitsDataModule
from src.metrics.evaluator import Evaluator
from src.metrics.references import References, load_references

CPU = torch.device("cpu")
CACHE_DIR = Path(os.environ["DATA_DIR"]) / "features"  # that of the runs in tests


@functools.cache
def digits() -> DigitsDataModule:
    datamodule = DigitsDataModule()
    datamodule.setup()
    return datamodule


@functools.cache
def references() -> References:
    return load_references(digits(), CACHE_DIR, CPU)


@functools.cache
def evaluator(n: int = 2_000) -> Evaluator:
    return Evaluator(digits(), references(), n, CPU)
