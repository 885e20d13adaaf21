"""Pictures of a run folder, checked, made small, and written into the page itself."""

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from src.report.run_folder import Run

FILE_BYTES = 30_000_000
PIXELS = 25_000_000
SIDE = 2_000  # pixels; what is larger is made smaller
QUALITIES = (90, 75, 50)  # tried in this order where lossless is too large


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it: a `data:` URI, its size in pixels, and whether every pixel is as it was."""

    uri: str
    width: int
    height: int
    exact: bool


@dataclass(frozen=True)
class Strip:
    """Pictures of the same kind by epoch, of which the slider shows one; `letter` and `style` are the run's."""

    title: str
    alt: str
    frames: dict[int, Picture]
    letter: str = ""
    style: int = 0

    @property
    def last(self) -> int:
        """The last epoch of which there is a picture."""
        return max(self.frames)


class DamagedPictureError(ValueError):
    """A file that is not a picture, is cut short, or is larger than any picture of a run."""


def pictures_of(run: Run, paths: Mapping[int, Path], n: int, n_bytes: int) -> dict[int, Picture]:
    """At most `n` pictures by epoch, evenly spaced, with the first and the last, each of about `n_bytes` at most.

    One that cannot be used is left out, and noted in `run.damaged`.
    """
    epochs = list(paths)
    if len(epochs) > n:
        epochs = [epochs[round(i * (len(epochs) - 1) / (n - 1))] for i in range(n)]
    found = {epoch: picture_of(run, paths[epoch], n_bytes) for epoch in epochs}
    return {epoch: picture for epoch, picture in found.items() if picture}


def picture_of(run: Run, path: Path, n_bytes: int) -> Picture | None:
    """A picture of about `n_bytes` at most; None where it cannot be used, which is noted in `run.damaged`."""
    try:
        return embed(load(path), n_bytes)
    except DamagedPictureError as error:
        run.damaged.append(f"{path.relative_to(run.folder)} {error}")
        return None


def load(path: Path) -> Image.Image:
    """A PNG file as RGB. Nothing but PNG is read, as a run writes nothing else.

    Raises:
        DamagedPictureError: it cannot be used; says why.
    """
    if path.stat().st_size > FILE_BYTES:
        raise DamagedPictureError(f"is larger than {FILE_BYTES // 1_000_000} MB")
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=["PNG"]) as image,
        ):
            if image.width * image.height <= PIXELS:
                return image.convert("RGB")
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error, ... for what is garbled
        raise DamagedPictureError("is cut short or not a PNG") from error
    raise DamagedPictureError("has more pixels than any that a run draws")


def embed(image: Image.Image, n_bytes: int) -> Picture:
    """An image for the page: without loss if that fits into `n_bytes`, else with as little as it takes."""
    exact = max(image.size) <= SIDE
    if not exact:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = _webp(image, lossless=True)
    for quality in QUALITIES:
        if len(data) <= n_bytes:
            break
        data, exact = _webp(image, quality=quality), False
    uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return Picture(uri, image.width, image.height, exact)


def _webp(image: Image.Image, lossless: bool = False, quality: int = 80) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=quality, method=4)
    return buffer.getvalue()
