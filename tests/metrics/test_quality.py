"""All metrics at once, on sets of images whose quality is known."""

import pytest
import torch

from src.metrics.alarms import alarms
from src.metrics.feature_net import Embedded
from src.metrics.quality import QualityMetrics, chosen
from tests.metrics.digits import references

NAMES = [str(digit) for digit in range(10)]
KEYS = {
    *("fd", "kid", "precision", "recall", "density", "coverage", "label_accuracy", "worst_class_accuracy"),
    *("within_class_variance", "nearest_train"),
}


@pytest.fixture(scope="module")
def metrics() -> QualityMetrics:
    return QualityMetrics(references().real, 10, 2_000)


def asked_for(labels: torch.Tensor) -> Embedded:
    """Held-out images, as if other classes had been asked for."""
    return chosen(references().real["val"], 128)._replace(labels=labels)


def test_the_split_itself_is_perfect() -> None:
    test = references().real["test"]
    measured = QualityMetrics({"train": test, "val": test, "test": test}, 10, 2_000).floor.metrics

    assert measured.keys() == KEYS
    assert measured["fd"] == pytest.approx(0, abs=1e-6)
    assert (measured["precision"], measured["recall"], measured["coverage"]) == (1, 1, 1)
    assert measured["within_class_variance"] == pytest.approx(1)
    assert measured["nearest_train"] == pytest.approx(0, abs=1e-2)  # float32


def test_the_floor_is_of_held_out_images(metrics: QualityMetrics) -> None:
    assert metrics.n == len(metrics.labels) == 128  # the validation split has no more
    assert sorted(metrics.labels.tolist()) == sorted(references().real["val"].labels.tolist())
    assert metrics.floor.metrics["label_accuracy"] > 0.97
    assert metrics.floor.metrics["nearest_train"] > 1
    assert 0.7 < metrics.floor.metrics["within_class_variance"] < 1.3
    assert alarms(metrics.floor, metrics.floor, NAMES) == {}


def test_fewer_images_can_be_measured() -> None:
    assert QualityMetrics(references().real, 10, 50).n == 50


def test_one_training_image_a_class(metrics: QualityMetrics) -> None:
    """Every label is right and every image real, and yet it is the worst of models."""
    train = references().real["train"]
    first = torch.tensor([int((train.labels == label).nonzero()[0]) for label in range(10)])
    images = Embedded(*(tensor[first].repeat_interleave(12, 0) for tensor in train))

    quality = metrics.measure(images)

    assert quality.metrics["label_accuracy"] == quality.metrics["worst_class_accuracy"] == 1
    assert quality.metrics["recall"] == 0
    assert quality.metrics["within_class_variance"] == pytest.approx(0, abs=1e-6)
    assert quality.metrics["nearest_train"] == pytest.approx(0, abs=1e-2)
    assert quality.metrics["fd"] > 3 * metrics.floor.metrics["fd"]
    found = alarms(quality, metrics.floor, NAMES)
    assert found.keys() == {"variance", "copies"}
    assert "each class is nearly one image" in found["variance"]
    assert "training images are copied" in found["copies"]


def test_training_images_are_copies_whatever_their_variety(metrics: QualityMetrics) -> None:
    quality = metrics.measure(chosen(references().real["train"], 128))

    assert quality.metrics["within_class_variance"] > 0.7
    assert alarms(quality, metrics.floor, NAMES).keys() == {"copies"}


def test_one_class_that_is_always_the_same_image(metrics: QualityMetrics) -> None:
    images = chosen(references().real["val"], 128)
    sevens = (images.labels == 7).nonzero().flatten()
    features = images.features.clone()
    features[sevens] = images.features[sevens[0]]

    found = alarms(metrics.measure(images._replace(features=features)), metrics.floor, NAMES)

    assert found.keys() == {"variance 7"}
    assert "class 7 is nearly one image" in found["variance 7"]


def test_ignored_labels(metrics: QualityMetrics) -> None:
    shuffled = metrics.labels[torch.randperm(128, generator=torch.Generator().manual_seed(0))]

    quality = metrics.measure(asked_for(shuffled))

    # The images are as good as before: only what depends on labels shows it.
    for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
        assert quality.metrics[name] == metrics.floor.metrics[name]
    found = alarms(quality, metrics.floor, NAMES)
    assert found.keys() == {"labels"}
    assert "labels are ignored" in found["labels"]


def test_always_the_same_class_ignores_labels(metrics: QualityMetrics) -> None:
    images = chosen(references().real["val"], 128)
    ones = (images.labels == 1).nonzero().flatten()
    only_ones = Embedded(*(tensor[ones].repeat(13, *[1] * (tensor.dim() - 1))[:128] for tensor in images))

    quality = metrics.measure(only_ones._replace(labels=metrics.labels))

    assert "labels are ignored" in alarms(quality, metrics.floor, NAMES)["labels"]


def test_labels_off_by_one_are_mixed_up(metrics: QualityMetrics) -> None:
    found = alarms(metrics.measure(asked_for((metrics.labels + 1) % 10)), metrics.floor, NAMES)

    assert found.keys() == {"labels"}
    assert "labels are mixed up" in found["labels"]
    assert "1 as 0, 2 as 1, 3 as 2" in found["labels"]


def test_a_lost_class_is_named(metrics: QualityMetrics) -> None:
    """Asked for a 3, it draws an 8."""
    images = chosen(references().real["val"], 128)
    threes, eights = ((images.labels == digit).nonzero().flatten() for digit in (3, 8))
    index = torch.arange(128)
    index[threes] = eights.repeat(3)[: len(threes)]
    lost = Embedded(images.features[index], images.predicted[index], images.labels)

    quality = metrics.measure(lost)

    assert quality.metrics["worst_class_accuracy"] == 0
    found = alarms(quality, metrics.floor, NAMES)
    assert list(found) == ["class 3"]
    assert found["class 3"] == "class 3 is lost (0.0% of its images are taken for one, most for 8)"
