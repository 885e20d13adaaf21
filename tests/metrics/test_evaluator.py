"""All metrics and alarms at once, on sets of images whose quality is known."""

import pytest
import torch

from src.metrics.evaluator import Evaluator, choice
from src.metrics.feature_net import Embedded
from tests.metrics.digits import CPU, digits, evaluator, references

KEYS = {
    *("fd", "kid", "precision", "recall", "density", "coverage", "label_accuracy", "worst_class_accuracy"),
    *("within_class_variance", "nearest_train", "copied"),
}


def some(split: str) -> Embedded:
    """128 real images at random; of the validation split, the held-out ones."""
    real = references().real[split]
    return real.at(choice(len(real.labels), 128))


def alarms(images: Embedded) -> dict[str, str]:
    return evaluator().alarms(evaluator().measure(images))


def test_the_split_itself_is_perfect() -> None:
    test = references().real["test"]
    same = references()._replace(real={"train": test, "val": test, "test": test})
    measured = Evaluator(digits(), same, 2_000, CPU).floor.metrics

    assert measured.keys() == KEYS
    assert measured["fd"] == pytest.approx(0, abs=1e-6)
    assert (measured["precision"], measured["recall"], measured["coverage"]) == (1, 1, 1)
    assert measured["within_class_variance"] == pytest.approx(1)
    assert measured["nearest_train"] == 0


def test_the_floor_is_of_held_out_images() -> None:
    assert evaluator(50).n == 50 and evaluator().n == 128  # the validation split has no more
    assert sorted(evaluator().labels.tolist()) == sorted(references().real["val"].labels.tolist())
    floor = evaluator().floor
    assert floor.metrics["label_accuracy"] > 0.97
    assert floor.metrics["nearest_train"] > 1
    assert 0 < floor.metrics["copied"] < 0.03
    assert 0.7 < floor.metrics["within_class_variance"] < 1.3
    assert evaluator().alarms(floor) == {}


def test_one_training_image_a_class() -> None:
    """Every label is right and every image real, and yet it is the worst of models."""
    train = references().real["train"]
    first = torch.tensor([int((train.labels == label).nonzero()[0]) for label in range(10)])

    quality = evaluator().measure(train.at(first.repeat_interleave(12)))
    assert quality.metrics["label_accuracy"] == quality.metrics["worst_class_accuracy"] == 1
    assert quality.metrics["recall"] == 0
    assert quality.metrics["within_class_variance"] == pytest.approx(0, abs=1e-6)
    assert quality.metrics["nearest_train"] == 0 and quality.metrics["copied"] == 1
    assert quality.metrics["fd"] > 3 * evaluator().floor.metrics["fd"]
    found = evaluator().alarms(quality)
    assert found.keys() == {"variance", "copies"}
    assert "each class is nearly one image" in found["variance"]
    assert "training images are copied" in found["copies"]


def test_training_images_are_copies_whatever_their_variety() -> None:
    quality = evaluator().measure(some("train"))
    assert quality.metrics["within_class_variance"] > 0.7
    assert evaluator().alarms(quality).keys() == {"copies"}


def test_one_class_that_is_always_the_same_image() -> None:
    images = some("val")
    sevens = (images.labels == 7).nonzero().flatten()
    features = images.features.clone()
    features[sevens] = images.features[sevens[0]]

    found = alarms(images._replace(features=features))
    assert found.keys() == {"variance 7"}
    assert "class 7 is nearly one image" in found["variance 7"]


def test_ignored_labels() -> None:
    images = some("val")
    shuffled = images.labels[torch.randperm(128, generator=torch.Generator().manual_seed(0))]

    quality = evaluator().measure(images._replace(labels=shuffled))

    # The images are as good as before: only what depends on labels shows it.
    for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
        assert quality.metrics[name] == evaluator().floor.metrics[name]
    found = evaluator().alarms(quality)
    assert found.keys() == {"labels"} and "labels are ignored" in found["labels"]


def test_always_the_same_class_ignores_labels_and_labels_off_by_one_are_mixed_up() -> None:
    images = some("val")
    ones = (images.labels == 1).nonzero().flatten()
    assert "labels are ignored" in alarms(images.at(ones.repeat(13)[:128])._replace(labels=images.labels))["labels"]

    found = alarms(images._replace(labels=(images.labels + 1) % 10))
    assert found.keys() == {"labels"}
    assert "labels are mixed up" in found["labels"] and "1 as 0, 2 as 1, 3 as 2" in found["labels"]


def test_a_lost_class_is_named() -> None:
    """Asked for a 3, it draws an 8."""
    images = some("val")
    threes, eights = ((images.labels == digit).nonzero().flatten() for digit in (3, 8))
    index = torch.arange(128)
    index[threes] = eights.repeat(3)[: len(threes)]

    quality = evaluator().measure(images.at(index)._replace(labels=images.labels))

    assert quality.metrics["worst_class_accuracy"] == 0
    found = evaluator().alarms(quality)
    assert found == {"class 3": "class 3 is lost (0.0% of its images are taken for one, most for 8)"}
