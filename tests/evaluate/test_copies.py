"""Copies are found, whatever the distances are that images have from each other."""

import pytest
import torch

from src.evaluate.copies import copied, nearest_neighbours, nearest_training_images
from src.evaluate.measure import standard_error
from src.metrics.scores import nearest_distance


def points(n: int, seed: int) -> torch.Tensor:
    """Two classes, in one of which images differ a hundred times as much as in the other."""
    rng = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(n, 8, generator=rng), 100 * torch.randn(n, 8, generator=rng) + 1000])


@pytest.fixture(scope="module")
def train() -> torch.Tensor:
    return points(1_000, 0)


def test_new_images_are_no_copies_and_training_images_are(train: torch.Tensor) -> None:
    held_out, new = (nearest_training_images(points(500, seed), train) for seed in (1, 2))

    assert copied(held_out, held_out) == pytest.approx(0.01)
    assert copied(new, held_out) < 0.03
    assert copied(nearest_training_images(train[::2], train), held_out) == 1
    assert (nearest_training_images(train, train).closeness == 0).all()  # not only nearly


def test_near_copies_are_found_in_a_class_of_great_differences(train: torch.Tensor) -> None:
    """They are farther from their originals than new images of the other class are from training images."""
    near = train[1_000:] + 5 * torch.randn(1_000, 8, generator=torch.Generator().manual_seed(3))
    held_out = nearest_training_images(points(500, 1), train)
    found = nearest_training_images(near, train)

    assert nearest_distance(near, train).median() > nearest_distance(points(500, 1)[:500], train).median()
    assert copied(found, held_out) > 0.9
    assert (found.indices[:, 0] == torch.arange(1_000, 2_000)).double().mean() > 0.95


def test_a_training_image_that_is_there_twice() -> None:
    train = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    found = nearest_training_images(torch.tensor([[0.0], [0.5]]), train)
    assert found.closeness[0] == 0 and found.closeness[1] > 1


def test_the_nearest_come_first() -> None:
    distance, index = nearest_neighbours(torch.tensor([[4.0], [0.1]]), torch.tensor([[0.0], [1.0], [5.0]]), 2)
    assert index.tolist() == [[2, 1], [0, 1]]
    torch.testing.assert_close(distance, torch.tensor([[1.0, 3.0], [0.1, 0.9]]))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = (values.sum() - values) / 9
    assert standard_error(without.tolist()) == pytest.approx(float(values.std() / 10**0.5))
