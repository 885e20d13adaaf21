"""What is built is what belongs there, or is refused with a sentence."""

import re
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from src.config.instantiate import instantiate
from src.errors import UserError
from src.models.losses import HingeLoss
from tests.conftest import build_model, compose_config

GET_LOSS = "{_target_: hydra.utils.get_class, path: src.models.losses.HingeLoss}"


@pytest.mark.parametrize(
    ("key", "overrides", "says"),
    [
        ("model", "model.loss._target_=builtins.print", "=builtins.print makes nothing, but an AdversarialLoss"),
        ("model", "model.loss._target_=torch.nn.ReLU", "makes a ReLU, but an AdversarialLoss is needed"),
        ("model", f"~model.loss +model.loss={GET_LOSS}", "makes the class HingeLoss, but an AdversarialLoss"),
        ("model", "model.generator._target_=builtins.dict", "makes a dict, but a Module is needed"),
        ("model", "+model.generator._partial_=true", "_partial_ is true, but a Module is needed: set it to false"),
        ("model", "model.optimizer_g._target_=torch.nn.Module", "makes a Module, but what makes an Optimizer"),
        ("model", "model.optimizer_g._partial_=false", "lacks 'params': add it, or set model.optimizer_g._partial_"),
        ("model", "model.penalties.r1={_target_: builtins.dict}", "makes a dict, but a Penalty is needed"),
        ("model", "model.penalties.r1={_target_: builtins.print}", "makes nothing, but a Penalty is needed"),
        ("model", "model.augment.diffaugment={_target_: builtins.set}", "makes a set, but what makes a Tensor"),
        ("model", "model.schedule={_target_: builtins.object}", "makes an object, but a Schedule is needed"),
        ("model", "model={_target_: builtins.dict}", "makes a dict, but a LightningModule is needed"),
        ("model", "model._target_=builtins.dict", "makes a dict, but a LightningModule is needed"),
        ("datamodule", "datamodule._target_=builtins.dict", "but a LightningDataModule is needed"),
        (
            "datamodule",
            "+datamodule._partial_=true",
            "_partial_ is true, but a LightningDataModule is needed: set it to false",
        ),
        ("trainer", "trainer._target_=builtins.dict", "makes a dict, but a Trainer is needed"),
        ("callbacks.mine", "+callbacks.mine={_target_: builtins.list}", "makes a list, but a Callback is needed"),
        ("logger.mine", "+logger.mine={_target_: builtins.print}", "makes nothing, but a Logger is needed"),
    ],
)
def test_a_part_that_is_something_else_is_refused(key: str, overrides: str, says: str) -> None:
    config = compose_config("train", *re.split(r" (?=\+)", overrides))
    with pytest.raises(UserError, match=rf"{key}.*{re.escape(says)}"):
        build_model(config) if key == "model" else instantiate(config, key)


def test_what_makes_no_optimizer_is_refused() -> None:
    config = compose_config(
        "train", "~model.optimizer_d", "+model.optimizer_d={_target_: torch.clone, _partial_: true}"
    )
    with pytest.raises(UserError, match=r"model\.optimizer_d"):
        build_model(config)
    config.model.optimizer_d._target_ = "builtins.list"
    with pytest.raises(UserError, match=r"model\.optimizer_d\._target_=builtins.list makes a list, but .* Optimizer"):
        build_model(config)
    config.model.optimizer_d._target_ = "builtins.repr"
    with pytest.raises(UserError, match=r"model\.optimizer_d must make an optimizer of torch, not a str"):
        build_model(config)


def test_parts_arrive_as_they_were_made() -> None:
    typed = ["model.loss._target_=src.models.losses.HingeLoss", "model.spectral_norm=true"]
    typed += ["model.penalties.r1={_target_: src.models.penalties.R1}", "model.optimizer_d._target_=torch.optim.AdamW"]
    model = build_model(compose_config("train", *typed))
    assert isinstance(model.loss, HingeLoss) and list(model.penalties) == ["r1"]
    assert isinstance(model.optimizer_d, partial)
    assert isinstance(model.configure_optimizers()[1], torch.optim.AdamW)
    part = {"_target_": "builtins.dict", "loss": OmegaConf.create(GET_LOSS)}  # whose arguments state no types
    assert instantiate(OmegaConf.create({"part": part}), "part") == {"loss": HingeLoss}
