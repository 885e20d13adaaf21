"""The page of feature nets shows nets that differ, and how much their numbers do."""

import pytest

from benchmarks import feature_nets
from src.metrics import feature_net


def test_a_net_has_a_row_and_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_net, "MOST_IMAGES", 2_000)
    rows = feature_nets.section("digits", 16, [(1, 0), (1, 0), (1, 1)]).splitlines()[4:]

    same, again, other, spread = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    assert same == again  # the same seed on the same threads: the same to the bit
    assert other[2] != same[2] and other[3:] != same[3:]
    assert float(same[5]) > float(same[3])  # blurred images are further away
    assert spread[0] == "standard deviation" and float(spread[3].split()[0]) > 0
