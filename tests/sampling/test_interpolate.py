"""Ways between noises and between classes begin and end at what is drawn at their ends."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from src.interpolate import interpolate, slerp
from src.models.request import Request
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.sampling.sampler import Noise
from tests.conftest import compose_config

Drawn = Callable[..., Path]
CELL = 34


@pytest.fixture(scope="module")
def drawn(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """The pictures of the trained checkpoint in a new folder."""

    def run(*typed: str) -> Path:
        out = tmp_path_factory.mktemp("out")
        interpolate(compose_config("interpolate", f"ckpt_path={checkpoint}", *typed, f"out={out}", run_dir=out))
        return out

    return run


@pytest.fixture(scope="module")
def out(drawn: Drawn) -> Path:
    return drawn("labels=[3,8,1]", "n_noises=4", "steps=5", "seed=2")


def cells(path: Path) -> np.ndarray:
    """The images of a grid, uint8 [rows, columns, 32, 32]."""
    picture = np.asarray(Image.open(path))[:, :, 0]
    rows, columns = picture.shape[0] // CELL, picture.shape[1] // CELL
    return np.array([[picture[2 + CELL * r :, 2 + CELL * c :][:32, :32] for c in range(columns)] for r in range(rows)])


def plain(checkpoint: Path, labels: list[int], noises: np.ndarray) -> np.ndarray:
    return CheckpointSampler(checkpoint).draw(Request(noises, np.array(labels)))[:, :, :, 0]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a.astype(int) - b).max() <= 1)  # where rounding is close


def test_the_table_has_a_row_a_noise_and_a_column_a_class(out: Path, checkpoint: Path) -> None:
    noises = Noise((100,), 2)(4)
    table = cells(out / "table.png")
    assert table.shape == (4, 3, 32, 32)
    for row, noise in zip(table, noises, strict=True):
        assert close(row, plain(checkpoint, [3, 8, 1], noise[None].repeat(3, axis=0)))


def test_a_row_goes_from_one_noise_to_another(out: Path, checkpoint: Path) -> None:
    rows, noises = cells(out / "noises.png"), Noise((100,), 2)(4)
    assert rows.shape == (3, 5, 32, 32)
    for row, label in zip(rows, [3, 8, 1], strict=True):
        assert close(row[[0, -1]], plain(checkpoint, [label, label], noises[:2]))
        assert all((a != b).any() for a, b in pairwise(row))


def test_a_row_goes_from_one_class_to_the_next(out: Path, checkpoint: Path) -> None:
    rows, noises = cells(out / "classes.png"), Noise((100,), 2)(4)
    for row, ends in zip(rows, [[3, 8], [8, 1], [1, 3]], strict=True):
        assert close(row[[0, -1]], plain(checkpoint, ends, noises[[0, 0]]))
        assert all((a != b).any() for a, b in pairwise(row))


@pytest.mark.parametrize(("name", "frames", "columns"), [("noises", 4 * 4, 2), ("classes", 3 * 4, 3)])
def test_an_animation_has_every_frame_once_and_never_ends(out: Path, name: str, frames: int, columns: int) -> None:
    animation = Image.open(out / f"{name}.gif")
    assert animation.info["loop"] == 0
    shown = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(animation)]
    assert len(shown) == frames and shown[0].shape[1] == 2 * (columns * CELL + 2)
    assert np.array_equal(shown[0][4:68:2, 4:68:2], cells(out / f"{name}.png")[0, 0])


def test_a_class_alone_has_no_way_to_another(drawn: Drawn) -> None:
    out = drawn("labels=[5]", "n_noises=2", "steps=3")
    assert {path.name for path in out.iterdir()} == {"table.png", "noises.png", "noises.gif"}


def test_an_arc_keeps_the_length_of_noise() -> None:
    a, b = Noise((64,), 0)(2)
    lengths = [float(np.linalg.norm(slerp(a, b, weight))) for weight in np.linspace(0, 1, 9)]
    assert np.allclose(slerp(a, b, 0), a, atol=1e-6) and np.allclose(slerp(a, b, 1), b, atol=1e-6)
    assert min(lengths) > 0.95 * min(lengths[0], lengths[-1])
    assert float(np.linalg.norm((a + b) / 2)) < 0.85 * min(lengths[0], lengths[-1])  # which a line does not
    assert np.allclose(slerp(a, a, 0.3), a) and np.allclose(slerp(0 * a, 0 * a, 0.3), 0)
