"""The training images beside an image."""

import torch

from src.evaluate.neighbours import nearest_neighbours


def test_the_nearest_come_first() -> None:
    distance, index = nearest_neighbours(torch.tensor([[4.0], [0.1]]), torch.tensor([[0.0], [1.0], [5.0]]), 2)
    assert index.tolist() == [[2, 1], [0, 1]]
    torch.testing.assert_close(distance, torch.tensor([[1.0, 3.0], [0.1, 0.9]]))
