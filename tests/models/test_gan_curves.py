"""A discriminator that has won is an alarm."""

import pytest

from src.models.gan_curves import gan_alarms


@pytest.mark.parametrize(("share", "alarmed"), [(0.994, False), (0.996, True), (None, False)])
def test_a_saturated_discriminator(share: float | None, alarmed: bool) -> None:
    found = gan_alarms({"fd": 1.0} if share is None else {"d_pair_accuracy": share})
    assert ("d" in found) == alarmed
    assert not alarmed or "99.6% of pairs" in found["d"]
