"""A small modern residual pair for conditional images of 28, 32 or 64 pixels, made to be cheap on a CPU.

No convolution with many channels runs at the full resolution: D begins by folding each 2x2 pixels into channels and G
ends by unfolding them (Shi et al. 2016): most of the arithmetic is at a quarter and a sixteenth of the pixels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu, one_hot, pixel_shuffle, pixel_unshuffle, relu

from src.models.modules.sizes import halvings


class ConditionalNorm(nn.Module):
    """BatchNorm whose scale and shift are linear in a condition vector (de Vries et al. 2017; Brock et al. 2019).

    Args:
        condition_dim: length of the condition.
        channels: channels of the features.
    """

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale_and_shift = nn.Linear(condition_dim, 2 * channels)
        nn.init.normal_(self.scale_and_shift.weight, std=0.02)  # starts close to plain BatchNorm
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Features [N, C, H, W] and condition [N, condition_dim] -> [N, C, H, W]."""
        scale, shift = self.scale_and_shift(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(features), 1 + scale)


class GeneratorBlock(nn.Module):
    """Two 3x3 convolutions with a skip, doubling height and width just before the second.

    All that can be done before the doubling is, at a quarter of the cost: the result is the same.
    """

    def __init__(self, condition_dim: int, channels: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(condition_dim, channels)
        self.conv1 = nn.Conv2d(channels, channels_out, 3, padding=1)
        self.norm2 = ConditionalNorm(condition_dim, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels_out, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Features [N, C, H, W] and condition [N, condition_dim] -> [N, C_out, 2H, 2W]."""
        residual = self.conv1(relu(self.norm1(features, condition)))
        residual = relu(self.norm2(residual, condition))
        return interpolate(self.skip(features), scale_factor=2.0) + self.conv2(interpolate(residual, scale_factor=2.0))


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions with a skip, halving height and width between them, after which channels come cheaper.

    There is no norm, so that a score is of one image alone.
    """

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels_out, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, C, H, W] -> [N, C_out, H/2, W/2]."""
        residual = leaky_relu(self.conv1(leaky_relu(features, 0.2)), 0.2)
        return self.skip(avg_pool2d(features, 2)) + self.conv2(avg_pool2d(residual, 2))


def within_class_std(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """How much each of the features [N, D] varies between images of the same class (labels int64 [N]), float32 [D].

    It is the root of the variance within classes, pooled over them.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, of_class = features.float(), one_hot(labels, n_classes).float()
        counts = of_class.sum(dim=0)
        means = of_class.T @ features / counts.clamp(min=1)[:, None]
        degrees = (len(labels) - (counts > 0).sum()).clamp(min=1)
        return ((features - of_class @ means).square().sum(dim=0) / degrees + 1e-6).sqrt()


class ResidualGenerator(nn.Module):
    """Residual blocks whose norms are conditioned on label and noise (Miyato & Koyama 2018; Brock et al. 2019).

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        latent_dim: length of the noise vector.
        channels: image channels.
        img_size: height and width of the image in pixels, 4 to 7 doubled several times.
        width: channels at half the image's size; they double with each halving.

    Raises:
        ValueError: `img_size` does not suit.
    """

    def __init__(self, n_classes: int, latent_dim: int, channels: int, img_size: int, width: int = 32) -> None:
        super().__init__()
        n = halvings(img_size)
        widths = [width * 2**i for i in reversed(range(n))]
        self.label_embedding = nn.Embedding(n_classes, latent_dim)
        condition_dim = 2 * latent_dim
        self.start = nn.Linear(condition_dim, widths[0] * (img_size >> n) ** 2)
        self.start_shape = (widths[0], img_size >> n, img_size >> n)
        self.blocks = nn.ModuleList(GeneratorBlock(condition_dim, i, o) for i, o in pairwise(widths))
        self.norm = ConditionalNorm(condition_dim, width)
        self.end = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # faster on a CPU: docs/step_cost.md

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [N, latent_dim] and labels int64 [N] -> images [N, C, H, W] in [-1, 1]."""
        condition = torch.cat([noise, self.label_embedding(labels)], dim=1)
        features = self.start(condition).unflatten(1, self.start_shape).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = block(features, condition)
        return pixel_shuffle(self.end(relu(self.norm(features, condition))), 2).tanh()


class ResidualDiscriminator(nn.Module):
    """Residual blocks, and the label as a projection: its embedding times the features (Miyato & Koyama 2018).

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        channels: image channels.
        img_size: height and width of the image in pixels, 4 to 7 doubled several times.
        width: channels at half the image's size; they double with each halving.
        features: length of the vector that the score is linear in.
        minibatch_std: adds to what it sees of an image how much each channel varies between the images of a batch,
            within classes (Karras et al. 2018 add one number, over all images): images that vary less than real ones
            then have low scores.

    Raises:
        ValueError: `img_size` does not suit.
    """

    def __init__(
        self,
        n_classes: int,
        channels: int,
        img_size: int,
        width: int = 32,
        features: int = 128,
        minibatch_std: bool = False,
    ) -> None:
        super().__init__()
        self.minibatch_std = minibatch_std
        n = halvings(img_size)
        widths = [width * 2**i for i in range(n)]
        self.start = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[DiscriminatorBlock(i, o) for i, o in pairwise(widths)])
        # Where something is counts as much as what it is: no pooling over the positions that are left.
        places = (img_size >> n) ** 2
        self.features = nn.Linear(widths[-1] * (places + minibatch_std), features)
        self.score = nn.Linear(features, 1)
        self.label_embedding = nn.Embedding(n_classes, features)
        nn.init.normal_(self.label_embedding.weight, std=features**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or module is self.features:
                # PyTorch's default makes features fade with depth, and scores with them (He et al. 2015).
                nn.init.kaiming_normal_(module.weight, a=0.2)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor, batches: Sequence[int] | None = None) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] and labels int64 [N] -> scores [N, 1], unbounded; higher means more real.

        Args:
            images, labels: as above.
            batches: for `minibatch_std`, how many images each batch among them has; those left over at the end are of
                the first one. None: all are one batch.
        """
        features = self.blocks(self.start(pixel_unshuffle(images, 2)))
        # Flattened first: the other way round, its gradient comes in another memory format, which is ten times as slow.
        n_channels, seen = features.shape[1], leaky_relu(features.flatten(1), 0.2)
        if self.minibatch_std:
            sizes = list(batches or [len(images)])
            n, n_classes = sum(sizes), self.label_embedding.num_embeddings
            parts = zip(seen[:n].split(sizes), labels[:n].split(sizes), strict=True)
            stds = [within_class_std(*part, n_classes).view(n_channels, -1).mean(dim=1) for part in parts]
            told = [*zip(stds, sizes, strict=True), (stds[0], len(images) - n)]
            seen = torch.cat([seen, torch.cat([std.expand(size, -1) for std, size in told]).to(seen.dtype)], dim=1)
        features = leaky_relu(self.features(seen), 0.2)
        return self.score(features) + (self.label_embedding(labels) * features).sum(dim=1, keepdim=True)
