"""Decode picture files of any kind into 8-bit pixels, scaled by what each file says of its values."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from src.datamodules.picture_files import FORMATS, some

FULL = 65_535  # white in 16 bits
# If no 16-bit picture of a data set is brighter than a quarter of white, white must be something else, such as 4095.
DARK = 16_384
MIN_MAX_TAGS = ((280, 281), (340, 341))  # TIFF tags that state which values are black and white; the last pair counts
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class Openable(Protocol):
    """A picture's file, which its text names: a `Path`, for instance."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO: ...


def decode(
    paths: Sequence[Openable], channels: int, img_size: int, white: float | None
) -> tuple[torch.Tensor, list[Openable]]:
    """Pictures as uint8 [N, channels, img_size, img_size], and the paths of those that have several frames.

    Each is turned as its EXIF data say, laid on white where it is transparent, cut to its central square and resized.

    Args:
        paths: N files.
        channels: 3: colour, 1: grey.
        img_size: side of the central square, in pixels.
        white: the value of white in pictures of more than 8 bits that do not state it; None: they must.

    Raises:
        ValueError: names the pictures that cannot be decoded, or begins with `white`.
    """
    images = np.empty((len(paths), img_size, img_size, channels), np.uint8)
    damaged: list[str] = []
    animated: list[Openable] = []
    assumed: dict[Openable, int] = {}  # the largest values where 65,535 was assumed to be white
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # unusual pictures are decoded all the same
        decoded = pool.map(lambda path: decode_one(path, channels, img_size, white), paths)
        console = Console(stderr=True, quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
        for i, one in enumerate(track(decoded, "Decoding pictures", len(paths), console=console, transient=True)):
            if isinstance(one, str):
                damaged.append(one)
                continue
            images[i], most, has_frames = one
            if has_frames:
                animated.append(paths[i])
            if most is not None:
                assumed[paths[i]] = most
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


def decode_one(
    path: Openable, channels: int, img_size: int, white: float | None
) -> tuple[np.ndarray, int | None, bool] | str:
    """A picture as uint8 [img_size, img_size, channels], or what is wrong with it.

    With it come its largest value, where 65,535 was assumed to be white, and whether it has several frames.
    """
    try:
        with path.open("rb") as file:
            head = file.read(25)
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            animated = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: photos and their previews
            image.draft(None, (2 * img_size, 2 * img_size))  # big JPEGs are decoded at a fraction of their size
            picture = ImageOps.exif_transpose(image)
            tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
            bits = head[24] if image.format == "PNG" else np.ravel(tags.get(BITS_PER_SAMPLE, 8))[0]
            assumed = None
            if picture.mode == "F" or picture.mode.startswith("I"):
                picture, assumed = to_8_bits(picture, image.format, tags, white)
            elif bits > 8:  # in each of several channels, of which Pillow keeps the upper 8
                if white is None:
                    assumed = 256 * int(np.asarray(picture).max()) + 255
                elif white != FULL:
                    raise ValueError(f"16-bit colour can only be read where {FULL} is white")
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = ImageOps.fit(picture, (img_size, img_size), Image.Resampling.BICUBIC)
            return np.asarray(picture).reshape(img_size, img_size, channels), assumed, animated
    except Exception as error:  # decoders fail on damaged files in many ways
        text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            text = "not a picture of a kind that Pillow knows"
        return f"{path} cannot be decoded ({text})"


def size_of(path: Openable) -> tuple[int, int] | None:
    """A picture's width and height in pixels; None: it cannot be opened."""
    try:
        with path.open("rb") as file:
            return Image.open(file, formats=FORMATS).size
    except Exception:  # `decode` says what is wrong with it
        return None


def to_8_bits(
    picture: Image.Image, kind: str | None, tags: Mapping[int, Any], white: float | None
) -> tuple[Image.Image, int | None]:
    """A picture of 16 or 32 bits a pixel, or of floats, in 256 levels; its largest value as in `decode_one`."""
    values = np.asarray(picture).astype(np.float64)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    black, top = 0.0, white
    bits = int(np.ravel(tags.get(BITS_PER_SAMPLE, 16))[0])
    if kind == "PPM" and picture.mode != "F":
        top = FULL  # Pillow has scaled it by the maximum in its header
    elif 8 < bits < 16:
        top = 2**bits - 1
    for low, high in MIN_MAX_TAGS:
        stated = [float(np.ravel(tags.get(tag, 0))[0]) for tag in (low, high)]
        if high in tags and stated[0] < stated[1]:
            black, top = stated
    assumed = None
    if top is None:
        if picture.mode.startswith("I;16") or kind == "PNG":
            top, assumed = FULL, int(most)
        elif picture.mode == "F" and least >= 0 and most <= 1:
            top = 1
        else:
            numbers = "floats" if picture.mode == "F" else "32-bit numbers"
            raise ValueError(
                f"it has {numbers} from {least:g} to {most:g}, and does not say which are black and white: type"
                " datamodule.white=VALUE if 0 is black"
            )
    if least < black or most > top:
        raise ValueError(f"it has values from {least:g} to {most:g}, but black is {black:g} and white is {top:g}")
    levels = (values - black) * (255 / (top - black))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels.round().astype(np.uint8)), assumed
