"""What Stable Diffusion sees of images and texts: computed once, and kept in files that have a hash in their name."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from src.config.explain import telling
from src.models.diffusion_base import DiffusionBase

log = logging.getLogger(__name__)

MOST = 1_000  # texts kept that nobody expected, such as a service's
PIXELS = 512 * 512  # that are encoded at once, at least one image

Text = tuple[Tensor, ...]  # of one text: [L, D], and of a flow-matching base a vector [P]


class Texts:
    """The text encoders of a base, which embed each text once and by itself: no embedding depends on others."""

    def __init__(self, base: DiffusionBase) -> None:
        self.base = base
        self._pipeline: Any = None
        self._kept: dict[str, Text] = {}
        self._compute_once = lru_cache(MOST)(self._compute)

    def __call__(self, texts: Sequence[str]) -> Text:
        """Of N texts: [N, L, D], and of a flow-matching base [N, P]; on the CPU."""
        found = [self._kept[text] if text in self._kept else self._compute_once(text) for text in texts]
        return tuple(torch.stack(each) for each in zip(*found, strict=True))

    def expect(self, texts: Sequence[str], cache_dir: Path, device: torch.device) -> set[str]:
        """Embeds texts on a device, or reads them from a file; returns those that are cut as they are too long."""
        listed = list(dict.fromkeys(texts))
        hashed = _hash("texts", self.base.sha256, *listed)
        path = cache_dir / f"texts-{hashed}.safetensors"

        def compute() -> dict[str, Tensor]:
            self._load().to(device)
            rows = [(*self._compute(text), torch.tensor(self._is_cut(text))) for text in _shown(listed, "texts")]
            *parts, cut = (torch.stack(each).contiguous() for each in zip(*rows, strict=True))
            return {"cut": cut, **{f"part_{i}": part for i, part in enumerate(parts)}}

        names = ["cut", "part_0", "part_1"][: 3 if self.base.family.is_flow else 2]
        found = _kept_in(path, names, len(listed), f"embedding {len(listed):,} texts", compute)
        cut = found.pop("cut")
        self._kept = dict(zip(listed, zip(*(found[name] for name in names[1:]), strict=True), strict=True))
        return {text for text, is_cut in zip(listed, cut.tolist(), strict=True) if is_cut}

    def forget(self) -> None:
        """Makes room: the encoders are loaded again if they are needed."""
        self._pipeline = None

    def _load(self) -> Any:
        if self._pipeline is None:
            self._pipeline = self.base.pipeline(**self.base.text_parts())
        return self._pipeline

    @torch.no_grad()
    def _compute(self, text: str) -> Text:
        pipeline = self._load()
        return tuple(each[0].float().cpu() for each in embed(pipeline, [text], pipeline.text_encoder.device))

    def _is_cut(self, text: str) -> bool:
        tokenizers = [getattr(self._load(), part) for part in self.base.family.tokenizers]
        return any(len(each(text)["input_ids"]) > each.model_max_length for each in tokenizers if each is not None)


def embed(pipeline: Any, texts: Sequence[str], device: torch.device) -> Text:
    """N texts as a pipeline of diffusers reads them: [N, L, D], and of a flow-matching base [N, P]."""
    if hasattr(pipeline, "transformer"):
        found = pipeline.encode_prompt(list(texts), None, None, device, do_classifier_free_guidance=False)
        return found[0], found[2]
    return (pipeline.encode_prompt(list(texts), device, 1, False)[0],)


@torch.no_grad()
def latents_of(
    base: DiffusionBase,
    served: Callable[[Sequence[int]], Tensor],
    hashed: str,
    n: int,
    shape: Sequence[int],
    mirrored: bool,
    cache_dir: Path,
    device: torch.device,
) -> Tensor:
    """Latents float32 [K, n, *shape] of n images; K is 2, with those of their mirror images, or 1.

    They are the means of what the encoder says: its spread is far smaller than a level of 8 bits.

    Args:
        base: its VAE encodes.
        served: the images float32 [B, 3, H, W] in [-1, 1] of indices; of ~i the mirror image.
        hashed: stands for these images, and for how they are served.
        shape: of one image's latents.
        cache_dir: where the file is.
        device: where they are computed.
    """
    asked = [*range(n), *(~i for i in range(n) if mirrored)]
    path = cache_dir / f"latents-{_hash('latents', base.sha256, hashed, mirrored)}.safetensors"

    def compute() -> dict[str, Tensor]:
        vae = base.load("vae").to(device)
        at_once = max(1, PIXELS // (shape[-1] * base.scale) ** 2)
        parts = [asked[start : start + at_once] for start in range(0, len(asked), at_once)]
        found = [vae.encode(served(part).to(device)).latent_dist.mode().cpu() for part in _shown(parts, "images")]
        shift, scale = base.latent_shift_and_scale
        return {"latents": ((torch.cat(found) - shift) * scale).contiguous()}

    found = _kept_in(path, ["latents"], len(asked), f"encoding {len(asked):,} images", compute)
    return found["latents"].view(-1, n, *shape)


def decode(base: DiffusionBase, vae: Any, latents: Tensor) -> Tensor:
    """Latents [N, c, h, w] -> images [N, 3, H, W]."""
    shift, scale = base.latent_shift_and_scale
    return vae.decode(latents / scale + shift, return_dict=False)[0]


def _kept_in(
    path: Path, names: Sequence[str], n: int, task: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors of n rows from a file, or else computed and written to it."""
    from safetensors.torch import load_file, save_file

    if path.exists():
        try:
            found = load_file(path)
            if sorted(found) != sorted(names) or any(len(each) != n for each in found.values()):
                raise ValueError("its parts do not fit")
            if all(bool(each.isfinite().all()) for each in found.values()):
                return found
            raise ValueError("some are not numbers")
        except Exception as error:  # safetensors' own, and the system's
            log.warning("%s cannot be used (%s): it is made anew", path, telling(str(error)))
    log.info("%s, once for %s", task, path)
    found = compute()
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(found, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except Exception as error:  # safetensors wraps what the system says
        log.warning(
            "%s cannot be written (%s), and is made anew each time: set data_dir=DIR", path, telling(str(error))
        )
    return found


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _shown(rows: Sequence[Any], task: str) -> Any:
    console = Console(stderr=True)
    return track(rows, task, console=console, transient=True, disable=not console.is_terminal)
