"""A picture of images beside the training images that are most like them."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from src.metrics.copies import N_NEAREST, Nearest
from src.metrics.evaluator import Evaluator
from src.metrics.scores import DISTANCE_BLOCK
from src.pictures.confusion import FONT, INK, PAPER, drawable, fitted
from src.pictures.pixels import to_pixels

N_NEIGHBOURS = 4  # training images beside an image
N_SHOWN = 10  # rows of a panel
CELL, GAP, LEFT, TOP = 58, 12, 92, 84  # pixels
GREY = (110, 110, 110)


def nearest_neighbours(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each of features [N, d] the k nearest of [M, d], nearest first: Euclidean distances and indices, [N, k].

    The distance of equal features is exactly 0, unlike that of `torch.cdist`.
    """
    found = torch.cat([torch.cdist(block, b).topk(k, largest=False).indices for block in a.split(DISTANCE_BLOCK)])
    distance, order = (a[:, None] - b[found]).norm(dim=2).sort(dim=1)
    return distance, found.gather(1, order)


def draw_neighbours(pixels: Tensor, features: Tensor, nearest: Nearest, evaluator: Evaluator) -> np.ndarray:
    """Three panels side by side as uint8 [H, W, 3]; each row is an image and the training images nearest to it.

    The images nearest to a training image, the first image of each class, and the nearest of the held-out images.

    Args:
        pixels: uint8 [N, C, H, W], of the first 1,000 of the evaluator's labels.
        features: theirs, [N, d].
        nearest: how near they are to training images.
    """
    train, real = evaluator.real["train"].features, evaluator.real["val"].features
    real, real_nearest = real[evaluator.held_out[:N_NEAREST]], evaluator.floor.nearest
    datamodule, labels = evaluator.datamodule, evaluator.labels[:N_NEAREST].tolist()
    names, n = drawable(datamodule.class_names), len(labels)
    first = [labels.index(label) for label in sorted(set(labels))][:N_SHOWN]
    closest, real_closest = (near.closeness.argsort()[:N_SHOWN].tolist() for near in (nearest, real_nearest))
    held_out = to_pixels(datamodule.references["val"].__getitems__(evaluator.held_out[:N_NEAREST].tolist())[0])
    panels = [  # a title of up to four lines, images, their features and closeness, and which images are rows
        (
            f"The {len(closest)} of {n:,} images that are nearest\nto a training image, and beside them the nearest."
            "\nNumber: distance to the first of these, over the\ndistance from there to another training image",
            pixels,
            features,
            nearest.closeness,
            closest,
        ),
        ("The first image of each class,\nnot chosen", pixels, features, nearest.closeness, first),
        (
            f"For comparison: the {len(real_closest)} of {n:,} real images,\nheld out from training, that are nearest",
            held_out,
            real,
            real_nearest.closeness,
            real_closest,
        ),
    ]
    width = LEFT + CELL + GAP + N_NEIGHBOURS * CELL + 2 * GAP
    height = TOP + max(len(rows) for *_, rows in panels) * CELL + GAP
    picture = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT)
    for number, (title, images, its_features, closeness, rows) in enumerate(panels):
        left = GAP + width * number
        draw.multiline_text((left, 6), title, INK, font)
        _, indices = nearest_neighbours(its_features[rows], train, N_NEIGHBOURS)
        for row, i in enumerate(rows):
            top = TOP + CELL * row
            name = fitted(names[labels[i]], LEFT - 12, draw, font)
            draw.text((left, top + CELL // 2 - 9), name, INK, font, anchor="lm")
            draw.text((left, top + CELL // 2 + 9), f"{closeness[i]:.2f}", GREY, font, anchor="lm")
            picture.paste(enlarged(images[i]), (left + LEFT, top))
            neighbours, _ = datamodule.references["train"].__getitems__(indices[row].tolist())
            for k, neighbour in enumerate(to_pixels(neighbours)):
                picture.paste(enlarged(neighbour), (left + LEFT + CELL + GAP + k * CELL, top))
    return np.asarray(picture)


def enlarged(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W] as large as its cell, pixel by pixel where it is smaller."""
    side = CELL - 2
    colour = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy().copy())
    return colour.resize((side, side), Image.Resampling.BOX if colour.height < side else Image.Resampling.LANCZOS)
