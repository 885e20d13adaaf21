"""The files that a request can ask for hold the images to the last pixel."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.datamodules.picture_files import find_pictures
from src.pictures.grid import grid
from src.serve.encode import encode

NAMES = ["Größe/ä b", "dog", "Dog", "12"]
RNG = np.random.default_rng(0)


def images(n: int, channels: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 6, 6, channels), np.uint8)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def classes(content: bytes) -> list[str]:
    return json.loads(Image.open(io.BytesIO(content)).text["classes"])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_one_image_as_it_is(channels: int) -> None:
    (image,) = images(1, channels)
    content = encode("png", image[None], np.zeros(1, np.int64), 1, NAMES)
    assert np.array_equal(pixels(content), np.broadcast_to(image, (6, 6, 3)))
    assert classes(content) == ["Größe/ä b"]


@pytest.mark.parametrize(("n", "per_label", "columns"), [(6, 3, 3), (16, 16, 4), (5, 5, 3), (3, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_several_images_are_a_row_a_label_or_a_square(n: int, per_label: int, columns: int, channels: int) -> None:
    drawn = images(n, channels)
    labels = np.arange(n // per_label).repeat(per_label)
    content = encode("png", drawn, labels, per_label, NAMES)
    assert np.array_equal(pixels(content), grid(drawn, columns))
    assert classes(content) == NAMES[: n // per_label]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays(channels: int) -> None:
    drawn, labels = images(4, channels), np.array([3, 3, 2, 2])
    found = np.load(io.BytesIO(encode("npz", drawn, labels, 2, NAMES)), allow_pickle=False)
    assert np.array_equal(found["images"], drawn) and np.array_equal(found["labels"], labels)
    assert found["images"].dtype == np.uint8 and found["labels"].dtype == np.int64
    assert found["class_names"].tolist() == NAMES


@pytest.mark.parametrize("channels", [1, 3])
def test_single_pictures(channels: int, tmp_path: Path) -> None:
    drawn, labels = images(6, channels), np.array([3, 3, 0, 0, 1, 2])
    archive = encode("zip", drawn, labels, 2, NAMES)
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        *names, table = file.namelist()
        folders = ["12", "12", "Größe_ä b", "Größe_ä b", "dog", "Dog_2"]
        assert names == [f"{folder}/{i:05}.png" for i, folder in enumerate(folders)] and table == "metadata.jsonl"
        for name, image, label in zip(names, drawn, labels, strict=True):
            content = file.read(name)
            assert np.array_equal(pixels(content), np.broadcast_to(image, (6, 6, 3)))
            assert classes(content) == [NAMES[label]]
        file.extractall(tmp_path)
    found = find_pictures(tmp_path)  # of datamodule=folder
    assert sorted(found.class_names) == sorted(NAMES) and not any(found.left_out.values())
    read = {picture.path.relative_to(tmp_path).as_posix(): picture.label for picture in found.pictures}
    assert read == {name: NAMES[label] for name, label in zip(names, labels, strict=True)}
    assert archive == encode("zip", drawn, labels, 2, NAMES)
