"""Anybody's samples.npz: read as it is, or refused with a sentence that says how to save it."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import UserError
from src.sampling import samples_file
from src.sampling.samples_file import SamplesFile, write_samples

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 50)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **{"images": IMAGES, "labels": LABELS} | arrays)
    return path


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("at_once", [1, 1_000, 2**24])
def test_what_was_saved_is_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], at_once: int
) -> None:
    monkeypatch.setattr(samples_file, "AT_ONCE", at_once)
    write(tmp_path / "samples.npz", images=IMAGES, labels=LABELS, more=np.zeros(3))
    samples = SamplesFile(tmp_path / "samples.npz")
    assert samples.shape == IMAGES.shape and np.array_equal(samples.labels, LABELS)
    for index in ([], [49], [3, 3, 0, 49, 20], range(50)):
        index = np.array(index, np.int64)
        assert np.array_equal(samples.read(index), IMAGES[index])


def test_what_task_sample_writes_is_read(tmp_path: Path) -> None:
    parts = [(IMAGES[i : i + 7], LABELS[i : i + 7]) for i in range(0, 50, 7)]
    write_samples(tmp_path / "samples.npz", IMAGES.shape, parts)
    samples = SamplesFile(tmp_path / "samples.npz")
    assert np.array_equal(samples.read(np.arange(50)), IMAGES) and np.array_equal(samples.labels, LABELS)


@pytest.mark.parametrize("dtype", ["int32", "uint8", ">i8"])
def test_labels_of_any_whole_numbers(tmp_path: Path, dtype: str) -> None:
    labels = SamplesFile(save(tmp_path / "samples.npz", labels=LABELS.astype(dtype))).labels
    assert labels.dtype == np.int64 and np.array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("arrays", "says", "remedy"),
    [
        ({"images": IMAGES / 255}, "images of float64", "images * 255"),
        ({"images": IMAGES.astype(np.float32)}, "images of float32", ".astype('uint8')"),
        ({"images": IMAGES.astype(np.int64)}, "images of int64", "uint8, from 0 to 255"),
        ({"images": IMAGES > 0}, "images of bool", "uint8"),
        ({"images": IMAGES[..., 0]}, "without channels", "images[..., None]"),
        ({"images": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))}, "channels of its images first", "transpose"),
        ({"images": IMAGES[..., :2]}, "shape [50, 8, 8, 2]", "1 channel"),
        ({"images": IMAGES.reshape(-1)}, "shape [9600]", "[N, H, W, C]"),
        ({"images": IMAGES[:, :4]}, "4 x 8 pixels", "squares"),
        ({"images": np.zeros((50, 300, 300, 1), np.uint8)}, "300 x 300 pixels", "at most 256"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "has no images", "at least 10"),
        ({"images": np.asfortranarray(IMAGES)}, "Fortran", "numpy.ascontiguousarray(images)"),
        ({"images": np.array(list(IMAGES), object)}, "were not loaded", "whole numbers"),
        ({"labels": LABELS.astype(object)}, "were not loaded", "whole numbers"),
        ({"labels": np.array(list(map(str, LABELS)))}, "labels that are not numbers", "whole numbers"),
        ({"labels": LABELS.astype(float)}, "labels of float64", "int64"),
        ({"labels": LABELS[:49]}, "50 images, but labels of shape [49]", "one label an image"),
        ({"labels": np.eye(10, dtype=int)[LABELS]}, "labels of shape [50, 10]", "one label an image"),
        ({"labels": LABELS - 1}, "labels that are not classes", "from 0"),
        ({"labels": LABELS.astype(np.uint64) + 2**63}, "labels that are not classes", "from 0"),
    ],
)
def test_a_mistake_is_told_with_what_to_save_instead(
    tmp_path: Path, arrays: dict[str, Any], says: str, remedy: str
) -> None:
    with pytest.raises(UserError) as refused:
        SamplesFile(save(tmp_path / "samples.npz", **arrays))
    text = str(refused.value)
    assert text.startswith(f"ckpt_path={tmp_path}/samples.npz ") and says in text and remedy in text


def test_prompts_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", images=IMAGES, prompts=np.array(["a five"] * 50))
    with pytest.raises(UserError, match="has no labels"):
        SamplesFile(tmp_path / "samples.npz")


def header(shape: tuple[int, ...], dtype: str = "|u1", version: tuple[int, int] = (1, 0)) -> bytes:
    """How an array's file begins."""
    written = io.BytesIO()
    if version == (1, 0):
        np.lib.format.write_array_header_1_0(written, {"descr": dtype, "fortran_order": False, "shape": shape})
    else:
        np.lib.format.write_array_header_2_0(written, {"descr": dtype, "fortran_order": False, "shape": shape})
    return written.getvalue()


def zipped(path: Path, images: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", header((50,), "<i8") + LABELS.tobytes())


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "text", "cut", "flipped", "not a zip in the middle", "more than is there", "less than is there"),
        *("negative", "enormous", "no header", "another version", "another compression", "code in it", "encrypted"),
    ],
)
def test_what_is_damaged_or_hostile_is_refused(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "samples.npz")
    content = bytearray(path.read_bytes())
    whole = header(IMAGES.shape) + IMAGES.tobytes()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no zip", encoding="utf-8")
        case "cut":
            path.write_bytes(content[:-200])
        case "flipped":
            content[3_000] ^= 255
            path.write_bytes(content)
        case "not a zip in the middle":
            content[:100] = bytes(100)
            path.write_bytes(content)
        case "more than is there":
            zipped(path, header((10**6, 8, 8, 3)) + IMAGES.tobytes())
        case "less than is there":
            zipped(path, header((5, 8, 8, 3)) + IMAGES.tobytes())
        case "negative":
            zipped(path, header((-50, 8, -8, 3)) + IMAGES.tobytes())
        case "enormous":
            zipped(path, header((2**40, 256, 256, 3)))
        case "no header":
            zipped(path, IMAGES.tobytes())
        case "another version":
            zipped(path, header(IMAGES.shape, version=(2, 0)) + IMAGES.tobytes())
        case "another compression":
            zipped(path, whole, zipfile.ZIP_LZMA)
        case "code in it":
            zipped(path, header((1,), "|O") + pickle.dumps(Touch(tmp_path / "proof")))
        case "encrypted":
            zipped(path, whole)
            content = bytearray(path.read_bytes())
            content[6] |= 1  # the flag, in front of the first file ...
            content[content.index(b"PK\x01\x02") + 8] |= 1  # ... and in the table of contents
            path.write_bytes(content)

    with pytest.raises(UserError, match=r"samples\.npz (is damaged|has )"):
        SamplesFile(path).read(np.arange(50))

    assert not (tmp_path / "proof").exists()
