"""From a file's name to what draws with it."""

from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError
from src.run.commands import find_checkpoint
from src.sampling.sampler import Sampler


def open_sampler(
    ckpt_path: str,
    work_dir: str | Path,
    weights: str = "ema",
    threads: int | None = None,
    trusted: Sequence[str] = (),
) -> tuple[Sampler, Path]:
    """What draws with the checkpoint or ONNX file that `ckpt_path` means, and that file.

    Args:
        ckpt_path: a file, or `last` for the newest run's checkpoint.
        work_dir: where to look for the newest run.
        weights: `ema`: the moving average of the weights where there is one; `raw`: the weights themselves.
        threads: that an ONNX file's images are drawn with; None: as many as there are cores.
        trusted: packages beside ours whose classes a checkpoint may name, each with a dot at its end.

    Raises:
        UserError: the file cannot be used, or holds other weights.
    """
    path = find_checkpoint(ckpt_path, work_dir)
    sampler: Sampler
    if path.suffix == ".onnx":
        from src.sampling.onnx_sampler import OnnxSampler

        sampler = OnnxSampler(path, threads)
        if weights == "raw" and sampler.about.weights != "raw":
            raise UserError(
                f"weights=raw is not in {path}, which was exported with the moving average: export the checkpoint with"
                " task=export weights=raw"
            )
        return sampler, path
    from src.sampling.checkpoint_sampler import CheckpointSampler

    return CheckpointSampler(path, weights, trusted), path
