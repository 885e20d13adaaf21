"""The feature net of a data set and what it makes of the real images, kept in a file for the next run."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from src.config.explain import telling
from src.config.text import safe_name
from src.errors import UserError
from src.metrics.feature_net import EMBED_BATCH, RECIPE, Embedded, FeatureNet, accuracy_of, train_classifier
from src.pictures.pixels import to_pixels
from src.run.checksum import splits_sha256

log = logging.getLogger(__name__)

# The test accuracy without which a feature net is not used, with the training images that it takes.
REQUIRED_ACCURACY = {
    "mnist": (50_000, 0.99),
    "fashion-mnist": (50_000, 0.90),
    "cifar10": (40_000, 0.75),
    "digits": (1_000, 0.93),
    "digits-fallback": (1_000, 0.93),
}


class LabelledImages(Protocol):
    """One split of a data set: images uint8 [N, C, H, W], labels int64 [N], and how it is served to the model."""

    images: Tensor
    labels: Tensor

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, img_size, img_size] in [-1, 1] and labels int64 [B]."""


class References(NamedTuple):
    """A data set's feature net, on the CPU, and the real images of `train`, `val` and `test` in its features."""

    name: str
    net: FeatureNet
    real: dict[str, Embedded]


def load_references(
    sets: Mapping[str, LabelledImages],
    source: str,
    n_classes: int,
    img_size: int,
    cache_dir: Path,
    device: torch.device,
) -> References:
    """The feature net of these data, trained on first use, and the real images in its features.

    Both are kept in `cache_dir` in a file whose name carries the data's name and a hash of the three splits and of the
    recipe: other data have another file. Real images go the way of generated ones: served at `img_size`, rounded to
    uint8, resized to the net's size.

    Args:
        sets: the splits `train`, `val` and `test`; the net sees the first alone.
        source: names the data.
        n_classes: number of classes.
        img_size: height and width of the images served, in pixels.
        cache_dir: where the file is.
        device: where to train and to compute.

    Raises:
        UserError: the net's accuracy on the test split is too low for its numbers to mean anything.
    """
    hashed = data_hash(sets)
    name = f"{source}-{hashed}"
    path = cache_dir / f"{safe_name(source)}-{hashed}.pt"
    size = sets["train"].images.shape[-2]
    net = FeatureNet(n_classes, sets["train"].images.shape[1], size)
    cached = read_cache(path)
    if cached is None:
        data = sets["train"]
        log.info("training the feature net of %s: at most a minute on two cores, once for %s", source, path)
        net = train_classifier(data.images, data.labels, n_classes, size, device, f"feature net of {source}")
        cached = {"weights": {key: value.cpu() for key, value in net.state_dict().items()}, "real": {}}
    net.load_state_dict(cached["weights"])
    net.to(device).eval().requires_grad_(False)
    if img_size not in cached["real"]:
        cached["real"][img_size] = {split: tuple(embed_served(net, data)) for split, data in sets.items()}
        write_cache(cached, path)
    real = {split: Embedded(*tensors) for split, tensors in cached["real"][img_size].items()}
    accuracy = accuracy_of(real["test"])
    check_accuracy(accuracy, source, len(real["train"].labels), n_classes, path)
    log.info("features: %s, weights %s, test accuracy %.2f %%", name, digest(cached["weights"])[:8], 100 * accuracy)
    return References(name, net.cpu(), real)


def data_hash(sets: Mapping[str, LabelledImages]) -> str:
    """Eight hexadecimal digits of the splits' pixels and labels and of the recipe's number."""
    return splits_sha256(sets, str(RECIPE).encode())[:8]


def embed_served(net: FeatureNet, data: LabelledImages) -> Embedded:
    """A split in the net's features, as the model is served it."""
    parts = []
    for indices in torch.arange(len(data.labels)).split(EMBED_BATCH):
        images, labels = data.__getitems__(indices.tolist())
        parts.append(net.embed(to_pixels(images), labels))
    return Embedded(*map(torch.cat, zip(*parts, strict=True)))


def check_accuracy(accuracy: float, source: str, n_train: int, n_classes: int, path: Path) -> None:
    """Refuses a feature net that knows too little.

    Data that we have no figure for, or fewer training images than it takes, must reach three times what guessing
    would, or half of what lies above guessing where that is less.

    Raises:
        UserError: names both figures.
    """
    n_required, required = REQUIRED_ACCURACY.get(source, (0, 0.0))
    if not required or n_train < n_required:
        required = min(3 / n_classes, (1 + 1 / n_classes) / 2)
    if accuracy < required:
        raise UserError(
            f"the feature net of {source} ({path.name}) has a test accuracy of {accuracy:.1%}, but its features mean"
            f" little below {required:.1%}: check the labels or use more training images"
        )


def read_cache(path: Path) -> dict[str, Any] | None:
    """What `write_cache` wrote; None where there is no file, or, with a warning, where it is damaged."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("sha256") == digest(content):
            return content
    except OSError as error:
        log.warning("%s cannot be read (%s): it is made anew", path, error.strerror or error)
        return None
    except Exception:  # torch raises RuntimeError, EOFError, KeyError, ... for files that are cut or garbled
        pass
    log.warning("%s is damaged: it is made anew", path)
    return None


def write_cache(content: dict[str, Any], path: Path) -> None:
    """Writes beside the target and then renames, so that the file is whole or not there. Warns where it cannot."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                torch.save(content | {"sha256": digest(content)}, file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch hides what the system said behind a RuntimeError
        log.warning(
            "%s cannot be written (%s), so that every run trains the feature net anew: set data_dir=DIR or, for"
            " training, callbacks.quality.cache_dir=DIR",
            path,
            telling(str(error)),
        )


def digest(content: Any) -> str:
    """A sha256 of tensors and plain values in nested dicts and tuples."""
    hashed = hashlib.sha256()
    _update(hashed, content)
    return hashed.hexdigest()


def _update(hashed: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        hashed.update(content.contiguous().numpy().tobytes())
    elif isinstance(content, dict):
        for key in sorted(content):
            hashed.update(str(key).encode())
            _update(hashed, content[key])
    else:
        for each in content:
            _update(hashed, each)
