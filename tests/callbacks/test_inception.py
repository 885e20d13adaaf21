"""FID, KID and Inception score: what torch-fidelity is given, and what is said where it cannot be had."""

import sys
import types
import urllib.error
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from src.callbacks.inception import LogInception
from src.errors import UserError
from tests.callbacks.test_quality import Replaying
from tests.metrics.digits import digits

URL = "https://example.org/weights.pth"


def stand_in(patch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Replaces torch-fidelity, be it installed or not; its weights are too large for a test."""
    for name in ("torch_fidelity", "torch_fidelity.utils", "torch_fidelity.feature_extractor_inceptionv3"):
        module = types.ModuleType(name)
        vars(module).update({"URL_INCEPTION_V3": URL} | functions)
        patch.setitem(sys.modules, name, module)


def logged_after(n: int) -> dict[str, float]:
    trainer = Trainer(accelerator="cpu", callbacks=[LogInception(n)], logger=False, enable_progress_bar=False)
    trainer.test(Replaying("test"), datamodule=digits(), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_it_compares_rounded_pictures_in_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def calculate_metrics(input1: Any, input2: Any, kid_subset_size: int, **_: Any) -> dict[str, float]:
        for pictures in (input1, input2):
            assert pictures[0].dtype == torch.uint8 and pictures[0].shape == (3, 32, 32) and pictures[0].any()
        compared.append((len(input1), len(input2), kid_subset_size))
        found = {"kernel_inception_distance_mean": 0.5, "inception_score_mean": 2.0}
        return found | {"frechet_inception_distance": float(len(compared))}

    stand_in(monkeypatch, create_feature_extractor=lambda *_, **__: None, calculate_metrics=calculate_metrics)
    logged = logged_after(200)
    assert compared == [(200, 257, 200), (200, 257, 200)]
    assert logged["test/inception_fid"] == 1
    assert logged["test/inception_fid_floor"] == 2
    assert logged.keys() == {
        f"test/inception_{name}{suffix}" for name in ("fid", "kid", "score") for suffix in ("", "_floor")
    }


def test_without_the_package_or_the_weights_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", None)
    with pytest.raises(UserError, match=r"^callbacks.inception needs torch-fidelity: type pip install -r requirements"):
        logged_after(10)
    stand_in(monkeypatch, create_feature_extractor=unreachable)
    with pytest.raises(UserError, match=f"could not be downloaded .*no network.* put {URL} into .*checkpoints"):
        logged_after(10)
