"""The files that a request can ask for hold the images to the last pixel."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from src.serving.encode import encode, png
from src.utils.grid import grid

RNG = np.random.default_rng(0)


def images(n: int, channels: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 6, 6, channels), np.uint8)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_one_image_as_it_is(channels: int) -> None:
    (image,) = images(1, channels)
    assert np.array_equal(pixels(png(image)), np.broadcast_to(image, (6, 6, 3)))
    assert encode("png", image[None], np.zeros(1), 1, 10) == png(image)


@pytest.mark.parametrize(("n", "per_label", "columns"), [(6, 3, 3), (16, 16, 4), (5, 5, 3), (3, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_several_images_are_a_row_a_label_or_a_square(n: int, per_label: int, columns: int, channels: int) -> None:
    drawn = images(n, channels)
    assert np.array_equal(pixels(encode("png", drawn, np.zeros(n), per_label, 10)), grid(drawn, columns))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_single_pictures(channels: int) -> None:
    drawn, labels = images(4, channels), np.array([7, 7, 2, 2])
    found = np.load(io.BytesIO(encode("npz", drawn, labels, 2, 11)))
    assert np.array_equal(found["images"], drawn) and np.array_equal(found["labels"], labels)
    assert found["images"].dtype == np.uint8 and found["labels"].dtype == np.int64
    archive = encode("zip", drawn, labels, 2, 11)
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        assert file.namelist() == ["07/00000.png", "07/00001.png", "02/00002.png", "02/00003.png"]
        for name, image in zip(file.namelist(), drawn, strict=True):
            assert np.array_equal(pixels(file.read(name)), np.broadcast_to(image, (6, 6, 3)))
    assert archive == encode("zip", drawn, labels, 2, 11)
