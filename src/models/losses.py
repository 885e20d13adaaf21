"""Adversarial losses. Each class says what D's scores cost each network; swap them with `model.loss._target_`."""

from torch import Tensor
from torch.nn.functional import softplus


class LSGANLoss:
    """Least squares (Mao et al. 2017): D is pulled to 1 on real images and 0 on generated ones, G pulls it to 1.

    Scores are [N, 1] and unbounded; above 0.5 D takes an image for real. All losses are scalars.
    """

    def generator(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on real and on generated images; D minimises their mean."""
        return (real - 1).square().mean(), fake.square().mean()


class NonSaturatingLoss:
    """Binary cross-entropy on logits, with the generator loss that does not saturate (Goodfellow et al. 2014).

    Scores are logits [N, 1]; above 0 D takes an image for real. All losses are scalars.
    """

    def generator(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on real and on generated images; D minimises their mean."""
        return softplus(-real).mean(), softplus(fake).mean()
