"""Pictures in tar files, with a class or a caption for each of them."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only

from src.datamodules.folder_datamodule import FolderDataModule
from src.datamodules.listing import SPLIT_NAMES, Listing, check_classes, encode_captions
from src.datamodules.picture_files import natural
from src.datamodules.shards import Members, find_shards, read_shard

log = logging.getLogger(__name__)

VERSION = 1  # of the index's files: raise it with any change to what they hold


class ShardsDataModule(FolderDataModule):
    """Pictures in `folder/**/*.tar`, in the layout of WebDataset: NAME.jpg, NAME.cls, NAME.txt, NAME.json.

    A sample's class is the text in NAME.cls, or what NAME.json calls `label` or `class`; its caption is NAME.txt, or a
    key of NAME.json. The shards are read through once, for an index in `cache_dir`: from then on each picture is found
    by its place, so that an epoch's order is as random as that of a folder, and resumes as exactly. Ready-made splits
    are subfolders (`train/0.tar`), or what the names begin with (`train-0.tar`).

    Args:
        folder: holds the shards.
        cache_dir: where indices are kept.
        **kwargs: as in `FolderDataModule`; `captions` is `txt`, or a key of NAME.json.

    Raises:
        ValueError: there are no shards, one is cut off, a name is there twice, or what `FolderDataModule` refuses.
    """

    def __init__(self, folder: str | Path | None, cache_dir: str | Path = "data/shards", **kwargs: Any) -> None:
        if folder is None:
            raise ValueError("folder must be set: datamodule.folder=DIR, where DIR has *.tar")
        self.cache_dir = Path(cache_dir).expanduser()
        super().__init__(folder, **kwargs)

    def list_pictures(self) -> Listing:
        shards = find_shards(self.folder)
        paths = [path for path, _ in shards]
        stats = [(path.relative_to(self.folder).as_posix(), path.stat()) for path in paths]
        about = [VERSION, self.captions, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
        index = self.cache_dir / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.npz"
        arrays = _read(index) or self._index(paths, index)
        names = arrays["names"].tolist()
        listing = Listing(
            Members(self.folder, paths, arrays["places"]),
            names,
            torch.from_numpy(arrays["labels"]),
            torch.tensor([SPLIT_NAMES.index(split) if split else -1 for _, split in shards])[arrays["places"][0]],
            torch.from_numpy(arrays["captions"]) if self.captions is not None else None,
            arrays["said"].tolist(),
        )
        if len(names) < 2 and (self.captions is None or names):
            raise ValueError(
                f"folder is {self.folder}, whose shards have {len(names)} classes: put a NAME.cls beside each NAME.jpg,"
                " or a label into its NAME.json, of two classes at least, or read texts with datamodule.captions=txt"
            )
        check_classes(listing, self.folder)
        return listing

    def _index(self, shards: list[Path], file: Path) -> dict[str, np.ndarray]:
        """Reads all shards, and keeps what is in them in a file."""
        rank_zero_only(log.info)("reading %s shards of %s once, for %s", f"{len(shards):,}", self.folder, file)
        number_of: dict[str, int] = {}
        places, labels, texts = [], [], []
        for number, path in enumerate(shards):
            samples = list(read_shard(path, self.captions))
            rows = [(number, sample.offset, sample.size) for sample in samples]
            places.append(np.array(rows, np.int64).reshape(-1, 3).T)
            labels.append(np.array([number_of.setdefault(each.label, len(number_of)) for each in samples], np.int64))
            texts += [sample.caption or "" for sample in samples] if self.captions is not None else []
        table = np.concatenate(places, axis=1)
        if not table.size:
            raise ValueError(f"folder is {self.folder}, whose shards have no pictures: name them NAME.jpg or the like")
        if "" in number_of and len(number_of) > 1:
            first = int((np.concatenate(labels) == number_of[""]).argmax())
            raise ValueError(
                f"folder is {self.folder}, where {Members(self.folder, shards, table)[first]} has no class: add its"
                " NAME.cls, or remove those of all others"
            )
        names = sorted(set(number_of) - {""}, key=natural)
        rank = np.array([names.index(name) if name else 0 for name in number_of], np.int64)
        listing = Listing(Members(self.folder, shards, table), names, torch.empty(0), torch.empty(0))
        arrays = {"places": table, "labels": rank[np.concatenate(labels)], "names": np.array(names, str)}
        if self.captions is not None:
            what = f"captions is {self.captions!r}, but the shards of {self.folder} have no such text, or one"
            arrays["captions"] = encode_captions(texts, listing, what).numpy()
        arrays["said"] = np.array(listing.said, str)
        partial = file.with_name(f".{file.name}.{os.getpid()}")  # other processes may write it at the same time
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as opened:
                np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
            os.replace(partial, file)
        except OSError as error:
            log.warning("%s cannot be written (%s), so that every run reads the shards anew", file, error.strerror)
        return arrays


def _read(file: Path) -> dict[str, np.ndarray] | None:
    """None if there is no index, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return None
    except Exception:  # zipfile and NumPy raise many kinds for files that are cut or garbled
        log.warning("%s is damaged: it is made anew", file)
        return None
