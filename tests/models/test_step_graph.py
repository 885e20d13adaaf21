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
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils._pytree import tree_leaves

from src.errors import UserError
from src.models import scheduled_model
from src.models.step_graph import WARM_UP, StepGraph, fits
from tests.conftest import SMALL_TEXT_MODEL, assert_same, build_model, compose_config, load

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
        (tuple(SMALL_TEXT_MODEL), 1),
    ],
)
def test_the_weights_are_those_of_a_run_without_it(
    options: tuple[str, ...], kinds: int, train_here: Callable[..., Path], replays: list[Again]
) -> None:
    same = [*options, "trainer.max_steps=12", "trainer.limit_train_batches=12", "test_after_training=false"]
    without = load(train_here("without", *same))
    assert replays == []
    within = load(train_here("within", *same, "trainer.cuda_graph=auto"))
    assert [each.n for each in replays] == [12 // kinds - WARM_UP] * kinds
    for part in ("state_dict", "optimizer_states"):
        assert_same(without[part], within[part])


@pytest.mark.parametrize("graph", ["false", "auto"])
@pytest.mark.parametrize("options", [(PENALTY,), ("model=flow_model", "model.denoiser.width=16")], ids=["gan", "flow"])
def test_backward_passes_run_outside_of_autocast(
    options: tuple[str, ...],
    graph: str,
    train_here: Callable[..., Path],
    replays: list[Again],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[bool] = set()
    backward = Tensor.backward

    def looked_at(self: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.add(torch.is_autocast_enabled("cpu"))
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", looked_at)
    few = ["trainer.max_steps=4", "trainer.limit_train_batches=4", "test_after_training=false"]
    train_here("run", *options, *few, "trainer.precision=bf16-mixed", f"trainer.cuda_graph={graph}")
    assert seen == {False}


def test_a_step_that_waits_for_the_gpu_is_refused_before_it_is_captured(replays: list[Again]) -> None:
    steps = StepGraph([torch.nn.Parameter(torch.ones(2))])
    batch = torch.zeros(2), torch.zeros(2)

    def compute(batch: Any) -> None:
        waits.append(1)
        if len(waits) == WARM_UP:
            raise RuntimeError("called a synchronizing CUDA operation")

    waits: list[int] = []
    for _ in range(WARM_UP - 1):
        steps("kind", batch, compute)
    with pytest.raises(UserError, match=r"waits for the GPU.*: set trainer\.cuda_graph=false, or find"):
        steps("kind", batch, compute)
    assert replays == []


class Model(SimpleNamespace):
    on_before_backward = LightningModule.on_before_backward
    on_after_backward = LightningModule.on_after_backward


class LooksItself(Model):
    def on_before_backward(self, *_: Any) -> None: ...


def model(wanted: Any = True, device: str = "cuda", why: str = "", kind: type[Model] = Model, **trainer: Any) -> Any:
    usual = {"world_size": 1, "precision_plugin": None, "accumulate_grad_batches": 1, "callbacks": [Callback()]}
    return kind(
        trainer=SimpleNamespace(**{**usual, "cuda_graph": wanted, **trainer}),
        device=torch.device(device),
        why_no_graph=why,
        automatic_optimization=False,
    )


class Looks(Callback):
    def on_after_backward(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"device": "cpu"}, "a CUDA graph needs a GPU of NVIDIA's"),
        ({"world_size": 2}, "several processes average"),
        ({"precision_plugin": SimpleNamespace(scaler=object())}, "trainer.precision=16-mixed scales"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches adds"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler adds"),
        ({"callbacks": [Looks()]}, "Looks.on_after_backward would not be called"),
        ({"kind": LooksItself}, "LooksItself.on_before_backward would not be called"),
        ({"why": "prompts are read in main memory"}, "prompts are read in main memory"),
    ],
)
def test_where_there_can_be_none_it_is_left_out_or_refused(given: dict[str, Any], reason: str) -> None:
    assert not fits(model(wanted="auto", **given))
    assert not fits(model(wanted=False, **given))
    with pytest.raises(UserError, match=rf"^trainer.cuda_graph=true cannot be used, as {reason}.*: set .*=false$"):
        fits(model(**given))


def test_it_is_used_where_it_can_be(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert fits(model(wanted="auto")) and fits(model(wanted=True))
    assert caplog.messages == []  # that is said where one is captured
    assert not fits(model(wanted=False))
    assert caplog.messages[-1].startswith("trainer.cuda_graph=true trains small networks several times as fast")
    with torch.autograd.detect_anomaly(check_nan=False):
        assert not fits(model(wanted="auto"))


def test_models_say_why_not() -> None:
    refusals = {
        "model.augment.instance_noise changes from batch to batch": [
            "model.augment.instance_noise={_target_: src.models.augment.InstanceNoise, std: 0.1, until: 0.5}"
        ],
    }
    for reason, options in refusals.items():
        model = build_model(compose_config("train", "datamodule=digits", *options))
        assert model.why_no_graph == reason
    assert build_model(compose_config("train", "datamodule=digits")).why_no_graph == ""
    text_model = build_model(compose_config("train", "datamodule=digits", *SMALL_TEXT_MODEL))
    assert text_model.why_no_graph == ""
    text_model.network.conditioner.in_main_memory = True  # as a published encoder is
    assert text_model.why_no_graph == "its text encoder reads prompts in main memory"


def test_errors_that_are_not_of_the_capture_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    steps = StepGraph([torch.nn.Parameter(torch.ones(2))])

    def failing(said: str) -> Callable[[Any], Any]:
        def compute(batch: Any) -> None:
            raise RuntimeError(said)

        return compute

    batch = torch.zeros(2), torch.zeros(2)
    with pytest.raises(
        UserError, match=r"cannot be captured .*\(operation not permitted.*: set trainer.cuda_graph=false"
    ):
        steps._capture(batch, failing("operation not permitted when stream is capturing"))
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        steps._capture(batch, failing("shapes do not fit"))
