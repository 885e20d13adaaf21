"""From a file's name to what draws with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.drawing.drawer import Drawer
from src.utils.commands import find_checkpoint
from src.utils.errors import UserError


def open_drawer(
    ckpt_path: Any,
    work_dir: str | Path,
    weights: Any = "ema",
    threads: int | None = None,
    trusted: Sequence[str] = (),
) -> tuple[Drawer, Path]:
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
    if weights not in ("ema", "raw"):
        raise UserError(f"weights must be ema or raw, not {weights!r}")
    path = find_checkpoint(ckpt_path, work_dir)
    drawer: Drawer
    if path.suffix == ".onnx":
        from src.drawing.onnx_drawer import OnnxDrawer

        drawer = OnnxDrawer(path, threads)
        if weights == "raw" and drawer.about.weights != "raw":
            raise UserError(
                f"weights=raw is not in {path}, which was exported with the moving average: export the checkpoint with"
                " task=export weights=raw"
            )
        return drawer, path
    from src.drawing.checkpoint_drawer import CheckpointDrawer

    return CheckpointDrawer(path, weights, trusted), path
