"""Penalties on D's gradients with respect to its input. Each is the value its paper adds to D's summed losses.

They need a second backward pass, so that each may be applied lazily: only on every n-th batch, n times as strong
(Karras et al. 2020, StyleGAN2).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from src.config.types import Count, Positive

# images [N, C, H, W], labels [N] -> scores [N, 1]
Scores = Callable[[Tensor, Tensor], Tensor]


def squared_gradient_norm(discriminator: Scores, images: Tensor, labels: Tensor) -> Tensor:
    """|dD(x)/dx|^2 of each image, [N]; it can itself be differentiated."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


class Penalty(ABC):
    """A penalty on D, applied on every `every`-th batch.

    Args:
        every: in batches; the value is `every` times as strong on those.
    """

    def __init__(self, every: Count) -> None:
        self.every = every

    @abstractmethod
    def __call__(self, discriminator: Scores, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """The penalty, a scalar.

        Args:
            discriminator: D.
            real: real images [N, C, H, W] in [-1, 1].
            fake: generated images of the same shape and labels.
            labels: int64 [N].
        """


class R1(Penalty):
    """gamma / 2 * E |dD(x)/dx|^2 on real images (Mescheder et al. 2018): D is flat where the data is.

    Args:
        gamma: the weight.
        every: in batches.
    """

    def __init__(self, gamma: Positive = 1.0, every: Count = 1) -> None:
        super().__init__(every)
        self.gamma = gamma

    def __call__(self, discriminator: Scores, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        return self.gamma / 2 * squared_gradient_norm(discriminator, real, labels).mean()


class R2(R1):
    """gamma / 2 * E |dD(x)/dx|^2 on generated images (Mescheder et al. 2018); relativistic losses need both.

    Args:
        gamma: the weight.
        every: in batches.
    """

    def __call__(self, discriminator: Scores, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        return self.gamma / 2 * squared_gradient_norm(discriminator, fake, labels).mean()


class GradientPenalty(Penalty):
    """weight * E (|dD(x)/dx| - 1)^2 between real and generated images (Gulrajani et al. 2017, WGAN-GP).

    Args:
        weight: lambda in the paper.
        every: in batches.
    """

    def __init__(self, weight: Positive = 10.0, every: Count = 1) -> None:
        super().__init__(every)
        self.weight = weight

    def __call__(self, discriminator: Scores, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        where = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        between = fake.lerp(real, where)
        # The square root has no gradient at 0.
        norm = (squared_gradient_norm(discriminator, between, labels) + 1e-12).sqrt()
        return self.weight * (norm - 1).square().mean()
