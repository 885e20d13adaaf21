"""Samplers draw images, whatever file they come from. This needs no torch."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from src.config.types import Count
from src.models.prompts import to_codes
from src.models.request import Request
from src.pictures.grid import to_uint8

BLOCK = 64  # images at a time, always, so that no byte depends on how many are drawn


@dataclass(frozen=True)
class About:
    """What a file says of a trained model.

    Attributes:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        class_names: one for each label.
        channels: image channels.
        img_size: height and width of the images in pixels.
        noise_shape: shape of the noise of one image.
        weights: `ema` (the moving average of the weights) or `raw`.
        run: the name of the run that trained it.
        data: the data set it was trained on.
        commit: the code that trained it.
        checkpoint: the name of the checkpoint's file.
        checkpoint_sha256: that file's checksum, in hexadecimal.
        reads_text: whether it draws prompts; else classes alone.
        prompts: of a model that reads text, what stands for each class, if anything does.
        drawing: how it draws, as far as that can be chosen: `guidance`, `steps`, `solver` or
            `scheduler`, `negative`.
    """

    n_classes: Annotated[int, Field(ge=0)]
    class_names: tuple[str, ...]
    channels: Count
    img_size: Count
    noise_shape: tuple[Count, ...]
    weights: str
    run: str
    data: str
    commit: str
    checkpoint: str
    checkpoint_sha256: str
    reads_text: bool = False
    prompts: tuple[str, ...] = ()
    drawing: Mapping[str, int | float | str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Metadata as strings; other values as JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, known: Mapping[str, str]) -> "About":
        """The inverse of `to_metadata`; `known` may have other keys, too.

        Raises:
            KeyError: a value is missing.
            ValueError: a value is damaged, or the numbers do not fit each other.
        """
        values = {f.name: known[f.name] if f.type is str else json.loads(known[f.name]) for f in fields(cls)}
        about = TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
        if len(about.class_names) != about.n_classes or len(about.prompts) not in (0, about.n_classes):
            raise ValueError("there must be a name for each class, and a prompt for each or none")
        if not about.n_classes and not about.reads_text:
            raise ValueError("there must be something to draw")
        if isinstance(about.drawing.get("guidance"), str):
            raise ValueError("guidance must be a number")
        return about

    def condition(self, labels: np.ndarray) -> np.ndarray:
        """What the model reads for labels int64 [N]: these, or prompts int64 [N, LENGTH]; prompts stay as they are."""
        return to_codes(self.prompts)[labels] if self.reads_text and labels.ndim == 1 else labels

    def examples(self, n: int) -> np.ndarray:
        """What to try a model with, int64 [n] or [n, LENGTH]: its classes in turn, or any text."""
        if self.reads_text and not self.prompts:
            return to_codes([f"picture {i}" for i in range(n)])
        return np.arange(n) % self.n_classes

    def in_words(self) -> str:
        """Which weights draw, and how."""
        said = [f"{name} {value}" for name, value in self.drawing.items() if value != ""]
        return ", ".join([f"{self.weights} weights", *said])


class Sampler(ABC):
    """A trained model that is ready to draw.

    Attributes:
        about: what its file says of it.
        can_interpolate: whether it also draws between two classes.
        block: images that are drawn at a time, always.
    """

    about: About
    can_interpolate: bool = True
    block: int = BLOCK

    @abstractmethod
    def run(self, request: Request[np.ndarray]) -> np.ndarray:
        """Draws all images at once: float32 [N, C, H, W] in [-1, 1]."""

    def draw(self, request: Request[np.ndarray]) -> np.ndarray:
        """Draws images uint8 [N, H, W, C] in blocks of 64, or fewer where it takes long.

        The sums of a block are rounded in one way, and those of another number of images in another. In blocks, an
        image is the same to the byte however many are drawn with it, as long as it begins or follows whole blocks.
        """
        drawn = []
        for start in range(0, len(request), self.block):
            n = min(self.block, len(request) - start)
            rows = np.minimum(np.arange(start, start + self.block), start + n - 1)  # the last one fills the block
            drawn.append(to_uint8(self.run(request[rows])[:n]))
        return np.concatenate(drawn)


class Noise:
    """The noise of a seed, a part at a time: the first images do not depend on how many follow.

    It is the same on every machine, and for a checkpoint, the file exported from it, and a served model.

    Args:
        shape: shape of the noise of one image.
        seed: a whole number of at least 0.
        truncation: scales the noise: below 1, images differ less and look more typical. Brock et al. (2019) draw
            values again that are far from the mean; scaling brings them nearer by degrees.
    """

    def __init__(self, shape: Sequence[int], seed: int, truncation: float = 1.0) -> None:
        self._shape = tuple(shape)
        self._rng = np.random.default_rng(seed)
        self._truncation = np.float32(truncation)

    def __call__(self, n: int) -> np.ndarray:
        """The noise of the next n images, float32 [n, *shape]."""
        return self._rng.standard_normal((n, *self._shape)).astype(np.float32) * self._truncation
