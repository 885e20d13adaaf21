"""The verb `sample`: images of chosen classes from a trained model, without the data set."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.models.request import Request
from src.pictures.grid import grid
from src.run.commands import find_checkpoint, next_command, typed_overrides
from src.run.console import plain_console
from src.run.files import atomic_write
from src.run.trust import trusted_packages
from src.sampling.labels import folder_names, metadata_row
from src.sampling.options import (
    HOW,
    Wanted,
    check_truncation,
    drawing_options,
    open_sampler,
    out_folder,
    out_is_full,
    wanted,
)
from src.sampling.sampler import BLOCK, About, Noise, Sampler
from src.sampling.samples_file import write_samples

COLUMNS = 16  # of the grid, at most


def sample(config: DictConfig) -> None:
    """Writes `samples.npz` (`images` uint8 [N, H, W, C], `labels` int64 [N]) and `grid.png`, one row a class.

    Where prompts were typed, a row is a prompt, and `prompts`, text [N], takes the place of `labels`.

    Raises:
        UserError: the checkpoint cannot be used, a label names no class, or a prompt cannot be drawn.
    """
    out = out_folder(config.out)
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    drawing = drawing_options(config, *HOW)
    sampler = open_sampler(path, config.weights, trusted=trusted_packages(config), drawing=drawing)
    about = sampler.about
    check_truncation(config.truncation, about)
    rows, n = wanted(config, about), config.n_per_label
    texts = rows.condition if rows.prompts is None else np.array(rows.prompts)
    total = len(rows) * n
    console = plain_console()
    # The grid shows a row a class, or a square of one class alone, which shows more than a row.
    shown = min(n, COLUMNS**2 if len(rows) == 1 else COLUMNS)
    n_columns = math.ceil(math.sqrt(shown)) if len(rows) == 1 else shown
    cells: list[np.ndarray] = []
    columns = "drawing", BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn()
    try:
        with Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console) as progress:
            bar = progress.add_task("", total=total)

            def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                for start, images, its_rows in draw_all(sampler, config, rows):
                    cells.extend(images[np.arange(start, start + len(images)) % n < shown])
                    if config.png:
                        save_pngs(images, its_rows, start, rows, about, out / "png")
                    yield images, texts[its_rows]
                    progress.advance(bar, len(images))

            shape = (total, about.img_size, about.img_size, about.channels)
            write_samples(out / "samples.npz", shape, parts(), prompts=rows.prompts is not None)
        with atomic_write(out / "grid.png") as file:
            Image.fromarray(grid(np.stack(cells), n_columns)).save(file)
    except OSError as error:
        raise out_is_full(error) from error

    console.print(f"{total:,} images from {path} ({about.in_words()})", highlight=False, markup=False)
    made = [("samples", out / "samples.npz"), ("grid", out / "grid.png")] + [("pngs", out / "png")] * config.png
    for label, each in made:
        console.print(f"{label:<11} {each}")
    typed = [o for o in typed_overrides() or ["task=sample"] if o.partition("=")[0] not in ("seed", "ckpt_path")]
    for label, command in [
        ("others", next_command(*typed, f"ckpt_path={path}", f"seed={config.seed + 1}")),
        ("between", next_command("task=interpolate", f"ckpt_path={path}")),
    ]:
        console.print(f"{label:<11} {command}")


def draw_all(sampler: Sampler, config: DictConfig, rows: Wanted) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Draws `config.n_per_label` images of each row in turn; yields the first's index, images, and their rows."""
    noise = Noise(sampler.about.noise_shape, config.seed, config.truncation)
    total = len(rows) * config.n_per_label
    # Whole blocks: see `Sampler.draw`. One is enough where it takes long.
    step = -(-config.batch_size // BLOCK) * BLOCK if sampler.block == BLOCK else sampler.block
    for start in range(0, total, step):
        its_rows = np.arange(start, min(start + step, total)) // config.n_per_label
        yield start, sampler.draw(Request(noise(len(its_rows)), rows.condition[its_rows])), its_rows


def save_pngs(images: np.ndarray, its_rows: np.ndarray, start: int, rows: Wanted, about: About, folder: Path) -> None:
    """Saves each image as `CLASS/NUMBER.png`, and its class in `metadata.jsonl`; `datamodule=folder` reads them.

    Prompts have folders of their own, and are captions there.
    """
    texts = [about.class_names[label] for label in rows.condition] if rows.prompts is None else rows.prompts
    names = folder_names(texts)
    folder.mkdir(exist_ok=True)
    with open(folder / "metadata.jsonl", "a" if start else "w", encoding="utf-8") as table:
        for number, (image, row) in enumerate(zip(images, its_rows, strict=True), start):
            name = f"{names[row]}/{number:05}.png"
            (folder / names[row]).mkdir(exist_ok=True)
            Image.fromarray(image.squeeze(-1) if about.channels == 1 else image).save(folder / name)
            table.write(metadata_row(name, texts[row], is_prompt=rows.prompts is not None))
