"""Which data a run really saw."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Labelled(Protocol):
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


def splits_sha256(sets: Mapping[str, Labelled], start: bytes = b"") -> str:
    """A sha256, in hexadecimal, of `start` and of the pixels and labels of the splits `train`, `val` and `test`."""
    hashed = hashlib.sha256(start)
    for split in ("train", "val", "test"):
        for tensor in (sets[split].images, sets[split].labels):
            hashed.update(repr(list(tensor.shape)).encode())
            hashed.update(tensor.contiguous().numpy().data)
    return hashed.hexdigest()
