"""The pictures that a reviewer sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.models.image_model import ImageModel
from src.models.mnist_gan_model import MNISTGANModel
from src.pictures.pixels import to_grid
from tests.metrics.digits import digits


def test_of_many_classes_some_are_shown_and_named(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, tuple[np.ndarray, str]] = {}
    drawn: list[list[int]] = []

    def show(trainer: object, key: str, picture: np.ndarray, caption: str, path: str) -> None:
        shown[key] = picture, caption

    def generate(self: ImageModel, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(labels.tolist())
        return ImageModel.generate(self, labels, *args, **kwargs)

    monkeypatch.setattr("src.callbacks.wandb_callbacks.show", show)
    monkeypatch.setattr(MNISTGANModel, "generate", generate)
    pictures = ("sample_grid", "interpolation", "real_images")
    few = [*(f"callbacks.{name}.n_classes=4" for name in pictures), "callbacks.quality=null"]
    few += ["callbacks.sample_grid.n_per_class=2", "callbacks.real_images.n_per_class=2"]
    few += ["callbacks.model_checkpoint.monitor=null", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    train_here("run", *few, "logger=none", "test_after_training=false")

    which = "4 of 10: 0, 2, 5, 7"
    assert [0, 0, 2, 2, 5, 5, 7, 7] in drawn
    assert shown["gen_imgs"][1] == f"epoch 0, batch 2: one row a class, {which}"
    assert shown["real_imgs"][1] == f"real training images, one row a class, {which}"
    assert shown["interpolation"][1] == f"epoch 0, batch 2: each row from a class to the next, {which}, with one noise"
    rows = [size // 34 for size in (shown[key][0].shape[0] for key in ("gen_imgs", "real_imgs", "interpolation"))]
    assert rows == [4, 4, 4]
    train = digits().sets["train"]
    first = torch.cat([(train.labels == label).nonzero().flatten()[:2] for label in (0, 2, 5, 7)])
    assert np.array_equal(shown["real_imgs"][0], to_grid(train.__getitems__(first.tolist())[0], 2))


def test_the_classes_between_which_is_drawn_follow_each_other(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def interpolate(self: ImageModel, labels: torch.Tensor, others: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append((labels.tolist(), others.tolist()))
        return ImageModel.interpolate(self, labels, others, *args)

    monkeypatch.setattr(MNISTGANModel, "interpolate", interpolate)
    few = ["callbacks.interpolation.steps=2", "callbacks.interpolation.n_classes=3", "callbacks.quality=null"]
    few += ["callbacks.model_checkpoint.monitor=null", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    train_here("run", *few, "logger=none", "test_after_training=false")
    assert seen == [([0, 0, 3, 3, 6, 6], [3, 3, 6, 6, 0, 0])]
