"""The file that keeps a feature net and the real images in its features."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from src.config.text import safe_name
from src.datamodules.digits_datamodule import DigitsDataModule
from src.datamodules.loader import ImageSet
from src.errors import UserError
from src.metrics import references
from src.metrics.references import check_accuracy, load_references
from src.pictures.pixels import to_pixels
from tests.conftest import assert_same
from tests.metrics.digits import CPU, digits
from tests.metrics.digits import references as digits_references


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits' file in a folder of its own, with one size; nothing can train another net."""
    # Not the shared file: another worker may have written it without this size.
    name, net, real = (getattr(digits_references(), part) for part in ("name", "net", "real"))
    copy = tmp_path / f"{name}.pt"
    content = {"weights": net.state_dict(), "real": {32: {split: tuple(each) for split, each in real.items()}}}
    torch.save(content, copy)

    def refuse(*_: object) -> None:
        raise AssertionError("trained once more")

    monkeypatch.setattr(references, "train_classifier", refuse)
    return copy


@pytest.fixture
def retrained(monkeypatch: pytest.MonkeyPatch, cached: Path) -> Path:
    """The same file; a net that is trained is the digits' one."""
    monkeypatch.setattr(references, "train_classifier", lambda *_: digits_references().net)
    return cached


def load(folder: Path, img_size: int = 32, source: str = "digits") -> references.References:
    data = DigitsDataModule(img_size=img_size)
    data.setup()
    data.source = source
    return load_references(data, folder, CPU)


def test_the_next_run_reads_the_file(cached: Path) -> None:
    again = load(cached.parent)

    assert again.name == cached.stem
    assert_same(again.real, digits_references().real)
    assert_same(again.net.state_dict(), digits_references().net.state_dict())


@pytest.mark.parametrize("source", ["😀" * 60, 'C:\\pictures "of" cats?'])
def test_the_file_of_data_with_any_name_is_read_again(cached: Path, source: str) -> None:
    safe = cached.rename(cached.with_name(f"{safe_name(source)}{cached.stem.removeprefix('digits')}.pt"))
    before = safe.read_bytes()
    assert load(safe.parent, 28, source).name.startswith(source)
    assert safe.read_bytes() != before and list(safe.parent.iterdir()) == [safe]  # which has the other size, too


@pytest.mark.parametrize("img_size", [8, 28, 64])
def test_one_net_for_every_size_that_a_model_draws(cached: Path, img_size: int) -> None:
    other = load(cached.parent, img_size)
    before = cached.stat().st_mtime_ns

    assert not torch.equal(other.real["val"].features, digits_references().real["val"].features)
    assert (other.real["val"].predicted == other.real["val"].labels).double().mean() > 0.95
    assert_same(load(cached.parent, img_size).real, other.real)
    assert_same(load(cached.parent).real, digits_references().real)
    assert cached.stat().st_mtime_ns == before


def test_real_images_go_the_way_of_generated_ones() -> None:
    served, labels = digits().sets["val"].__getitems__(list(range(128)))

    embedded = digits_references().net.embed(to_pixels(served), labels)
    assert torch.allclose(embedded.features, digits_references().real["val"].features, atol=1e-5)


def test_another_recipe_has_another_name(retrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "RECIPE", references.RECIPE + 1)

    assert load(retrained.parent).name != retrained.stem


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "code"])
def test_a_damaged_file_is_named_and_made_anew(retrained: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return Path.touch, (retrained.with_name("run"),)

    content = bytearray(retrained.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    if damage == "code":
        torch.save({"weights": Malicious(), "sha256": ""}, retrained)
    else:
        retrained.write_bytes({"cut": content[:-1000], "flipped": content, "empty": b"", "other": b"hello"}[damage])

    load(retrained.parent)

    assert f"{retrained} is damaged" in caplog.text
    caplog.clear()
    load(retrained.parent)
    assert "damaged" not in caplog.text
    assert list(retrained.parent.iterdir()) == [retrained]  # no part of a file is left, and no code was run


def test_a_folder_that_cannot_be_written_costs_a_sentence(retrained: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = load(retrained / "features")

    assert_same(found.real, digits_references().real)
    assert caplog.text.count("callbacks.quality.cache_dir=DIR") == 1


def test_a_net_that_learnt_nothing_is_refused(tmp_path: Path) -> None:
    data = DigitsDataModule()
    data.setup()
    data.references["train"] = ImageSet(data.references["train"].images[:300], torch.arange(300) % 10, 32)

    with pytest.raises(UserError, match=r"feature net of digits \(digits-\w{8}\.pt\) has a test accuracy of"):
        load_references(data, tmp_path, CPU)


def test_a_split_that_is_too_small_is_refused(tmp_path: Path) -> None:
    data = DigitsDataModule([1_500, 9, 288])
    data.setup()

    with pytest.raises(UserError, match="9 images in its val split, but at least 10 are needed: change datamodule"):
        load_references(data, tmp_path, CPU)


@pytest.mark.parametrize(
    ("source", "n_train", "n_classes", "accuracy", "enough"),
    [
        ("mnist", 55_000, 10, 0.991, True),
        ("mnist", 55_000, 10, 0.989, False),
        ("mnist", 1_000, 10, 0.93, True),  # `datamodule.subset`
        ("mnist", 1_000, 10, 0.29, False),
        ("my_pictures", 5_000, 100, 0.031, True),
        ("my_pictures", 5_000, 100, 0.029, False),
        ("my_pictures", 5_000, 2, 0.76, True),
        ("my_pictures", 5_000, 2, 0.74, False),
    ],
)
def test_the_accuracy_that_is_asked_for(
    source: str, n_train: int, n_classes: int, accuracy: float, enough: bool
) -> None:
    with nullcontext() if enough else pytest.raises(UserError, match=f"{source}-12345678.pt"):
        check_accuracy(accuracy, source, n_train, n_classes, Path(f"{source}-12345678.pt"))
