"""Decode picture files of any kind into 8-bit pixels, scaled by what each file says of its values."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pytorch_lightning.utilities import rank_zero_only

from src.datamodules.picture_files import FORMATS, some

FULL = 65_535  # white in 16 bits
# If no 16-bit picture of a data set is brighter than a quarter of white, white must be something else, such as 4095.
DARK = 16_384
# TIFF tags that state which values are black and white.
MIN_MAX_TAGS = ((340, 341), (280, 281))
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class Decoded(NamedTuple):
    """A picture as uint8 [img_size, img_size, channels]."""

    pixels: np.ndarray
    assumed: int | None  # the largest value, where 65,535 was assumed to be white
    animated: bool  # it has several frames, of which this is the first


def decode(paths: Sequence[Path], channels: int, img_size: int, white: float | None) -> tuple[torch.Tensor, list[Path]]:
    """Pictures as uint8 [N, channels, img_size, img_size], and the paths of those that have several frames.

    Args:
        paths: N files.
        channels: 3: colour, 1: grey.
        img_size: side of the central square, in pixels.
        white: the value of white in pictures of more than 8 bits that do not state it; None: they must.

    Raises:
        ValueError: names the pictures that cannot be decoded, or begins with `white`.
    """
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(paths), img_size, img_size, channels), np.uint8)
    damaged: list[str] = []
    animated, assumed = [], {}

    def attempt(path: Path) -> Decoded | ValueError:
        try:
            return decode_one(path, channels, img_size, white)
        except ValueError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # unusual pictures are decoded all the same
        decoded = pool.map(attempt, paths)
        console = Console(stderr=True, quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
        for i, one in enumerate(track(decoded, "Decoding pictures", len(paths), console=console, transient=True)):
            if isinstance(one, ValueError):
                damaged.append(str(one))
                continue
            images[i] = one.pixels
            if one.animated:
                animated.append(paths[i])
            if one.assumed is not None:
                assumed[paths[i]] = one.assumed
    if damaged:
        n = f"{len(damaged):,} pictures cannot be used: " if len(damaged) > 1 else ""
        raise ValueError(f"{n}{some(damaged, '; ')}: replace or delete {'them' if n else 'it'}")
    if assumed and max(assumed.values()) < DARK:
        brightest = max(assumed, key=lambda path: assumed[path])
        raise ValueError(
            f"white must be set, as no 16-bit picture has a value above {assumed[brightest]} of {FULL} ({brightest}):"
            f" type datamodule.white=4095 for 12 bits, or datamodule.white={FULL} if they are that dark"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), animated


def decode_one(path: Path, channels: int, img_size: int, white: float | None = None) -> Decoded:
    """One picture: see `decode`.

    It is turned as its EXIF data say, laid on white where it is transparent, cut to its central square and resized.

    Raises:
        ValueError: names the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            animated = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: photos and their previews
            image.draft(None, (2 * img_size, 2 * img_size))  # big JPEGs are decoded at a fraction of their size
            picture = ImageOps.exif_transpose(image)
            assumed = None
            if picture.mode == "F" or picture.mode.startswith("I"):
                picture, assumed = to_8_bits(picture, image, white)
            elif is_deep(image, path):  # Pillow keeps the upper 8 bits of each channel
                if white is None:
                    assumed = 256 * int(np.asarray(picture).max()) + 255
                elif white != FULL:
                    raise ValueError(f"16-bit colour can only be read where {FULL} is white")
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = ImageOps.fit(picture, (img_size, img_size), Image.Resampling.BICUBIC)
            return Decoded(np.asarray(picture).reshape(img_size, img_size, channels), assumed, animated)
    except Exception as error:  # decoders fail on damaged files in many ways
        text = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            text = "not a picture of a kind that Pillow knows"
        raise ValueError(f"{path} cannot be decoded ({text})") from error


def size_of(path: Path) -> tuple[int, int] | None:
    """A picture's width and height in pixels; None: it cannot be opened."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # `decode` says what is wrong with it
        return None


def to_8_bits(picture: Image.Image, file: Image.Image, white: float | None) -> tuple[Image.Image, int | None]:
    """A picture of 16 or 32 bits a pixel, or of floats, in 256 levels, and its `Decoded.assumed`.

    Args:
        picture: the pixels.
        file: the opened file, which may state what black and white are.
        white: the value of white, if it does not.

    Raises:
        ValueError: nothing says which values are black and white, or there are values beyond them.
    """
    values = np.asarray(picture).astype(np.float64)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    black, stated = stated_range(file)
    assumed = None
    if stated is None and white is None:
        if picture.mode.startswith("I;16") or file.format == "PNG":
            stated, assumed = FULL, int(most)
        elif picture.mode == "F" and least >= 0 and most <= 1:
            stated = 1
        else:
            kind = "floats" if picture.mode == "F" else "32-bit numbers"
            raise ValueError(
                f"it has {kind} from {least:g} to {most:g}, and does not say which are black and white: type"
                " datamodule.white=VALUE if 0 is black"
            )
    top = white if stated is None else stated
    assert top is not None
    if least < black or most > top:
        raise ValueError(f"it has values from {least:g} to {most:g}, but black is {black:g} and white is {top:g}")
    levels = (values - black) * (255 / (top - black))
    if tags_of(file).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels.round().astype(np.uint8)), assumed


def stated_range(file: Image.Image) -> tuple[float, float | None]:
    """Black and white as a file of more than 8 bits states them, or 0 and None."""
    if file.format == "PPM" and file.mode != "F":
        return 0, FULL  # Pillow has scaled it by the maximum in its header
    tags = tags_of(file)
    for low, high in MIN_MAX_TAGS:
        if high in tags:
            black, white = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (low, high))
            if black < white:
                return black, white
    bits = int(np.ravel(tags.get(BITS_PER_SAMPLE, 16))[0])
    return (0, 2**bits - 1) if 8 < bits < 16 else (0, None)


def is_deep(file: Image.Image, path: Path) -> bool:
    """Whether each of several channels has 16 bits."""
    if file.format == "PNG":
        with open(path, "rb") as content:
            return content.read(25)[24:] == b"\x10"
    return int(np.ravel(tags_of(file).get(BITS_PER_SAMPLE, 8))[0]) > 8


def tags_of(file: Image.Image) -> Any:
    """A TIFF file's tags by number; other files have none."""
    return getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
