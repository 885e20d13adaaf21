"""Numbers as people type them."""

from typing import Any


def is_whole(value: Any, least: float = float("-inf")) -> bool:
    """Whether `value` is a whole number of at least `least`; true and false are not, though they are ints."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
