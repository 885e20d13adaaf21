"""Learning rates over a run."""

import pytest

from src.models.schedules import CosineSchedule, LinearSchedule
from tests.conftest import build


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_rise_plateau_and_fall(kind) -> None:
    schedule = kind(warmup=0.1, hold=0.5, final=0.2)
    assert schedule(0.0) == 0
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == schedule(0.3) == schedule(0.5) == 1
    assert schedule(0.75) == pytest.approx(0.6)  # half-way down
    assert schedule(1.0) == pytest.approx(0.2)
    fall = [schedule(0.5 + i / 20) for i in range(11)]
    assert fall == sorted(fall, reverse=True)


def test_a_line_and_a_cosine_differ_on_the_way() -> None:
    assert LinearSchedule(hold=0.0)(0.25) == pytest.approx(0.75)
    assert CosineSchedule(hold=0.0)(0.25) == pytest.approx((1 + 2**-0.5) / 2)


def test_a_plateau_to_the_end() -> None:
    assert LinearSchedule(hold=1.0)(1.0) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hold": 1.5}, "hold must be a number from 0 to 1, not 1.5"),
        ({"final": -0.1}, "final must be"),
        ({"warmup": 0.6, "hold": 0.5}, "warmup is 0.6, after hold, which is 0.5: set hold to 0.6 or more"),
    ],
)
def test_shares_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(LinearSchedule, **arguments)
