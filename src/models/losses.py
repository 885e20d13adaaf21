"""Adversarial losses. Each class says what D's scores cost each network; swap them with `model/objective`.

Scores are [N, 1], higher for what D takes for real; all losses are scalars. `discriminator` returns the loss on real
and on generated images; D minimises their mean, which is half of what their papers write as a sum. Above `threshold` D
takes an image for real; without one only differences of scores mean something.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import relu, softplus


class LSGANLoss:
    """Least squares (Mao et al. 2017): D is pulled to 1 on real images and 0 on generated ones, G pulls it to 1."""

    threshold = 0.5
    has_targets = True  # label smoothing can move them

    def generator(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return (real - 1).square().mean(), fake.square().mean()


class NonSaturatingLoss:
    """Binary cross-entropy on logits, with the generator loss that does not saturate (Goodfellow et al. 2014)."""

    threshold = 0.0
    has_targets = True

    def generator(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return softplus(-real).mean(), softplus(fake).mean()


class HingeLoss:
    """The hinge loss (Lim & Ye 2017, Tran et al. 2017): D stops where real is above 1 and generated below -1."""

    threshold = 0.0

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return relu(1 - real).mean(), relu(1 + fake).mean()


class WassersteinLoss:
    """The difference of D's mean scores (Arjovsky et al. 2017), which estimates a distance only if D is Lipschitz."""

    needs_lipschitz = True  # a gradient penalty or spectral norm must see to it

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return -real.mean(), fake.mean()


class RelativisticLoss:
    """Relativistic pairing (Jolicoeur-Martineau 2018; Huang et al. 2024, R3GAN): real against generated, pair by pair.

    A pair shares its label, as generated images take the batch's labels. G is judged against real images, too.
    """

    paired = True  # `generator` also takes the scores of the real images

    def generator(self, fake: Tensor, real: Tensor) -> Tensor:
        return softplus(real - fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Half of the one loss for each, as it has no part of real images alone."""
        half = softplus(fake - real).mean() / 2
        return half, half


@runtime_checkable
class AdversarialLoss(Protocol):
    """What a loss of your own must offer.

    It may also say of itself, with class attributes, that its G loss takes the scores of real images as a second
    argument (`paired`), the score above which D takes an image for real (`threshold`), that it pulls scores to targets
    which can be smoothed (`has_targets`), or that it makes no sense unless D is Lipschitz (`needs_lipschitz`).
    """

    @property
    def generator(self) -> Callable[..., Tensor]: ...

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]: ...
