"""The verb `interpolate`: what lies between noises and between classes, as pictures and as animations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.progress import track

from src.errors import UserError
from src.models.request import Request
from src.pictures.grid import grid
from src.run.commands import find_checkpoint, next_command, typed_overrides
from src.run.console import plain_console
from src.run.files import atomic_write
from src.run.trust import trusted_packages
from src.sampling.options import check_truncation, drawing_options, open_sampler, out_folder, wanted
from src.sampling.sampler import Noise, Sampler

FRAME_MS = 80  # how long an animation shows a frame


def interpolate(config: DictConfig) -> None:
    """Writes, of the classes or prompts asked for and of `n_noises` noises:

    - `table.png`: one row a noise, one column a class. What a row has in common is what the noise says, whatever the
      class.
    - `noises.png`: one row a class, from one noise to another; `noises.gif`: every class, from noise to noise and back
      to the first.
    - `classes.png`: one row a class, from it to the next with the noise held; `classes.gif`: every noise, from class to
      class and back to the first. A class alone has none.

    Raises:
        UserError: the checkpoint cannot be used, a label names no class, or a prompt cannot be drawn.
    """
    out = out_folder(config.out)
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    drawing = drawing_options(config, "guidance", "negative")  # `steps` are those from one image to the next
    sampler = open_sampler(path, config.weights, trusted=trusted_packages(config), drawing=drawing)
    check_truncation(config.truncation, sampler.about)
    chosen = wanted(config, sampler.about)
    labels = chosen.condition
    if not sampler.can_interpolate and len(labels) > 1:
        raise UserError(f"ckpt_path={path} cannot draw between classes: name the checkpoint that it was exported from")
    noises = Noise(sampler.about.noise_shape, config.seed, config.truncation)(config.n_noises)
    weights = np.linspace(0, 1, config.steps, dtype=np.float32)
    console = plain_console()
    made = []
    cells = sampler.draw(Request(noises.repeat(len(labels), axis=0), np.concatenate([labels] * len(noises))))
    made.append(save([grid(cells, len(labels))], out / "table.png"))

    ways = list(zip(noises, np.roll(noises, -1, axis=0), strict=True))
    rows = [between_noises(sampler, label, *ways[0], weights) for label in labels]
    made.append(save([grid(np.concatenate(rows), len(weights))], out / "noises.png"))
    frames: list[np.ndarray] = []
    for a, b in track(ways, "between noises", console=console):
        # Without the last frame of each way, which is the next one's first.
        of_label = [between_noises(sampler, label, a, b, weights[:-1]) for label in labels]
        frames += [grid(cells, columns_for(len(cells))) for cells in np.stack(of_label, axis=1)]
    made.append(save(frames, out / "noises.gif"))

    pairs = list(zip(labels, np.roll(labels, -1, axis=0), strict=True)) if len(labels) > 1 else []
    if pairs:
        rows = [between_classes(sampler, a, b, noises[:1], weights)[:, 0] for a, b in pairs]
        made.append(save([grid(np.concatenate(rows), len(weights))], out / "classes.png"))
        frames = []
        for a, b in track(pairs, "between classes", console=console):
            between = between_classes(sampler, a, b, noises, weights[:-1])
            frames += [grid(cells, columns_for(len(cells))) for cells in between]
        made.append(save(frames, out / "classes.gif"))

    what = f"{len(chosen)} {chosen.kind} and {len(noises)} noises of {path} ({sampler.about.in_words()})"
    console.print(what, highlight=False, markup=False)
    for each in made:
        console.print(f"{each.stem:<11} {each}")
    typed = [o for o in typed_overrides() or ["task=interpolate"] if o.partition("=")[0] not in ("seed", "ckpt_path")]
    other = next_command(*typed, f"ckpt_path={path}", f"seed={config.seed + 1}")
    console.print(f"{'others':<11} {other}")


def between_noises(
    sampler: Sampler, label: np.ndarray, a: np.ndarray, b: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Images uint8 [len(weights), H, W, C] of a class from noise `a` (weight 0) to noise `b` (1)."""
    noises = np.stack([slerp(a, b, weight) for weight in weights])
    return sampler.draw(Request(noises, np.stack([label] * len(weights))))


def between_classes(
    sampler: Sampler, a: np.ndarray, b: np.ndarray, noises: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Images uint8 [len(weights), len(noises), H, W, C] from class `a` (weight 0) to class `b` (1)."""
    n = len(weights) * len(noises)
    every_noise = np.concatenate([noises] * len(weights))
    drawn = sampler.draw(Request(every_noise, np.stack([a] * n), np.stack([b] * n), weights.repeat(len(noises))))
    return drawn.reshape(len(weights), len(noises), *drawn.shape[1:])


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """On the arc from noise `a` to noise `b` (White, Sampling Generative Networks, 2016).

    A straight line would pass nearer to zero than the noise that a generator was trained with ever comes.
    """
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    angle = float(np.arccos(np.clip((a * b).sum() / lengths, -1, 1))) if lengths else 0.0
    if np.sin(angle) < 1e-6:  # they lie in one direction
        return (a + (b - a) * weight).astype(np.float32)
    parts = np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b
    return (parts / np.sin(angle)).astype(np.float32)


def columns_for(n: int) -> int:
    """Columns of a grid of `n` images that is wider than high."""
    return min(n, max(1, round((2 * n) ** 0.5)))


def save(frames: Sequence[np.ndarray], path: Path) -> Path:
    """Saves a picture uint8 [H, W, 3], or several as an animation that begins again at its end; returns `path`."""
    pictures = [Image.fromarray(frame) for frame in frames]
    with atomic_write(path) as file:
        if path.suffix == ".gif":
            pictures = [each.resize((2 * each.width, 2 * each.height), Image.Resampling.NEAREST) for each in pictures]
            if all((frame == frame[:, :, :1]).all() for frame in frames):
                pictures = [each.convert("L") for each in pictures]  # else 256 greys would become fewer colours
            pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)
        else:
            pictures[0].save(file)
    return path
