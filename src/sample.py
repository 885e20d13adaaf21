"""The verb `sample`: images of chosen classes from a checkpoint, without the data set."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.console import Console
from rich.progress import track

from src.utils.checkpoints import build_model, read_checkpoint
from src.utils.commands import find_checkpoint, next_command
from src.utils.errors import UserError
from src.utils.images import to_grid, to_uint8
from src.utils.numbers import is_whole


def sample(config: DictConfig) -> None:
    """Writes `samples.npz` (`images` uint8 [N, H, W, C], `labels` int64 [N]) and `grid.png`, one row a class.

    Raises:
        UserError: the checkpoint cannot be used, or a class or a number is out of range.
    """
    for name, least in [("n_per_label", 1), ("batch_size", 1), ("seed", 0)]:
        value = config[name]
        if not is_whole(value, least) or value >= 2**63:
            raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    model: Any = build_model(read_checkpoint(path), path)
    labels = torch.tensor(wanted_labels(config.labels, model.n_classes)).repeat_interleave(config.n_per_label)

    # All noise comes first, so that the batch size does not change it.
    noise = model.draw_noise(len(labels), torch.Generator().manual_seed(config.seed))
    parts = list(zip(labels.split(config.batch_size), noise.split(config.batch_size), strict=True))
    console = Console(soft_wrap=True)
    images = torch.cat(
        [model.generate(some, noise=its_noise) for some, its_noise in track(parts, "drawing", console=console)]
    )

    if not isinstance(config.out, str):
        raise UserError(f"out must be a folder, not {config.out!r}")
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out} cannot be made ({error.strerror}): choose another folder with out=DIR") from error
    np.savez_compressed(out / "samples.npz", images=to_uint8(images), labels=labels.numpy())
    one_class = len(labels) == config.n_per_label  # then a square shows more than a row
    columns = math.ceil(math.sqrt(len(labels))) if one_class else config.n_per_label
    Image.fromarray(to_grid(images, columns)).save(out / "grid.png")
    console.print(f"{len(labels)} images from {path}")
    console.print(f"samples     {out / 'samples.npz'}")
    console.print(f"grid        {out / 'grid.png'}")
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else ["task=sample"]
    kept = [override for override in typed if override.partition("=")[0] not in ("seed", "ckpt_path")]
    other = next_command(*kept, f"ckpt_path={path}", f"seed={config.seed + 1}")
    console.print(f"others      {other}", highlight=False)


def wanted_labels(labels: Any, n_classes: int) -> list[int]:
    """The classes to draw: all where `labels` is None.

    Raises:
        UserError: a label is no class of this model.
    """
    if labels is None:
        return list(range(n_classes))
    chosen = list(labels) if isinstance(labels, (list, ListConfig)) else [labels]
    if not chosen or not all(type(label) is int and 0 <= label < n_classes for label in chosen):
        raise UserError(
            f"labels must be classes from 0 to {n_classes - 1}, such as labels=[5] or labels=[0,1], not {labels!r}"
        )
    return chosen
