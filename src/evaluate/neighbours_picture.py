"""Images beside the training images that are most like them."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from src.evaluate.copies import N_NEIGHBOURS
from src.evaluate.measure import Result
from src.metrics.evaluator import N_NEAREST
from src.pictures.confusion import FONT, INK, PAPER, drawable, fitted
from src.pictures.pixels import to_pixels

N_SHOWN = 10  # rows of a panel
CELL, GAP, LEFT, TOP = 58, 12, 92, 84  # pixels
GREY = (110, 110, 110)


def draw_neighbours(result: Result) -> np.ndarray:
    """Three panels side by side as uint8 [H, W, 3]; each row is an image and the training images nearest to it.

    The images nearest to a training image, the first image of each class, and the nearest of the held-out images.
    """
    real, evaluator = result.real, result.real.evaluator
    datamodule, labels = evaluator.datamodule, evaluator.labels[:N_NEAREST].tolist()
    names, n = drawable(datamodule.class_names), len(labels)
    first = [labels.index(label) for label in sorted(set(labels))][:N_SHOWN]
    closest, real_closest = (near.closeness.argsort()[:N_SHOWN].tolist() for near in (result.nearest, real.nearest))
    held_out = to_pixels(datamodule.sets["val"].__getitems__(evaluator.held_out[:N_NEAREST].tolist())[0])
    panels = [  # a title of up to four lines, images, their neighbours, and which images are rows
        (
            f"The {len(closest)} of {n:,} images that are nearest\nto a training image, and beside them the nearest."
            "\nNumber: distance to the first of these, over the\ndistance from there to another training image",
            result.pixels,
            result.nearest,
            closest,
        ),
        ("The first image of each class,\nnot chosen", result.pixels, result.nearest, first),
        (
            f"For comparison: the {len(real_closest)} of {n:,} real images,\nheld out from training, that are nearest",
            held_out,
            real.nearest,
            real_closest,
        ),
    ]
    width = LEFT + CELL + GAP + N_NEIGHBOURS * CELL + 2 * GAP
    height = TOP + max(len(rows) for *_, rows in panels) * CELL + GAP
    picture = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT)
    for number, (title, images, nearest, rows) in enumerate(panels):
        left = GAP + width * number
        draw.multiline_text((left, 6), title, INK, font)
        for row, i in enumerate(rows):
            top = TOP + CELL * row
            name = fitted(names[labels[i]], LEFT - 12, draw, font)
            draw.text((left, top + CELL // 2 - 9), name, INK, font, anchor="lm")
            draw.text((left, top + CELL // 2 + 9), f"{nearest.closeness[i]:.2f}", GREY, font, anchor="lm")
            picture.paste(enlarged(images[i]), (left + LEFT, top))
            neighbours, _ = datamodule.whole_train.__getitems__(nearest.indices[i].tolist())
            for k, neighbour in enumerate(to_pixels(neighbours)):
                picture.paste(enlarged(neighbour), (left + LEFT + CELL + GAP + k * CELL, top))
    return np.asarray(picture)


def enlarged(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W] as large as its cell, pixel by pixel where it is smaller."""
    side = CELL - 2
    colour = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy().copy())
    return colour.resize((side, side), Image.Resampling.BOX if colour.height < side else Image.Resampling.LANCZOS)
