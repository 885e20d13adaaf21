"""Images that stay in their files, and are decoded when a batch asks for them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.datamodules.listing import Pictures
from src.datamodules.picture_pixels import decode_one
from src.errors import UserError

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class StreamedImages:
    """Stands for a tensor uint8 [N, channels, img_size, img_size] of pictures: an index is remembered, `float` decodes.

    What is decoded is what `decode` makes of the same pictures.

    Args:
        pictures: where they are.
        rows: int64 [N], which of the pictures these are; None: all.
        channels, img_size, white: as for `decode`.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        pictures: Pictures,
        channels: int,
        img_size: int,
        white: float | None,
        rows: Tensor | None = None,
    ) -> None:
        self.pictures = pictures
        self.how = channels, img_size, white
        self.rows = torch.arange(len(pictures)) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        channels, img_size, _ = self.how
        return torch.Size((len(self), channels, img_size, img_size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any, /) -> "StreamedImages":
        return StreamedImages(self.pictures, *self.how, rows=self.rows[index])

    def split(self, size: int, /) -> list["StreamedImages"]:
        return [StreamedImages(self.pictures, *self.how, rows=rows) for rows in self.rows.split(size)]

    def float(self) -> Tensor:
        """The pixels, float32 [N, channels, img_size, img_size] from 0 to 255.

        Raises:
            UserError: names the first picture that cannot be decoded.
        """
        channels, img_size, _ = self.how
        pixels = np.empty((len(self), img_size, img_size, channels), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual pictures are decoded all the same
            for number, row in enumerate(self.rows.tolist()):
                one = decode_one(self.pictures[row], *self.how)
                if isinstance(one, str):
                    raise UserError(f"{one}: replace it, and type ckpt_path=last to go on with the run that it stopped")
                pixels[number] = one[0]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()

    def identity(self) -> Iterator[bytes]:
        """What a checksum is made from: the pictures' names and sizes, as their pixels would take an hour to read."""
        for rows in self.rows.split(10_000):
            yield repr((self.how, [self.pictures.identity(row) for row in rows.tolist()])).encode()


def main_memory() -> int:
    """Bytes of main memory that this process may ever use: the machine's, or a container's or job's limit."""
    files = [CGROUPS / "memory.max", CGROUPS / "memory" / "memory.limit_in_bytes"]  # as a container sees its own
    with suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)  # of the second version, no controllers
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = (CGROUPS / "memory", files[1].name) if controllers else (CGROUPS, files[0].name)
            group = root / path.lstrip("/")
            files += [each / name for each in (group, *group.parents) if each.is_relative_to(root)]  # a job is above
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in files:
        with suppress(OSError, ValueError):  # there is none, or it is `max`
            found.append(int(file.read_text(encoding="utf-8")))
    return min(found)
