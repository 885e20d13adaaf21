"""Pictures of a run folder, checked, made small, and written into the page itself."""

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from src.report.run_folder import Run

SIDE = 2_000  # pixels; what is larger is made smaller


class Picture(NamedTuple):
    uri: str  # `data:`
    width: int
    height: int
    exact: bool  # every pixel is as it was


def pictures_of(run: Run, paths: Mapping[int, Path], n: int, n_bytes: int) -> dict[int, Picture]:
    """At most `n` pictures by epoch, evenly spaced, with the first and the last; see `picture_of`."""
    epochs = list(paths)
    if len(epochs) > n:
        epochs = [epochs[round(i * (len(epochs) - 1) / (n - 1))] for i in range(n)]
    found = {epoch: picture_of(run, paths[epoch], n_bytes) for epoch in epochs}
    return {epoch: picture for epoch, picture in found.items() if picture}


def picture_of(run: Run, path: Path, n_bytes: int) -> Picture | None:
    """A picture of about `n_bytes` at most; None where it cannot be used, which is noted in `run.damaged`."""
    name = path.relative_to(run.folder)
    if path.stat().st_size > 30_000_000:
        run.damaged.append(f"{name} is larger than 30 MB")
        return None
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=["PNG"]) as file,  # a run writes nothing else
        ):
            if file.width * file.height > 25_000_000:
                raise Image.DecompressionBombError
            image = file.convert("RGB")
    except Image.DecompressionBombError:
        run.damaged.append(f"{name} has more pixels than any that a run draws")
        return None
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error, ... for what is garbled
        run.damaged.append(f"{name} is cut short or not a PNG")
        return None
    small = max(image.size) <= SIDE
    if not small:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in (None, 90, 75, 50):  # without loss if that fits, else with as little as it takes
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=quality is None, quality=quality or 80, method=4)
        if buffer.tell() <= n_bytes:
            break
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, image.width, image.height, exact=small and quality is None)
