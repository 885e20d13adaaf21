"""The classifier in whose features images are compared."""

from typing import Any

import pytest
import torch

from src.metrics.feature_net import FeatureNet, shifted, train_classifier
from tests.conftest import assert_same
from tests.metrics.digits import CPU, digits, references


def few() -> tuple[torch.Tensor, torch.Tensor]:
    return digits().sets["train"].images[:200], digits().sets["train"].labels[:200]


def test_training_repeats_itself_and_leaves_the_runs_noise_alone() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with torch.inference_mode(seed == 2):  # a test runs in it
            weights.append(train_classifier(*few(), 10, 8, CPU, "test").state_dict())
        assert torch.equal(torch.get_rng_state(), before)

    assert_same(*weights)


def test_it_knows_digits_that_it_has_not_seen() -> None:
    for split in ("val", "test"):
        real = references().real[split]
        assert (real.predicted == real.labels).double().mean() > 0.97


def test_features_have_mean_0_and_variance_1_on_the_training_images() -> None:
    features = references().real["train"].features

    assert features.shape == (1_412, 64)
    assert features.mean(0).abs().max() < 0.2
    assert features.var(0).sub(1).abs().max() < 0.3


@pytest.mark.parametrize(("native", "size"), [(8, 16), (16, 16), (28, 32), (32, 32), (64, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_compared_in_a_fixed_one(native: int, size: int, channels: int) -> None:
    net = FeatureNet(7, channels, native).eval()
    pixels = torch.randint(256, (3, channels, 40, 40), dtype=torch.uint8)

    assert net.size == size
    assert net.features(pixels).shape == (3, 64)
    assert net(pixels).shape == (3, 7)


def test_floats_are_refused_because_they_are_not_rounded() -> None:
    with pytest.raises(ValueError, match="uint8"):
        FeatureNet(10, 1, 28).features(torch.zeros(2, 1, 28, 28))


def test_shifts_move_whole_images_and_repeat_their_edges() -> None:
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6)

    moved = shifted(image.expand(200, 1, 6, 6), 1, torch.Generator().manual_seed(0))

    padded = torch.nn.functional.pad(image.float(), (1, 1, 1, 1), mode="replicate").byte()[0, 0]
    expected = {tuple(padded[y : y + 6, x : x + 6].flatten().tolist()) for y in range(3) for x in range(3)}
    assert {tuple(each.flatten().tolist()) for each in moved} == expected


class OnGPU(torch.Tensor):
    """Stands for a tensor on a GPU: numpy cannot read it."""

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_its_checksum_is_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    net = FeatureNet(10, 1, 8)
    here, weights = net.sha256(), net.state_dict()
    there = {name: tensor.as_subclass(OnGPU) for name, tensor in weights.items()}
    monkeypatch.setattr(net, "state_dict", lambda: there)
    assert net.sha256() == here
    weights["head.weight"][0, 0] += 1
    assert net.sha256() != here


def test_on_a_gpu_cudnn_computes_it_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same each time; torch switches it off where one asks for that alone."""
    seen: set[tuple[bool, ...]] = set()
    features = FeatureNet.features

    def noted(self: FeatureNet, pixels: torch.Tensor) -> torch.Tensor:
        cudnn = torch.backends.cudnn
        seen.add((cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32))
        return features(self, pixels)

    monkeypatch.setattr(FeatureNet, "features", noted)
    net = train_classifier(*few(), 10, 8, CPU, "test")
    net.embed(*few())
    assert seen == {(True, True, False)}
