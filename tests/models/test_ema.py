"""The moving average's half-life means what it says."""

import pytest
import torch
from torch import nn

from src.models.modules.ema import EMA


def constant(value: float) -> nn.Linear:
    network = nn.Linear(2, 1)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def past_the_ramp(half_life: float) -> EMA:
    """An average of zeros that has seen so many images that its half-life is the full one."""
    average = EMA(constant(0.0), half_life)
    average.load_state_dict(average.state_dict() | {"images_seen": torch.tensor(10**9)})
    return average


def distance(average: EMA) -> float:
    """What is left of the way from 0 to 1."""
    return 1 - average.network.weight[0, 0].item()


@pytest.mark.parametrize("batch_size", [1, 10, 50])
def test_after_a_half_life_half_the_way_is_left(batch_size: int) -> None:
    average = past_the_ramp(50)
    for _ in range(50 // batch_size):
        average.update(constant(1.0), batch_size)
    assert distance(average) == pytest.approx(0.5, rel=1e-5)
    assert average.network.bias.item() == pytest.approx(0.5, rel=1e-5)
    for _ in range(2 * 50 // batch_size):
        average.update(constant(1.0), batch_size)
    assert distance(average) == pytest.approx(0.125, rel=1e-5)


def test_a_short_run_is_not_averaged_with_its_first_noise() -> None:
    average = EMA(constant(0.0), half_life=1e6)
    expected = 1.0
    for seen in range(10, 110, 10):
        average.update(constant(1.0), 10)
        expected *= 0.5 ** (10 / (0.05 * seen))  # the half-life is a twentieth of the images seen
        assert distance(average) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert distance(average) < 1e-6


def test_the_ramp_ends_at_the_half_life() -> None:
    average = EMA(constant(0.0), half_life=10)
    average.load_state_dict(average.state_dict() | {"images_seen": torch.tensor(199)})
    average.update(constant(1.0), 1)  # the 200th image: 0.05 * 200 == 10
    assert distance(average) == pytest.approx(0.5 ** (1 / 10), rel=1e-5)
    average.update(constant(1.0), 1)
    assert distance(average) == pytest.approx(0.5 ** (2 / 10), rel=1e-5)


def test_buffers_are_copied() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    average = EMA(network, half_life=10)
    network(torch.randn(16, 3) + 5)
    average.update(network, 1)
    assert torch.equal(average.network[0].running_mean, network[0].running_mean)
    assert int(average.network[0].num_batches_tracked) == 1


def test_it_is_a_copy_that_is_never_trained() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model = nn.ModuleDict({"network": network, "ema": EMA(network, half_life=10)}).train()
    assert network.training
    assert not any(module.training for module in model["ema"].modules())
    assert not any(parameter.requires_grad for parameter in model["ema"].parameters())
    before = model["ema"].network[1].weight.clone()
    nn.init.zeros_(network[1].weight)
    assert torch.equal(model["ema"].network[1].weight, before)


@pytest.mark.parametrize("images_before", [0, 300])
def test_the_checkpoint_holds_weights_and_count(images_before: int) -> None:
    """Also where the average that loads it has counted images of its own."""
    whole, resumed = EMA(constant(0.0), half_life=1e6), EMA(constant(3.0), half_life=1e6)
    whole.update(constant(1.0), 40)
    if images_before:
        resumed.update(constant(2.0), images_before)
    resumed.load_state_dict(whole.state_dict())
    assert "images_seen" in whole.state_dict() and int(resumed.images_seen) == 40

    whole.update(constant(2.0), 20)
    resumed.update(constant(2.0), 20)
    assert torch.equal(whole.network.weight, resumed.network.weight)
    assert int(resumed.images_seen) == 60
