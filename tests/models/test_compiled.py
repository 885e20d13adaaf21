"""A network that torch compiles for training. Here all is done but the last step, which needs a C++ compiler."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.models.compiled import Compiled
from tests.conftest import SMALL_TEXT_MODEL, load

OPTIONS = [*SMALL_TEXT_MODEL, "trainer.max_steps=6", "trainer.limit_train_batches=6", "test_after_training=false"]


def test_the_network_is_compiled_for_training_alone(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(train_here("plain", *OPTIONS))
    shapes: list[tuple[int, ...]] = []

    def backend(graph: Any, examples: list[Any]) -> Any:
        shapes.append(next(tuple(each.shape) for each in examples if each.dim() == 4 and each.shape[-1] == 8))
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    caplog.set_level("INFO")
    compiled = load(train_here("compiled", *OPTIONS, "model.compile=true"))

    assert len(shapes) == 1  # neither in validation nor to draw
    assert "compiling the network: the first step takes up to a minute" in caplog.messages
    assert plain["state_dict"].keys() == compiled["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(compiled["state_dict"][name], value, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(
        UserError, match=r"^model.compile=true cannot be had, as .*no C\+\+ compiler.* model.compile=false"
    ):
        Compiled(torch.neg, "model.compile")(torch.zeros(2))
