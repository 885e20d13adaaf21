"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A copy of a network whose weights follow the original slowly; it usually draws the better images.

    The half-life counts images, so that it means the same at any batch size, and it never exceeds `RAMP` times the
    images seen, so that a short run is not averaged with the noise it started from (Karras et al. 2022, EDM).

    Args:
        network: what to follow.
        half_life: images after which half of the average has been replaced; positive.
    """

    RAMP = 0.05

    def __init__(self, network: nn.Module, half_life: float) -> None:
        super().__init__()
        self.half_life = half_life
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.images_seen: Tensor
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self._count = 0  # the same number, readable without waiting for a GPU
        self.register_load_state_dict_post_hook(_take_up_count)

    def train(self, mode: bool = True) -> "EMA":
        """The average is only ever used to draw images: it stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module, n_images: int) -> None:
        """Moves the average towards `network`, after a step on `n_images` images."""
        self._count += n_images
        self.images_seen += n_images
        half_life = min(self.half_life, self.RAMP * self._count)
        decay = 0.5 ** (n_images / half_life)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(current)  # BatchNorm statistics are averages already

    def forward(self, *args: Tensor) -> Tensor:
        return self.network(*args)


def _take_up_count(average: EMA, incompatible_keys: object) -> None:
    average._count = int(average.images_seen)
