"""How a report shows what a GAN logs: plain values, as `ImageModel.curves` and `ImageModel.tables`."""

from typing import Any


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
    """The confusion matrix of the discriminator; `threshold` as in `gan_curves`."""
    table = {"title": "Discriminator", "rows": "image is", "columns": "judged", "names": ["real", "generated"]}
    table["caption"] = "what D takes images for"
    if threshold is None:
        table["note"] = "The loss sets no limit between the two: midway between D's mean scores is taken."
    return {"d_confusion": table}
