"""What a run is called, and what its files say of it."""

from importlib.metadata import version
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import LightningDataModule, LightningModule

from src.config.text import escaped
from src.datamodules.image_datamodule import ImageDataModule
from src.run.commands import is_sweep, typed_overrides
from src.run.loggers import LONGEST_TAG
from src.run.provenance import provenance
from src.run.resume import Past

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pillow", "wandb")


def name_run(config: DictConfig, datamodule: LightningDataModule) -> None:
    """Writes into the configuration what the run is called and which data it really uses."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    experiment = str(choices.get("experiment") or choices.get("model") or "train").removesuffix(".yaml")
    source = getattr(datamodule, "source", type(datamodule).__name__)
    typed = typed_overrides()
    # What sets a run apart from others of its experiment, as far as it fits into a name.
    named = ("model.", "datamodule.", "model/", "+model.")
    changes = [each.removeprefix("model.").removeprefix("datamodule.") for each in typed if each.startswith(named)]
    group = "-".join([experiment, source, *changes])[:80]
    with open_dict(config):
        config.data_source = escaped(source)
        config.group = escaped(config.group or group)
        numbers = [f"seed{config.seed}"] + ([f"job{HydraConfig.get().job.num}"] if is_sweep() else [])
        config.name = escaped(config.name or "-".join([group, *numbers]))
        config.tags = [escaped(tag) for tag in dict.fromkeys([*config.tags, source[:LONGEST_TAG]])]
        config.notes = escaped(config.notes or " ".join(typed)) or None


def describe(config: DictConfig, model: LightningModule, datamodule: LightningDataModule, past: Past) -> dict[str, Any]:
    """What `run.json` says of a run: its name, what was typed, on which data it trains, and how to show its metrics."""
    data: dict[str, Any] = {"source": config.data_source}
    if isinstance(datamodule, ImageDataModule):
        data |= {
            "classes": list(datamodule.class_names),
            "sha256": datamodule.sha256(),
            **{split: len(datamodule.sets[split]) for split in ("train", "val", "test")},
            "img_size": datamodule.img_size,
            "channels": datamodule.channels,
        }
    resumed = {"checkpoint": str(past.checkpoint), "batch": past.batch, "folders": list(past.folders)}
    return {
        "name": config.name,
        "started": past.started,
        "resumed_from": resumed if past.checkpoint else None,
        "overrides": typed_overrides(),
        **provenance(),
        "versions": {package: version(package) for package in PACKAGES},
        "data": data,
        "curves": getattr(model, "curves", []),
        "tables": getattr(model, "tables", {}),
        "config": OmegaConf.to_container(config, resolve=True),
    }
