"""A checkpoint as ONNX file, made in a process of its own: torch takes ten times the memory of serving."""

from collections.abc import Sequence
from pathlib import Path


def export_checkpoint(path: Path, weights: str, out: Path, trusted: Sequence[str]) -> None:
    """Writes what a checkpoint draws with.

    Args:
        path: of the checkpoint.
        weights: `ema` or `raw`.
        out: the file to write.
        trusted: packages beside ours whose classes it may name, each with a dot at its end.

    Raises:
        UserError: the checkpoint cannot be used.
        ImportError: a package is missing.
    """
    from src.export.to_onnx import export_generator
    from src.sampling.checkpoint_sampler import CheckpointSampler

    sampler = CheckpointSampler(path, weights, trusted)
    export_generator(sampler.model, out, sampler.about)
