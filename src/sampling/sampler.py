"""What draws images, whatever file it comes from. No torch is needed for it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from src.models.request import Request
from src.pictures.grid import to_uint8

BLOCK = 64  # images that the network always sees at a time, so that no byte depends on how many are asked for


@dataclass(frozen=True)
class About:
    """What is known of a trained generator.

    Attributes:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        class_names: what each label stands for.
        channels: image channels.
        img_size: height and width of the images in pixels.
        noise_shape: of the noise of one image.
        weights: `ema` (the moving average of the weights) or `raw`.
        run: the name of the run that trained it.
        data: the data set it was trained on.
        commit: of the code that trained it.
        checkpoint: the name of the checkpoint's file.
        checkpoint_sha256: that file's checksum, in hexadecimal.
    """

    n_classes: int
    class_names: tuple[str, ...]
    channels: int
    img_size: int
    noise_shape: tuple[int, ...]
    weights: str
    run: str
    data: str
    commit: str
    checkpoint: str
    checkpoint_sha256: str

    def to_metadata(self) -> dict[str, str]:
        """The same as text, a key each, as files keep it; what is no text is JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, known: Mapping[str, str]) -> "About":
        """What `to_metadata` returned, among other keys.

        Raises:
            ValueError: something is missing, or cannot be meant.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in known:
                raise ValueError(f"there is no {field.name}")
            text = known[field.name]
            found[field.name] = text if field.type is str else json.loads(text)
        for name, kind in (("class_names", str), ("noise_shape", int)):
            if not isinstance(found[name], list) or not all(type(each) is kind for each in found[name]):
                raise ValueError(f"{name} is {found[name]!r}")
            found[name] = tuple(found[name])
        about = cls(**found)
        numbers = (about.n_classes, about.channels, about.img_size, *about.noise_shape)
        if not all(type(n) is int and n > 0 for n in numbers) or len(about.class_names) != about.n_classes:
            raise ValueError("the numbers do not fit each other")
        return about


class Sampler(ABC):
    """A trained generator, opened.

    Attributes:
        about: what is known of it.
        can_interpolate: whether it draws between two classes, too.
    """

    about: About
    can_interpolate: bool = True

    @abstractmethod
    def run(self, request: Request[np.ndarray]) -> np.ndarray:
        """Draws all images at once: float32 [N, C, H, W] in [-1, 1]."""

    def draw(self, request: Request[np.ndarray]) -> np.ndarray:
        """Draws images uint8 [N, H, W, C] in blocks of 64.

        The sums of a block are rounded in one way, and those of another number of images in another. In blocks, an
        image is the same to the byte however many are drawn with it, as long as it begins or follows whole blocks.
        """
        drawn = []
        for start in range(0, len(request), BLOCK):
            n = min(BLOCK, len(request) - start)
            rows = np.minimum(np.arange(start, start + BLOCK), start + n - 1)  # the last one fills the block
            drawn.append(to_uint8(self.run(request[rows])[:n]))
        return np.concatenate(drawn)


class Noise:
    """The noise that a seed stands for, a part at a time: what is drawn first does not depend on what follows.

    It is the same on every machine, and for a checkpoint, the file exported from it and a served model alike.

    Args:
        shape: of the noise of one image.
        seed: a whole number of at least 0.
        truncation: the noise is scaled by it: below 1 images differ less and look more typical. Brock et al. (2019)
            bring noise nearer to its mean by drawing again what is far from it; scaling does so by degrees.
    """

    def __init__(self, shape: Sequence[int], seed: int, truncation: float = 1.0) -> None:
        self._shape = tuple(shape)
        self._rng = np.random.default_rng(seed)
        self._truncation = np.float32(truncation)

    def __call__(self, n: int) -> np.ndarray:
        """The noise of the next n images, float32 [n, *shape]."""
        return self._rng.standard_normal((n, *self._shape)).astype(np.float32) * self._truncation
