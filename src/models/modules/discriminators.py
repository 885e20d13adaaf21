"""Discriminators: an image and a class label in, one score out."""

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """A fully connected conditional discriminator (Mirza & Osindero 2014, in the layout of the PyTorch-GAN collection).

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the image in pixels.
    """

    def __init__(self, n_classes: int, channels: int, img_size: int) -> None:
        super().__init__()
        self.label_embedding = nn.Embedding(n_classes, n_classes)
        self.model = nn.Sequential(
            nn.Linear(n_classes + channels * img_size**2, 512),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(512, 512),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(512, 512),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(512, 1),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] and labels int64 [N] -> scores [N, 1], unbounded; higher means more real."""
        return self.model(torch.cat([images.flatten(1), self.label_embedding(labels)], dim=1))
