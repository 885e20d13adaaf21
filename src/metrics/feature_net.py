"""A small classifier, in whose features images are compared."""

import hashlib
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, relu
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from src.datamodules.loader import Images

RECIPE = 2  # raise it with any change to what follows: nets trained before are then no longer used
N_FEATURES = 64
WIDTHS = (24, 48, 96)
SIZE, SMALL_SIZE = 32, 16  # pixels; the latter for data sets of images of at most that size
N_PASSES = 20  # over the training images, but
MOST_IMAGES = 250_000  # in all, in about a minute
BATCH = 128
LEARNING_RATE = 5e-3  # at its highest
WEIGHT_DECAY = 0.02
SEED = 0  # not the run's: everybody's numbers compare
EMBED_BATCH = 100  # twice as fast as 500, which leave the cache


class Embedded(NamedTuple):
    """Images in a classifier's features float32 [N, d], the classes it predicts, and their labels, both int64 [N]."""

    features: Tensor
    predicted: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> "Embedded":
        return Embedded(*(tensor[index] for tensor in self))

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).double().mean())


class FeatureNet(nn.Module):
    """Three convolutions and a bottleneck, each feature of which has mean 0 and variance 1 on the training data.

    Whatever their size, images are resized to 32 x 32 pixels, or to 16 x 16 where that is enough for the data set.
    `native_size` is the height of its own images in pixels.
    """

    def __init__(self, n_classes: int, channels: int, native_size: int) -> None:
        super().__init__()
        self.size = SMALL_SIZE if native_size <= SMALL_SIZE else SIZE
        layers: list[nn.Module] = []
        for n_in, n_out in zip((channels, *WIDTHS), WIDTHS, strict=False):
            # Pooled at once, which leaves a quarter of the work to what follows.
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(n_out)]
            layers += [nn.ReLU(inplace=True)]
        side = self.size // 2 ** len(WIDTHS)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * side**2, N_FEATURES, bias=False))
        self.standardise = nn.BatchNorm1d(N_FEATURES, affine=False)
        self.head = nn.Linear(N_FEATURES, n_classes)
        self.to(memory_format=torch.channels_last)

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 64]; floats are refused, as no file would hold them."""
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8, as in a file, not {pixels.dtype}: round with to_pixels")
        images = resized(pixels.float(), self.size).div(127.5).sub(1)
        return self.standardise(self.body(images.contiguous(memory_format=torch.channels_last)))

    def classify(self, features: Tensor) -> Tensor:
        return self.head(relu(features))  # logits [N, n_classes]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classify(self.features(pixels))

    @torch.no_grad()
    def embed(self, pixels: Tensor, labels: Tensor) -> Embedded:
        """Features and predictions, on the CPU, of images uint8 [N, C, H, W]; in evaluation mode."""
        assert not self.training
        device = self.head.weight.device
        with alike_everywhere():
            features = [self.features(batch.to(device)) for batch in pixels.split(EMBED_BATCH)]
            predicted = [self.classify(each).argmax(1) for each in features]
        return Embedded(torch.cat(features).cpu(), torch.cat(predicted).cpu(), labels.cpu())

    def sha256(self) -> str:
        """The checksum of its weights, wherever they are, in hexadecimal."""
        hashed = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            hashed.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()


def alike_everywhere() -> AbstractContextManager[None]:
    """For a block, convolutions on a GPU are float32's, as on a CPU, and repeat themselves."""
    # torch's default in here is to switch cuDNN off, which launches kernels for each image.
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def resized(images: Tensor, size: int) -> Tensor:
    """Float images [N, C, H, W] -> [N, C, size, size]: mean of what falls into a pixel, or bilinear where they grow."""
    if images.shape[-2:] == (size, size):
        return images
    if size < max(images.shape[-2:]):
        return interpolate(images, (size, size), mode="area")  # blurs less than an antialiased bilinear does
    return interpolate(images, (size, size), mode="bilinear", align_corners=False)


@torch.inference_mode(False)  # a test runs in it
@torch.enable_grad()
def train_classifier(
    pixels: Images, labels: Tensor, n_classes: int, native_size: int, device: torch.device, task: str
) -> FeatureNet:
    """A `FeatureNet` trained from scratch on at most 250,000 randomly shifted images, in about a minute on two cores.

    The recipe is fixed, so that classifiers trained on different images compare. It repeats itself to the bit on one
    machine, and leaves torch's global generators alone. Images are never flipped: a mirrored digit is not a digit.

    Args:
        pixels: uint8 [N, C, H, W].
        native_size: as for `FeatureNet`, which is returned in evaluation mode.
        task: shown beside the progress bar.
    """
    rng = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        net = FeatureNet(n_classes, pixels.shape[1], native_size).to(device)
    small = torch.cat([resized(part.float(), net.size).round().byte() for part in pixels.split(EMBED_BATCH)])
    batch = min(BATCH, len(small))
    steps = min(N_PASSES * len(small), MOST_IMAGES) // batch
    optimizer = AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.25)
    order = torch.empty(0, dtype=torch.int64)
    console = Console(stderr=True)
    with alike_everywhere():
        for _ in track(range(steps), task, console=console, transient=True, disable=not console.is_terminal):
            if len(order) < batch:
                order = torch.randperm(len(small), generator=rng)
            index, order = order[:batch], order[batch:]
            images = shifted(small[index], net.size // 16, rng).to(device)
            # Half of them are blurred a little, as images are that were drawn or served larger than this size.
            larger = resized(images[::2].float(), 2 * net.size)
            images[::2] = resized(larger, net.size).round().byte()
            loss = cross_entropy(net(images), labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def shifted(pixels: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by up to `most` pixels both ways at random; its edges are repeated."""
    n, _, height, width = pixels.shape
    rows, columns = torch.randint(-most, most + 1, (2, n, 1), generator=rng)
    rows = (torch.arange(height) + rows).clamp(0, height - 1)
    columns = (torch.arange(width) + columns).clamp(0, width - 1)
    moved = pixels[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return moved.permute(0, 3, 1, 2)
