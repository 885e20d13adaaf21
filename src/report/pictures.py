"""Pictures of a run folder, checked, made small, and written into the page itself."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FILE_BYTES = 30_000_000
PIXELS = 25_000_000
SIDE = 2_000  # pixels; what is larger is made smaller
QUALITIES = (90, 75, 50)  # tried in this order where lossless is too large


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it.

    Attributes:
        uri: a `data:` URI.
        width: in pixels.
        height: in pixels.
        exact: whether it has every pixel as it was.
    """

    uri: str
    width: int
    height: int
    exact: bool


class DamagedPictureError(ValueError):
    """A file that is no picture, is cut short, or is larger than any picture of a run."""


def load(path: Path) -> Image.Image:
    """A PNG file as RGB. Nothing but PNG is read, as a run writes nothing else.

    Raises:
        DamagedPictureError: it cannot be used; says why.
    """
    try:
        size = path.stat().st_size
        if size > FILE_BYTES:
            raise DamagedPictureError(f"is larger than {FILE_BYTES // 1_000_000} MB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we look ourselves
            with Image.open(path, formats=["PNG"]) as image:
                if image.width * image.height > PIXELS:
                    raise Image.DecompressionBombError
                return image.convert("RGB")
    except DamagedPictureError:
        raise
    except Image.DecompressionBombError as error:
        raise DamagedPictureError("has more pixels than any that a run draws") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error, ... for what is garbled
        raise DamagedPictureError("is cut short or no PNG") from error


def embed(image: Image.Image, n_bytes: int) -> Picture:
    """An image for the page, of about `n_bytes` at most: without loss if that fits, else with as little as it takes."""
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


def spread_evenly(items: Sequence[int], n: int) -> list[int]:
    """At most `n` of the items, evenly spaced, with the first and the last."""
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _webp(image: Image.Image, lossless: bool = False, quality: int = 80) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=quality, method=4)
    return buffer.getvalue()
