"""Accuracy and variance of each class."""

import torch

from src.metrics.classes import class_accuracy, class_variance, confusion_matrix


def test_accuracy_of_each_class() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 1, 0])

    confusion = confusion_matrix(predicted, labels, 4)
    assert confusion.tolist() == [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    accuracy = class_accuracy(confusion)
    assert accuracy[[0, 1, 3]].tolist() == [0.75, 1, 0]
    assert accuracy[2].isnan()


def test_variance_of_each_class() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 4.0], [7.0, 7.0], [7.0, 7.0], [1.0, 1.0]])

    variance = class_variance(features, torch.tensor([0, 0, 1, 1, 2]), 3)
    assert variance[:2].tolist() == [2 + 8, 0]
    assert variance[2].isnan()
