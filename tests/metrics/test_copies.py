"""Copies are found, whatever the distances are that images have from each other."""

import pytest
import torch

from src.metrics.copies import copied, nearest_training_images, too_many


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

    assert found.distance.median() > held_out.distance[:500].median()
    assert copied(found, held_out) > 0.9


def test_near_is_relative_to_the_nearest_training_images_own_neighbour() -> None:
    train = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 14.0]])
    found = nearest_training_images(torch.tensor([[0.0, 1.0], [3.0, 8.0], [3.0, 4.0]]), train)
    assert found.distance.tolist() == pytest.approx([1, 4, 0])
    assert found.closeness.tolist() == pytest.approx([1 / 5, 4 / 5, 0])


def test_many_images_are_compared_as_few_are(monkeypatch: pytest.MonkeyPatch, train: torch.Tensor) -> None:
    whole = nearest_training_images(points(20, 1), train)
    monkeypatch.setattr("src.metrics.copies.BLOCK", 7)
    for a, b in zip(whole, nearest_training_images(points(20, 1), train), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("share", "n", "many"), [(0.06, 1_000, True), (0.055, 1_000, False), (0.1, 100, False)])
def test_a_few_images_more_than_that_are_chance(share: float, n: int, many: bool) -> None:
    assert too_many(share, n, 0.05) == many


def test_a_training_image_that_is_there_twice() -> None:
    train = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    found = nearest_training_images(torch.tensor([[0.0], [0.5]]), train)
    assert found.closeness[0] == 0 and found.closeness[1] > 1
