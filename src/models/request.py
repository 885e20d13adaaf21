"""What to draw, on its way through every room. It needs no torch, as ONNX files are drawn with without it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True)
class Request(Generic[Array]):
    """N images to draw: a row of each array for each of them.

    Attributes:
        noise: float [N, ...], standard normal.
        condition: int64 [N], the classes to draw; or [N, LENGTH], prompts (`src/models/prompts.py`).
        others: as `condition`, what to move towards; None: draw `condition` itself.
        weight: float [N], how far to move, from 0 (`condition`) to 1 (`others`); None where `others` is None.
    """

    noise: Array
    condition: Array
    others: Array | None = None
    weight: Array | None = None

    def __len__(self) -> int:
        return len(self.condition)  # type: ignore[arg-type]

    def __getitem__(self, rows: Any) -> "Request[Array]":
        """The images of a slice or an index array."""
        return self.map(lambda array: array[rows])

    def map(self, function: Callable[[Any], Any]) -> "Request[Any]":
        """The same images with `function` applied to every array that is there."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Request(*(None if array is None else function(array) for array in arrays))
