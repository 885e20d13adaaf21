"""The data set to compare images with: the one that the models trained on, or the one that was named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.help import CONFIGS
from src.config.instantiate import blamed_on, instantiate
from src.datamodules.folder_datamodule import FolderDataModule
from src.datamodules.image_datamodule import ImageDataModule
from src.datamodules.published_datamodule import PublishedDataModule
from src.errors import UserError
from src.evaluate.inputs import Input
from src.run.trust import DATA, refuse_untrusted

FALLBACK = "digits-fallback"  # the name under which MNIST's datamodule serves the digits
SAME_IMAGES = ("_target_", "train_val_test_split", "folder")  # arguments that decide what is in which split


def find_data(inputs: Sequence[Input], named: DictConfig | None) -> dict[str, Any]:
    """The datamodule's part of a configuration: the one that was named, else that of the models, which must agree."""
    known = [each for each in inputs if each.source is not None]
    for each in known[1:]:
        if each.source != known[0].source:
            raise UserError(
                f"ckpt_path names {known[0].name}, trained on {known[0].source!r}, and {each.name}, trained on"
                f" {each.source!r}, whose numbers do not compare: evaluate each by itself"
            )
    if named is not None:
        return OmegaConf.to_container(named, resolve=True)  # type: ignore[return-value]
    source = known[0].source if known else None
    parts = []  # what checkpoints say of their datamodules
    for each in known:
        if each.checkpoint is None:
            continue
        part = each.checkpoint.datamodule
        refuse_untrusted(part, each.path, trusted=(*DATA, *each.checkpoint.trusted))
        if isinstance(part, dict) and "_target_" in part:
            plain = {key: value for key, value in part.items() if key == "_target_" or not str(key).startswith("_")}
            published = issubclass(hydra.utils.get_class(part["_target_"]), PublishedDataModule)
            parts.append(plain | ({"data_dir": None} if published else {}))  # `load_data` sets ours
    if source != FALLBACK and parts:
        for part in parts[1:]:
            if any(part.get(key) != parts[0].get(key) for key in SAME_IMAGES):
                raise UserError(
                    f"ckpt_path names models that were trained on different parts of {source!r}, so that one may have"
                    " seen what the other is tested on: evaluate each by itself, or name the data with datamodule=NAME"
                )
        return parts[0]
    name = "digits" if source == FALLBACK else str(source).replace("-", "_")
    groups = {path.stem: path for path in sorted((CONFIGS / "datamodule").glob("*.yaml"))}
    if source is None or name not in groups:
        what = f"ckpt_path={inputs[0].path} does not say" if source is None else f"{source!r} does not say"
        raise UserError(f"{what} with which data to compare: add datamodule={'|'.join(groups)}")
    config = OmegaConf.create({"data_dir": None, "seed": 0, "datamodule": OmegaConf.load(groups[name])})
    return OmegaConf.to_container(config, resolve=True)["datamodule"]  # type: ignore[index,call-overload,return-value]


def load_data(inputs: Sequence[Input], named: DictConfig | None, data_dir: str | Path) -> dict[int, ImageDataModule]:
    """The data from the folder `data_dir`, served at each size of the inputs.

    Raises:
        UserError: nothing says which data they are, they cannot be had, or an input's data or images are others.
    """
    part, data = find_data(inputs, named), {}
    for img_size in dict.fromkeys(each.img_size for each in inputs):
        ours = {"img_size": img_size, "data_dir": str(data_dir), "offline_fallback": False}
        served = part | {key: value for key, value in ours.items() if key in part}
        datamodule = instantiate(OmegaConf.create({"datamodule": served}), "datamodule")
        if not isinstance(datamodule, ImageDataModule):
            kind = type(datamodule).__name__
            raise UserError(f"datamodule must be an ImageDataModule, not a {kind}: choose another one")
        with blamed_on("datamodule", folder="data_dir"):
            try:
                datamodule.prepare_data()
            except FileNotFoundError as error:  # its sentence offers the digits instead, which only help training
                if not isinstance(datamodule, PublishedDataModule):
                    raise
                raise UserError(
                    f"{datamodule.title} is not in {datamodule.folder} and could not be downloaded, but images of it"
                    f" can only be compared with itself ({error.__cause__}): put its files there, or type data_dir=DIR"
                ) from error
            datamodule.setup("fit")
        data[img_size] = datamodule

    source = datamodule.source
    same = {source, *({"digits", FALLBACK} if "digits" in source else ())}
    for each in inputs:
        # A folder may have been moved or renamed.
        if each.source is not None and each.source not in same and not isinstance(datamodule, FolderDataModule):
            raise UserError(
                f"ckpt_path={each.path} was trained on {each.source!r}, but datamodule is {source!r}: leave datamodule"
                " out, or choose another file"
            )
        for name in ("channels", "n_classes"):
            theirs, needed = getattr(each, name), getattr(datamodule, name)
            if theirs not in (None, needed):
                raise UserError(
                    f"ckpt_path={each.path} has {name}={theirs}, but the images of {source!r} have {needed}: name the"
                    " data that it draws with datamodule=NAME"
                )
    return data
