"""DCGAN (Radford, Metz & Chintala 2015), conditional, for images of 28, 32 or 64 pixels."""

import torch
from torch import Tensor, nn

from src.models.modules.sizes import halvings


def _initialised(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.02)  # the paper's


class DCGANGenerator(nn.Module):
    """Transposed convolutions with BatchNorm and ReLU.

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        latent_dim: length of the noise vector.
        channels: image channels.
        img_size: height and width of the image in pixels, 4 to 7 doubled several times.
        width: channels at the largest resolution before the image; they double with each halving.

    Raises:
        ValueError: `img_size` does not suit.
    """

    def __init__(self, n_classes: int, latent_dim: int, channels: int, img_size: int, width: int = 32) -> None:
        super().__init__()
        n = halvings(img_size)
        self.label_embedding = nn.Embedding(n_classes, latent_dim)
        wide = width * 2 ** (n - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(2 * latent_dim, wide, img_size >> n, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
        ]
        for _ in range(n - 1):
            layers += [
                nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide // 2),
                nn.ReLU(inplace=True),
            ]
            wide //= 2
        layers += [nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        _initialised(self)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [N, latent_dim] and labels int64 [N] -> images [N, C, H, W] in [-1, 1]."""
        return self.model(torch.cat([noise, self.label_embedding(labels)], dim=1)[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """Strided convolutions; the label enters as one more channel of the image.

    It has no BatchNorm, unlike the paper's: gradient penalties need scores that are of one image alone, and so does
    the training step, which scores real and generated images in one pass.

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the image in pixels, 4 to 7 doubled several times.
        width: channels after the first convolution; they double with each halving.

    Raises:
        ValueError: `img_size` does not suit.
    """

    def __init__(self, n_classes: int, channels: int, img_size: int, width: int = 32) -> None:
        super().__init__()
        n = halvings(img_size)
        self.img_size = img_size
        self.label_embedding = nn.Embedding(n_classes, img_size**2)
        layers: list[nn.Module] = []
        deep = channels + 1
        for i in range(n):
            layers += [nn.Conv2d(deep, width * 2**i, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
            deep = width * 2**i
        layers.append(nn.Conv2d(deep, 1, img_size >> n))
        self.model = nn.Sequential(*layers)
        _initialised(self)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] and labels int64 [N] -> scores [N, 1], unbounded; higher means more real."""
        label = self.label_embedding(labels).view(-1, 1, self.img_size, self.img_size)
        return self.model(torch.cat([images, label], dim=1)).flatten(1)
