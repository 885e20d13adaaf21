"""Precision, recall, density and coverage on sets small enough to count by hand."""

import pytest
import torch

from src.metrics import neighbours
from src.metrics.neighbours import nearest_distance, precision_recall_density_coverage, radii

# Seven points on a line. Each row: its distances to the 3rd and 5th nearest of the others.
LINE = torch.arange(7.0).unsqueeze(1)
RADII = {3: [3, 2, 2, 2, 2, 2, 3], 5: [5, 4, 3, 3, 3, 4, 5]}


def test_radii_on_a_line() -> None:
    third, fifth = radii(LINE)

    assert third.tolist() == RADII[3]
    assert fifth.tolist() == RADII[5]


def test_the_same_set_twice() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))

    scores = precision_recall_density_coverage(features, features)
    assert (scores["precision"], scores["recall"], scores["coverage"]) == (1, 1, 1)


def test_by_hand() -> None:
    """Real at 0 ... 6; six generated images at 6.5 and one at 20."""
    generated = torch.tensor([[6.5]] * 6 + [[20.0]])

    scores = precision_recall_density_coverage(LINE, generated)

    # The balls (k = 3) of 5 and 6 reach 7 and 9.
    assert scores["precision"] == pytest.approx(6 / 7)
    # Six images in one place have balls of radius 0; that of the seventh, 13.5, reaches down to 6.5.
    assert scores["recall"] == 0
    # The balls (k = 5) of 4, 5 and 6 reach 7, 9 and 11.
    assert scores["density"] == pytest.approx(6 * 3 / (5 * 7))
    assert scores["coverage"] == pytest.approx(3 / 7)


def test_recall_asks_for_real_images_in_generated_balls() -> None:
    generated = torch.tensor([[0.0], [0.5], [1.0], [1.5], [2.0], [2.5]])  # (k = 3) radii: 1.5, 1, 1, 1, 1, 1.5

    assert precision_recall_density_coverage(LINE, generated)["recall"] == pytest.approx(5 / 7)  # up to 2.5 + 1.5


def test_far_away_is_nothing_of_anything() -> None:
    scores = precision_recall_density_coverage(LINE, LINE + 1_000)

    assert scores == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_an_outlier_makes_recall_but_no_density() -> None:
    """Why there are two pairs: one generated image far off has a ball that holds all real ones."""
    real = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    generated = torch.cat([torch.zeros(99, 2) + 50, torch.tensor([[-60.0, -60.0]])])

    scores = precision_recall_density_coverage(real, generated)
    assert precision_recall_density_coverage(real, generated, radii(real)) == scores
    assert scores["recall"] == 1
    assert scores["coverage"] == scores["density"] == 0


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 3, generator=rng), torch.randn(50, 3, generator=rng)
    whole = precision_recall_density_coverage(a, b), nearest_distance(a, b)
    monkeypatch.setattr(neighbours, "BLOCK", 7)

    assert precision_recall_density_coverage(a, b) == whole[0]
    assert torch.allclose(nearest_distance(a, b), whole[1])


def test_nearest_distance() -> None:
    a, b = torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([[3.0, 4.0], [9.0, 1.0]])

    assert nearest_distance(a, b).tolist() == [5, 1]
