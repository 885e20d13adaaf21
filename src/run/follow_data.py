"""The numbers of a model that follow from its data."""

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule

FROM_DATA = ("n_classes", "channels")


def follow_data(config: DictConfig, datamodule: LightningDataModule) -> None:
    """Sets `model.n_classes` and `model.channels` to those of the data, where they are null.

    From then on the configuration, and with it the checkpoint, holds plain numbers: a verb builds the model from them.
    """
    for name in FROM_DATA:
        if name in (config.get("model") or ()) and OmegaConf.select(config, f"model.{name}") is None:
            config.model[name] = getattr(datamodule, name, None)
