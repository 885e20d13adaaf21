"""The feature net of a data set and the real images in its features, kept in a file for the next run."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch

from src.config.explain import telling
from src.config.text import safe_name
from src.datamodules.image_datamodule import ImageDataModule
from src.datamodules.loader import ImageSet
from src.errors import UserError
from src.metrics.feature_net import EMBED_BATCH, RECIPE, Embedded, FeatureNet, train_classifier
from src.pictures.pixels import to_pixels
from src.run.files import replacing

log = logging.getLogger(__name__)

LEAST = 10  # images in a split
# The test accuracy without which a feature net is not used, with the training images that it takes.
REQUIRED_ACCURACY = {
    "mnist": (50_000, 0.99),
    "fashion-mnist": (50_000, 0.90),
    "cifar10": (40_000, 0.75),
    "digits": (1_000, 0.93),
    "digits-fallback": (1_000, 0.93),
}


class References(NamedTuple):
    """A data set's feature net, on the CPU, and the real images of `train`, `val` and `test` in its features."""

    name: str
    net: FeatureNet
    real: dict[str, Embedded]


def load_references(data: ImageDataModule, cache_dir: Path, device: torch.device) -> References:
    """The feature net of these data, trained on first use, and the real images in its features.

    Both are kept in a file in `cache_dir`, whose name has a hash of the three splits and of the recipe: other data have
    another file. The net trains on all training images, whatever part of them a run trains on. Real images go the way
    of generated ones: served at `img_size`, rounded to uint8, resized to the net's size.

    Raises:
        UserError: there are no classes, a split is too small, or the net's accuracy on the test split too low for its
            numbers to mean anything.
    """
    if not data.n_classes:
        raise UserError(
            "datamodule has no classes, and images are measured by a classifier of them: add a column label to the"
            " table beside the pictures"
        )
    sets, train = data.references, data.references["train"]
    for split in ("val", "test"):
        if len(sets[split]) < LEAST:
            raise UserError(
                f"datamodule has {len(sets[split])} images in its {split} split, but at least {LEAST} are needed:"
                " change datamodule.train_val_test_split"
            )
    hashed = data.sha256(str(RECIPE).encode())[:8]
    name, path = f"{data.source}-{hashed}", cache_dir / f"{safe_name(data.source)}-{hashed}.pt"
    _, channels, size, _ = train.images.shape
    net = FeatureNet(data.n_classes, channels, size)
    cached = _read_cache(path)
    if cached is None:
        log.info("training the feature net of %s: at most a minute on two cores, once for %s", data.source, path)
        task = f"feature net of {data.source}"
        net = train_classifier(train.images, train.labels, data.n_classes, size, device, task)
        cached = {"weights": {key: value.cpu() for key, value in net.state_dict().items()}, "real": {}}
    net.load_state_dict(cached["weights"])
    net.to(device).eval().requires_grad_(False)
    if data.img_size not in cached["real"]:
        cached["real"][data.img_size] = {split: tuple(embed_served(net, images)) for split, images in sets.items()}
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # Other runs may write it at the same time.
            with replacing(path, f".{os.getpid()}") as partial, open(partial, "wb") as file:
                torch.save(cached, file)
        except (OSError, RuntimeError) as error:  # torch hides what the system said behind a RuntimeError
            log.warning(
                "%s cannot be written (%s), so that every run trains the feature net anew: set data_dir=DIR or, for"
                " training, callbacks.quality.cache_dir=DIR",
                path,
                telling(str(error)),
            )
    real = {split: Embedded(*tensors) for split, tensors in cached["real"][data.img_size].items()}
    accuracy = real["test"].accuracy
    check_accuracy(accuracy, data.source, len(train), data.n_classes, path)
    net.cpu()
    log.info("features: %s, weights %s, test accuracy %.2f %%", name, net.sha256()[:8], 100 * accuracy)
    return References(name, net, real)


def embed_served(net: FeatureNet, images: ImageSet) -> Embedded:
    """A split in the net's features, as the model is served it."""
    parts = []
    for indices in torch.arange(len(images)).split(EMBED_BATCH):
        served, _ = images.__getitems__(indices.tolist())
        parts.append(net.embed(to_pixels(served), images.labels[indices]))
    return Embedded(*map(torch.cat, zip(*parts, strict=True)))


def check_accuracy(accuracy: float, source: str, n_train: int, n_classes: int, path: Path) -> None:
    """Refuses a feature net that knows too little."""
    n_required, required = REQUIRED_ACCURACY.get(source, (0, 0.0))
    if not required or n_train < n_required:  # three times guessing, or half of what lies above it where that is less
        required = min(3 / n_classes, (1 + 1 / n_classes) / 2)
    if accuracy < required:
        raise UserError(
            f"the feature net of {source} ({path.name}) has a test accuracy of {accuracy:.1%}, but its features mean"
            f" little below {required:.1%}: check the labels or use more training images"
        )


def _read_cache(path: Path) -> dict[str, Any] | None:
    """None if there is no file or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        with ZipFile(path) as archive:
            if archive.testzip() is None:  # torch does not compare checksums
                return torch.load(path, map_location="cpu", weights_only=True)
        why = "is damaged"
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    except Exception:  # zipfile and torch raise many kinds for files that are cut or garbled
        why = "is damaged"
    log.warning("%s %s: it is made anew", path, why)
    return None
