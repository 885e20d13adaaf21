"""Text as a published encoder reads it, whose weights stay as they are."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from src.config.explain import telling
from src.config.text import safe_name
from src.config.types import Count
from src.errors import UserError
from src.models.pretrained import Pretrained
from src.models.prompts import LENGTH, to_texts

log = logging.getLogger(__name__)

KEY = "model.conditioner.encoder"
VARIABLE = "TEXT_ENCODER"  # the encoder's folder or name on this machine, where it is not the one of the checkpoint
MOST = 10_000  # embeddings that are kept of texts that nobody expected, such as a service's
SAID_FROM = 100  # texts whose embedding is worth a line


class FrozenTextConditioner(nn.Module):
    """An embedding of the whole text by a CLIP or T5 encoder (Radford et al. 2021; Raffel et al. 2020), and a map of it
    that is trained.

    The module does not hold the encoder, which is not trained, averaged or saved. Its embeddings are kept in a file in
    `cache_dir`, so that it is loaded only for texts that are not in there.

    Args:
        encoder: a folder with the encoder and its tokenizer, or a name on the Hugging Face hub.
        sha256: checksum of its files; another encoder is refused.
        n_features: length of its embeddings.
        cache_dir: where embeddings are kept.
        dim: length of the vector.
        n_layers: layers of the map; 1: it is linear.
        width: length of the vectors between them.
    """

    condition_shape = (LENGTH,)
    in_main_memory = True
    not_exported = "its text encoder is not a part of it"

    def __init__(
        self,
        encoder: str,
        sha256: str,
        n_features: Count,
        cache_dir: str | Path,
        dim: Count = 128,
        n_layers: Count = 1,
        width: Count = 64,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embeddings = Embeddings(encoder, sha256, n_features, Path(cache_dir).expanduser())
        self.nothing: Tensor
        self.register_buffer("nothing", torch.zeros(LENGTH, dtype=torch.int64), persistent=False)
        sizes = [n_features, *[width] * (n_layers - 1), dim]
        layers = [each for a, b in pairwise(sizes) for each in (nn.SiLU(), nn.Linear(a, b))]
        self.out = nn.Sequential(*layers[1:])
        self.of_nothing = nn.Parameter(torch.randn(1, dim))

    @staticmethod
    def follow_files(options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that follow from the encoder's files, for the configuration to hold."""
        if "n_classes" in options:
            raise UserError("model/text_encoder=frozen needs a model that reads text: type model/condition=text, too")
        found = Pretrained(options["encoder"], KEY)
        return {"encoder": found.name, "sha256": found.sha256, "n_features": found.width}

    def expect(self, texts: Sequence[str]) -> None:
        """Embeds the texts that are to come and writes the file, if some are new."""
        self.embeddings.expect(texts)

    def forward(self, condition: Tensor) -> Tensor:
        """Code points int64 [N, LENGTH] as `to_codes` makes them, all 0 for no text -> [N, dim]."""
        found = self.embeddings(to_texts(condition.cpu().numpy())).to(self.of_nothing)
        # Embeddings of different encoders have different lengths, and a learning rate suits one.
        vectors = self.out(rms_norm(found, found.shape[1:]))
        return torch.where((condition > 0).any(1, keepdim=True), vectors, self.of_nothing)


class Embeddings:
    """Embeddings of texts, each computed once: those that were expected are kept in a file, the last others in memory.

    Copies of a module share it: it is not a module itself.
    """

    def __init__(self, encoder: str, sha256: str, n_features: int, cache_dir: Path) -> None:
        self.encoder, self.sha256, self.n_features = encoder, sha256, n_features
        self.path = cache_dir / f"{safe_name(Path(encoder).name)}-{sha256[:16]}.npz"
        self._embed: Any = None  # the encoder, once it is loaded
        self._compute_once = lru_cache(MOST)(self._compute)
        self._lock = threading.Lock()  # a service draws in several threads

    def __deepcopy__(self, memo: Any) -> "Embeddings":
        return self

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [N, n_features] of texts; zeros for an empty one."""
        found = torch.zeros(len(texts), self.n_features)
        with self._lock:
            for row, text in zip(found, texts, strict=True):
                if text:
                    row.copy_(self._kept[text] if text in self._kept else self._compute_once(text))
        return found

    def expect(self, texts: Sequence[str]) -> None:
        """Computes those that are new, and writes the file."""
        new = [text for text in dict.fromkeys(texts) if text and text not in self._kept]
        if not new:
            return
        console = Console(stderr=True)
        if len(new) >= SAID_FROM:
            said = "embedding %s texts with %s, once for %s"
            rank_zero_only(log.info)(said, f"{len(new):,}", self.encoder, self.path)
        try:
            for text in track(new, "embedding", console=console, transient=True, disable=not console.is_terminal):
                self._kept[text] = self._compute_once(text)
        finally:
            if new[0] in self._kept:  # whoever interrupts it need not begin again
                self._write()
            self._embed = None  # makes room

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        return self._read()

    def _compute(self, text: str) -> Tensor:
        if self._embed is None:
            self._embed = self._find().text_encoder()
        return self._embed(text)

    def _find(self) -> Pretrained:
        """The encoder on this machine. Nothing is downloaded: it may be a stranger's checkpoint that names it.

        Raises:
            UserError: it is not there, or is another one.
        """
        why = ""
        for key, name in {KEY: self.encoder, VARIABLE: os.environ.get(VARIABLE)}.items():
            if not name:
                continue
            try:
                found = Pretrained(name, key, download=False)
            except UserError as error:
                why = str(error)
                continue
            if found.sha256 == self.sha256:
                return found
            why = (
                f"{key}={name} is not the text encoder that the model was trained with (its checksum begins with"
                f" {found.sha256[:8]}, not {self.sha256[:8]})"
            )
        raise UserError(f"{why}, or set {VARIABLE}=DIR in .env to where the text encoder is")

    def _read(self) -> dict[str, Tensor]:
        """What the file holds; nothing, with a warning, if it is damaged."""
        if not self.path.exists():
            return {}
        try:
            with np.load(self.path) as file:
                texts, vectors = file["texts"].tolist(), torch.from_numpy(file["embeddings"])
            if vectors.shape != (len(texts), self.n_features) or vectors.dtype != torch.float32:
                raise ValueError("its parts do not fit")
            return dict(zip(texts, vectors, strict=True))
        except Exception as error:  # NumPy and zipfile raise many kinds
            log.warning("%s cannot be used (%s): it is made anew", self.path, telling(str(error)))
            return {}

    def _write(self) -> None:
        """Adds to the file, which other runs may write at the same time."""
        partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.npz")
        every = self._read() | self._kept
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                vectors = torch.stack([*every.values()]).numpy()
                np.savez_compressed(partial, texts=np.array([*every]), embeddings=vectors)
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            said = "%s cannot be written (%s), so that each run embeds its texts anew: set data_dir=DIR"
            log.warning(said, self.path, error.strerror or error)
