"""A figure of quality against an option."""

from src.pictures.trade_off import SHARES, draw_trade_off


def test_a_line_goes_as_its_numbers() -> None:
    named = {"fd": 0.1, **dict.fromkeys(SHARES, 0.9)}
    floors = {f"{name}_floor": value for name, value in named.items()}
    rows = [{"steps": 2**i, "seconds": 0.1, **named, **floors, "fd": 8.0 / 2**i} for i in range(4)]
    picture = draw_trade_off("steps", rows).astype(int)
    left = picture[:, : picture.shape[1] // 2]
    blue = (left[:, :, 2] - left[:, :, 0] > 100).argmax(0)  # the uppermost blue pixel of each column
    points = blue[blue > 0]
    assert len(points) > 200 and points[10] < points[len(points) // 2] < points[-10]
