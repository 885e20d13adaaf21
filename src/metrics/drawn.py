"""What is drawn to be measured: everybody's numbers are of the same noise, whether a run or a command measures them."""

import torch
from torch import Tensor

from src.metrics.feature_net import accuracy_of, train_classifier
from src.metrics.references import LabelledImages, embed_served

DRAW_BATCH = 250  # images from one generator
# The tested checkpoint was chosen by a validation's images: the test draws others, and CAS others again.
SEEDS = {"val": 0, "test": 1_000_000, "cas": 2_000_000}
N_CAS = 50_000


def cas_choice(n_train: int) -> Tensor:
    """The indices of the training images whose labels the classification accuracy score's images are drawn with."""
    return torch.randperm(n_train, generator=torch.Generator().manual_seed(0))[:N_CAS]


def classification_accuracy_score(
    pixels: Tensor, labels: Tensor, n_classes: int, test: LabelledImages, device: torch.device
) -> float:
    """The accuracy on real test images of a classifier that has seen nothing but the given ones.

    Ravuri & Vinyals, Classification accuracy score for conditional generative models, 2019; GAN-train, Shmelkov et al.
    2018.

    Args:
        pixels: generated images uint8 [N, C, H, W].
        labels: int64 [N].
        n_classes: number of classes.
        test: real images, which are served as they are to the model.
        device: where to train.
    """
    size = test.images.shape[-2]
    net = train_classifier(pixels, labels, n_classes, size, device, "classifier of generated images")
    return accuracy_of(embed_served(net, test))
