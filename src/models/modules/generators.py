"""Generators: noise and a class label in, an image out."""

import math

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """A fully connected conditional generator (Mirza & Osindero 2014, in the layout of the PyTorch-GAN collection).

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        latent_dim: length of the noise vector.
        channels: image channels.
        img_size: height and width of the image in pixels.
    """

    def __init__(self, n_classes: int, latent_dim: int, channels: int, img_size: int) -> None:
        super().__init__()
        self.image_shape = (channels, img_size, img_size)
        self.label_embedding = nn.Embedding(n_classes, n_classes)

        layers: list[nn.Module] = [nn.Linear(latent_dim + n_classes, 128), nn.LeakyReLU(0.2, inplace=True)]
        for width, wider in [(128, 256), (256, 512), (512, 1024)]:
            # 0.8 lands in `eps`, though its first author surely meant the momentum. It is kept: the baseline is
            # what people compare with, and an eps of 0.8 also damps small activations enough to change results.
            layers += [nn.Linear(width, wider), nn.BatchNorm1d(wider, eps=0.8), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Linear(1024, math.prod(self.image_shape)), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [N, latent_dim] and labels int64 [N] -> images [N, C, H, W] in [-1, 1]."""
        images = self.model(torch.cat([self.label_embedding(labels), noise], dim=1))
        return images.view(-1, *self.image_shape)
