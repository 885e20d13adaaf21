"""Failures that only GANs have."""

from collections.abc import Mapping

D_SATURATED = 0.995  # share of pairs of a real and a generated image that D puts in the right order


def gan_alarms(metrics: Mapping[str, float]) -> dict[str, str]:
    """`d` where D tells nearly all pairs of real and generated images apart, in the form of `ImageModel.alarms`."""
    share = metrics.get("d_pair_accuracy", 0.0)
    if share < D_SATURATED:
        return {}
    return {
        "d": f"D is saturated (it tells {share:.1%} of pairs of real and generated images apart, so that G learns"
        " little from it)"
    }
