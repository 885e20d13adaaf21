"""From noise to images by a Stable Diffusion, step by step, as diffusers' pipelines go."""

from typing import Any

import torch
from torch import Tensor, nn

from src.models.encoded import Text, decode
from src.models.prompts import to_codes


class DiffusionSampler(nn.Module):
    """From noise to images, by a scheduler of diffusers, as its pipelines go.

    Args:
        model: a trained `StableDiffusionModel`.
        negative: a text to move away from; empty: no text.
        guidance, steps, scheduler: as in `StableDiffusionModel`.
    """

    def __init__(self, model: Any, negative: str, guidance: float, steps: int, scheduler: str) -> None:
        super().__init__()
        self.network = model.network
        self._model = (model,)  # no part of this network
        self.negative = negative
        self.guidance = guidance
        self.steps = steps
        self.scheduler = scheduler

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Noise [N, c, h, w] and prompts int64 [N, LENGTH] -> images [N, 3, H, W] in [-1, 1]."""
        with self._model[0].drawing_lock:
            return self.follow(noise, self._model[0].text(condition))

    def between(self, noise: Tensor, condition: Tensor, others: Tensor, weight: Tensor) -> Tensor:
        """Images from `condition` (weight 0) to `others` (weight 1), as `forward`."""
        with self._model[0].drawing_lock:
            texts = zip(self._model[0].text(condition), self._model[0].text(others), strict=True)
            mixed = tuple(torch.lerp(a, b, weight.view(-1, *[1] * (a.dim() - 1)).to(a)) for a, b in texts)
            return self.follow(noise, mixed)

    def follow(self, noise: Tensor, text: Text) -> Tensor:
        """Noise [N, c, h, w] and texts -> images in [-1, 1]; as many at once as memory holds."""
        model = self._model[0]
        n = model.images_at_once
        with model.in_low_precision():
            none = model.text(torch.from_numpy(to_codes([self.negative])).to(noise.device))
            parts = zip(noise.split(n), *(each.split(n) for each in text), strict=True)
            latents = [self._denoise(part, tuple(its_text), none) for part, *its_text in parts]
        with model.decoder(noise.device) as vae:
            return torch.cat([decode(model.base, vae, each.float()).clamp(-1, 1).to(noise.dtype) for each in latents])

    def _denoise(self, latents: Tensor, text: Text, none: Text) -> Tensor:
        model, guided = self._model[0], self.guidance != 1
        if guided:
            text = tuple(torch.cat([a.expand(len(b), *a.shape[1:]), b]) for a, b in zip(none, text, strict=True))
        scheduler = model.base.scheduler(self.scheduler)
        scheduler.set_timesteps(self.steps, device=latents.device, **model.base.shift_of(scheduler, latents.shape))
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        for time in scheduler.timesteps:
            seen = torch.cat([latents, latents]) if guided else latents
            if hasattr(scheduler, "scale_model_input"):
                seen = scheduler.scale_model_input(seen, time)
            said = model.predict(seen, time, text)
            if guided:
                without, with_text = said.chunk(2)
                said = without + self.guidance * (with_text - without)
            latents = scheduler.step(said.to(latents.dtype), time, latents, return_dict=False)[0]
        return latents
