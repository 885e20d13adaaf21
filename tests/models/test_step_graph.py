"""Steps as a CUDA graph: the same weights as without, and one sentence where there can be none.

Here a graph is stood in for by what runs its operations again on the same tensors; docs/gpu.md has the real thing.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from src.models import scheduled_model
from src.models.step_graph import WARM_UP, StepGraph
from tests.conftest import assert_same, load

PENALTY = "model.penalties.r1={_target_: src.models.penalties.R1, gamma: 1.0, every: 2}"


class Again:
    """Replays what a function asked for: into the tensors that it returned first, when it changed nothing."""

    def __init__(self, run: Callable[[], tuple[Any, list[Tensor | None]]], buffers: list[Tensor]) -> None:
        self.run = run
        self.n = 0
        before = [each.clone() for each in buffers]
        with torch.random.fork_rng():
            self.first = run()
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)

    def replay(self) -> None:
        self.n += 1
        for kept, new in zip(tree_leaves(self.first), tree_leaves(self.run()), strict=True):
            if kept is not None:
                kept.detach().copy_(new)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Again]:
    """Lets a graph be used without a GPU; the graphs that were captured."""
    made: list[Again] = []
    buffers: list[Tensor] = []

    def wanted(model: Any) -> bool:
        buffers[:] = model.buffers()
        return bool(model.trainer.cuda_graph)

    def capture(self: StepGraph, batch: Any, compute: Any) -> Any:
        inputs = batch[0].clone(), batch[1].clone()

        def run() -> tuple[Any, list[Tensor | None]]:
            found = self._clean(inputs, compute)
            return found, self._gradients

        made.append(Again(run, buffers))
        found, gradients = made[-1].first
        return inputs, made[-1], found, gradients

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "set_sync_debug_mode": lambda _: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(StepGraph, "_capture", capture)
    monkeypatch.setattr(scheduled_model, "fits", wanted)
    return made


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ((), 1),
        ((PENALTY, "model.d_steps=2", "model.clip_grad_norm=0.5", "model.ema_half_life=100"), 2),
        ((PENALTY, "model/schedule=cosine", "model.mismatched_labels=0.25", "model.spectral_norm_g=true"), 2),
        (("model=flow_model", "model.denoiser.width=16", "model.condition_dim=16", "model/schedule=linear"), 1),
    ],
)
def test_the_weights_are_those_of_a_run_without_it(
    options: tuple[str, ...], kinds: int, train_here: Callable[..., Path], replays: list[Again]
) -> None:
    same = [*options, "trainer.max_steps=12", "trainer.limit_train_batches=12", "test_after_training=false"]
    without = load(train_here("without", *same))
    assert replays == []
    within = load(train_here("within", *same, "trainer.cuda_graph=true"))
    assert [each.n for each in replays] == [12 // kinds - WARM_UP] * kinds
    for part in ("state_dict", "optimizer_states"):
        assert_same(without[part], within[part])
