"""How gradients are averaged, by a process that trains alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from src.models import gradient_means
from src.models.averaged_gradients import AveragedGradients
from src.models.gradient_means import SHARED_MEMORY, GradientMean, SharedGradientMean, gradient_mean


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def parameters() -> list[nn.Parameter]:
    """Of two types, one of them channels-last, with gradients."""
    made = [torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last), torch.randn(5, dtype=torch.double)]
    found = [nn.Parameter(each) for each in made]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return found


def ours() -> list[str]:
    return [name for name in os.listdir(SHARED_MEMORY) if name.startswith(f"gradients-{os.getpid()}-")]


@pytest.mark.parametrize(("one_machine", "kind"), [(True, SharedGradientMean), (False, GradientMean)])
def test_the_mean_of_one_is_its_own_gradient(group: None, one_machine: bool, kind: type[GradientMean]) -> None:
    trained = parameters()
    mean = gradient_mean(trained, 7, one_machine)
    assert type(mean) is kind and ours() == []
    for _ in range(3):
        before = [p.grad.clone() for p in trained if p.grad is not None]
        mean.take()
        for parameter, gradient in zip(trained, before, strict=True):
            assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
            assert parameter.grad.stride() == parameter.stride()
            parameter.grad = torch.randn_like(parameter)


def test_where_half_of_the_memory_is_too_little_it_is_left_alone(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * (4 * 3 * 2 * 2 + 5) * 8
    for free, kind in [(2 * size - 1, GradientMean), (2 * size, SharedGradientMean)]:
        monkeypatch.setattr(os, "statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
        assert type(gradient_mean(parameters(), 7, one_machine=True)) is kind


def test_a_process_that_ends_meanwhile_leaves_no_file(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(names: list[str]) -> None:
        seen.extend(ours())
        raise RuntimeError("Connection closed by peer")

    seen: list[str] = []
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", fails)
    with pytest.raises(RuntimeError, match="closed by peer"):
        gradient_means.gradient_mean(parameters(), 7, one_machine=True)
    assert len(seen) == 1 and ours() == []


def test_gradients_that_are_only_added_up_are_not_sent(group: None) -> None:
    """Of a model that Lightning optimises: torch's wrapper sends them."""
    strategy: Any = AveragedGradients()
    strategy._lightning_module = SimpleNamespace(automatic_optimization=True)
    strategy.model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    with strategy.block_backward_sync():
        assert not strategy.model.require_backward_grad_sync
    assert strategy.model.require_backward_grad_sync
