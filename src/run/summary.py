"""What a run prints: its configuration at the start, its results and the next commands at the end."""

import re
import shlex
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.tree import Tree

from src.config.command_line import in_quotes
from src.config.text import without_zeros
from src.run.commands import next_command, typed_overrides
from src.run.console import plain_console
from src.run.resume import Past, wandb_folders
from src.run.trust import strangers, trusted_packages


@rank_zero_only
def record_config(config: DictConfig, run_dir: Path) -> None:
    """Writes the composed configuration to `config_tree.txt` in the run folder; with `print_config`, prints it, too."""
    tree = Tree("CONFIG", guide_style="dim")
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            tree.add(key, style="bold").add(
                Syntax(OmegaConf.to_yaml(value).rstrip(), "yaml", background_color="default")
            )
        else:
            tree.add(f"{key}: {value}")
    if config.print_config:
        Console(markup=False, emoji=False).print(tree)
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "config_tree.txt", "w", encoding="utf-8", errors="backslashreplace") as file:
        Console(file=file, width=120, markup=False, emoji=False).print(tree)


def seconds_so_far(run_dir: Path, before: float = 0.0) -> float | None:
    """Wall-clock since Hydra wrote its first file, before anything slow is imported, and the seconds `before` that.

    None: Hydra wrote none.
    """
    begun = run_dir / ".hydra" / "overrides.yaml"
    return round(before + time.time() - begun.stat().st_mtime, 1) if begun.exists() else None


@rank_zero_only
def print_summary(config: DictConfig, trainer: Trainer, metrics: dict[str, float], past: Past) -> None:
    """Prints the final metrics, the files of the run, and the commands to type next."""
    console = plain_console()
    if metrics:
        table = Table("metric", "train", "val", "test", "real images", title=str(config.name))
        names = dict.fromkeys(name.partition("/")[2] for name in metrics if "/" in name)
        for name in names:
            if name.endswith("_floor"):  # it has a column
                continue
            row = [metrics.get(f"{split}/{name}") for split in ("train", "val", "test")]
            row.append(metrics.get(f"test/{name}_floor", metrics.get(f"val/{name}_floor")))
            table.add_row(name, *("" if value is None else f"{value:,.4g}" for value in row))
        console.print(table)

    run_dir = Path(trainer.default_root_dir)
    checkpoint = run_dir / "ckpts" / "last.ckpt"
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")  # the one that was tested
    samples = sorted((run_dir / "samples").glob("epoch_*.png"))
    made = {"run folder": run_dir, "results": run_dir / "results.json", "checkpoint": checkpoint, "best": best}
    made["samples"] = samples[-1] if samples else ""
    made["adapter"] = run_dir / "lora"  # of a published model that is fine-tuned
    lines = [(label, str(path)) for label, path in made.items() if path and Path(path).exists()]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and not logger.experiment.offline:
            lines.append(("view", logger.experiment.url))
        elif isinstance(logger, WandbLogger):
            run = logger.experiment
            paths = [str(path) for path in (*wandb_folders(past, run), Path(run.dir).parent)]
            lines += [("view", shlex.join(["wandb", "leet", path])) for path in paths]
            lines.append(("upload", shlex.join(["wandb", "sync", *paths])))
    if checkpoint.exists():
        # To resume: what was typed, with twice the limit that the run has reached.
        replaced = {"ckpt_path": str(checkpoint)} | ({"init_from": "null"} if config.init_from else {})
        for key, done in [("max_epochs", trainer.current_epoch), ("max_steps", trainer.global_step)]:
            limit = config.trainer[key]
            if metrics and limit is not None and 0 < limit <= done:
                replaced[f"trainer.{key}"] = str(2 * limit)
        kept = [override for override in typed_overrides() if override.partition("=")[0] not in replaced]
        lines.append(("resume", next_command(*kept, *(f"{key}={value}" for key, value in replaced.items()))))

        prompts = getattr(trainer.lightning_module, "prompts_of_classes", ())
        a_class = max(0, min(5, int(config.model.get("n_classes", 1)) - 1))
        classes = [str(name) for name in getattr(trainer.datamodule, "class_names", [])]  # type: ignore[attr-defined]
        plain = a_class >= len(classes) or classes[a_class] == str(a_class) or not any(map(without_zeros, classes))
        label = str(a_class) if plain else f'"#{a_class}"'  # by number, as names look like other numbers
        asked = f"labels=[{label}]"
        if prompts:  # a label would do, but this shows what it can
            text = prompts[a_class]
            text = f'"{text}"' if re.fullmatch(r"[\w .-]+", text) else in_quotes(text)
            asked = f"prompts=[{text}]"
        elif config.model.get("n_classes") == 0:
            asked = 'prompts=["what to draw"]'
        sample = ["task=sample", f"ckpt_path={best or checkpoint}", asked]
        if missing := sorted({*strangers(config).values()} - {""}):
            trusted = [package.rstrip(".") for package in trusted_packages(config)]
            sample.append(f"trusted_packages=[{','.join([*trusted, *missing])}]")
        lines.append(("sample", next_command(*sample)))
    for label, line in lines:
        console.print(f"{label:<11} {line}")
