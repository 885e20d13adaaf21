"""How good generated images are, beside as many real ones: a run and `task=evaluate` both measure with this."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.metrics import scores
from src.metrics.alarms import Quality, alarms
from src.metrics.copies import N_NEAREST, Nearest, copied, nearest_training_images
from src.metrics.feature_net import Embedded, train_classifier
from src.metrics.references import References, embed_served
from src.pictures.pixels import to_pixels

N_CAS = 50_000  # images that a classifier trains on
DRAW_BATCH = 250  # images drawn from one generator
# The tested checkpoint was chosen by a validation's images: the test draws others, and CAS others again.
SEEDS = {"val": 0, "test": 1_000_000, "cas": 2_000_000}


class Evaluator:
    """Measures sets of n images against the real images of a data set, in the features of its own classifier.

    The reference is the test split: all of it for means and variances, n images where the number matters. The floor is
    the quality of n images of the validation split, which the classifier has not seen: the best that n images can have.

    Args:
        datamodule: the real images.
        references: their classifier, and they in its features.
        n: images in a set; fewer where the validation or the test split has fewer.
        device: where images are embedded and classifiers trained.
        counts: int64 [n_classes], no set has more images of a class; None: any number.

    Attributes:
        held_out: indices in the validation split of the images that the floor measures, int64 [n].
        labels: their classes, which a model is to draw: then samples and floor differ in nothing else.
        name, net, real: as in `References`.
    """

    def __init__(
        self,
        datamodule: ImageDataModule,
        references: References,
        n: int,
        device: torch.device,
        counts: Tensor | None = None,
    ) -> None:
        self.datamodule = datamodule
        self.name, self.net, self.real = references.name, references.net.to(device), references.real
        self._device = device
        self._counts = counts
        val, test = self.real["val"], self.real["test"]
        allowed = _within(val.labels, counts)
        self.n = min(n, len(allowed), len(test.labels))
        self.held_out = allowed[choice(len(allowed), self.n)]
        self.labels = val.labels[self.held_out]
        self._gaussian = scores.fit_gaussian(test.features)
        self._variance = scores.class_variance(test.features, test.labels, datamodule.n_classes)
        self._reference = test.features[choice(len(test.labels), self.n)]

    @cached_property
    def floor(self) -> Quality:
        """The quality of the held-out images. It is measured when first needed: a run starts sooner."""
        return self.measure(self.real["val"].at(self.held_out))

    @cached_property
    def _real_nearest(self) -> Nearest:
        features = self.real["val"].features[self.held_out[:N_NEAREST]]
        return self._nearest(features)

    def _nearest(self, features: Tensor) -> Nearest:
        """Most of what a validation measures with, so on the device."""
        both = (each.to(self._device) for each in (features, self.real["train"].features))
        return Nearest(*(each.cpu() for each in nearest_training_images(*both)))

    @cached_property
    def _reference_alone(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """A third of what neighbours and kernels cost, and the same every time."""
        return scores.radii(self._reference), scores.mean_kernel(self._reference)

    def measure(self, images: Embedded) -> Quality:
        """Quality of embedded images, whose labels are the classes that were asked for. Keys of `metrics`:

        - `fd`: Frechet distance to the test split.
        - `kid`: kernel distance to n images of the test split.
        - `precision`, `recall`, `density`, `coverage`: against n images of the test split.
        - `label_accuracy`, `worst_class_accuracy`: share of images whose class the classifier sees in them.
        - `within_class_variance`: variance of features over that of the test split, mean over classes; 1 = as real,
          0 = one image a class.
        - `nearest_train`: mean distance of 1,000 of them to the nearest training image.
        - `copied`: share of these that are nearer to a training image than 99 % of held-out images are, each distance
          over that from there to the nearest other training image: about 0.01 for new images, 1 for copies.
        """
        n = self.datamodule.n_classes
        confusion = (images.labels * n + images.predicted).bincount(minlength=n**2).view(n, n)
        accuracy = scores.class_accuracy(confusion)
        variance = scores.class_variance(images.features, images.labels, n) / self._variance
        nearest = self._nearest(images.features[:N_NEAREST])
        real_radii, real_kernel = self._reference_alone
        metrics = {
            "fd": scores.frechet_distance(scores.fit_gaussian(images.features), self._gaussian),
            "kid": scores.kernel_distance(images.features, self._reference, real_kernel),
            "label_accuracy": float(confusion.trace() / confusion.sum()),
            "worst_class_accuracy": float(accuracy[~accuracy.isnan()].min()),
            **scores.precision_recall_density_coverage(self._reference, images.features, real_radii),
            "within_class_variance": float(variance.nanmean()),
            "nearest_train": float(nearest.distance.mean()),
            "copied": copied(nearest, self._real_nearest),
        }
        return Quality(metrics, confusion, variance, nearest)

    def alarms(self, quality: Quality) -> dict[str, str]:
        """What is wrong with generated images: see `src.metrics.alarms`."""
        return alarms(quality, self.floor, self.datamodule.class_names)

    @cached_property
    def _cas_images(self) -> Tensor:
        labels = self.datamodule.references["train"].labels
        chosen = choice(len(labels), N_CAS)
        return chosen[_within(labels[chosen], self._counts)]

    @property
    def cas_labels(self) -> Tensor:
        """The classes of the images to draw for `cas`, int64 [M]: those of training images."""
        return self.datamodule.references["train"].labels[self._cas_images]

    def cas(self, pixels: Tensor) -> float:
        """The accuracy on real test images of a classifier that has seen nothing but generated ones.

        Ravuri & Vinyals, Classification accuracy score for conditional generative models, 2019; GAN-train, Shmelkov et
        al. 2018.

        Args:
            pixels: an image uint8 [M, C, H, W] of each of `cas_labels`.
        """
        test = self.datamodule.references["test"]
        what = self.datamodule.n_classes, test.images.shape[-2], self._device, "classifier of generated images"
        return embed_served(train_classifier(pixels, self.cas_labels, *what), test).accuracy

    @cached_property
    def cas_floor(self) -> float:
        """The same after as many real training images."""
        train = self.datamodule.references["train"]
        if len(self._cas_images) == min(N_CAS, len(train)):
            return self.real["test"].accuracy  # the feature net has seen them
        return self.cas(to_pixels(train.__getitems__(self._cas_images.tolist())[0]))


def in_parts(labels: Tensor, seed: int) -> Iterator[tuple[slice, torch.Generator]]:
    """Where each part of labels [N] lies, and the source of its noise.

    Each part has a source of its own: its noise does not depend on how many processes or verbs draw the others.
    """
    for start in range(0, len(labels), DRAW_BATCH):
        yield slice(start, start + DRAW_BATCH), torch.Generator().manual_seed(seed + start)


def choice(n_all: int, n: int, seed: int = 0) -> Tensor:
    """The indices of `n` out of `n_all` images at random, without repetition; always the same ones."""
    return torch.randperm(n_all, generator=torch.Generator().manual_seed(seed))[:n]


def _within(labels: Tensor, counts: Tensor | None) -> Tensor:
    """The indices of labels [N] in their order, of each class no more than its count."""
    if counts is None:
        return torch.arange(len(labels))
    kept = [(labels == label).nonzero().flatten()[:n] for label, n in enumerate(counts.tolist())]
    return torch.cat(kept).sort().values
