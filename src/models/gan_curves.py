"""What a GAN says of itself: failures that only GANs have, and how a report shows what it logs."""

from collections.abc import Mapping
from typing import Any

D_SATURATED = 0.995  # share of pairs of a real and a generated image that D puts in the right order


def gan_curves(threshold: float | None) -> list[dict[str, Any]]:
    """The curves of a GAN.

    Args:
        threshold: the score above which D takes an image for real; None: the loss has no such score.
    """
    scores: dict[str, Any] = {
        "title": "D's scores",
        "note": "Means in training. The further apart, the better D tells them apart.",
        "unit": "score, no unit",
        "lines": {"train/d_real": "real", "train/d_fake": "generated"},
    }
    if threshold is not None:
        scores["note"] += " Dashed: above it, D takes an image for real."
        scores["levels"] = {"limit": threshold}
    return [
        {
            "title": "Losses",
            "note": "In training. They do not rank samples: look for what runs away or breaks off.",
            "unit": "loss, no unit",
            "lines": {"train/g_loss": "G", "train/d_loss": "D"},
            "compare": True,
        },
        scores,
        {
            "title": "Pairs that D puts in order",
            "note": "A real and a generated image. 50%: D cannot tell; 100%: it has won, and G learns little from it.",
            "unit": "share of pairs",
            "lines": {"val/d_pair_accuracy": "D"},
            "percent": True,
            "compare": True,
        },
        {
            "title": "Gradient norms",
            "note": "Of all weights of a network together, before clipping.",
            "unit": "norm, no unit",
            "lines": {"train/grad_norm_g": "G", "train/grad_norm_d": "D"},
            "log": True,
        },
    ]


def gan_tables(threshold: float | None) -> dict[str, dict[str, Any]]:
    """The confusion matrix of the discriminator; `threshold` as in `gan_curves`.

    G learns nothing from a D that is right about all images; a D that is right about half of them cannot tell any more.
    """
    table = {"title": "Discriminator", "rows": "image is", "columns": "judged", "names": ["real", "generated"]}
    table["caption"] = "what D takes images for"
    if threshold is None:
        table["note"] = "The loss sets no limit between the two: midway between D's mean scores is taken."
    return {"d_confusion": table}


def gan_alarms(metrics: Mapping[str, float]) -> dict[str, str]:
    """`d` where D tells nearly all pairs of real and generated images apart, in the form of `ImageModel.alarms`."""
    share = metrics.get("d_pair_accuracy", 0.0)
    if share < D_SATURATED:
        return {}
    return {
        "d": f"D is saturated (it tells {share:.1%} of pairs of real and generated images apart, so that G learns"
        " little from it)"
    }
