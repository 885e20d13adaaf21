"""Image sizes that networks of halvings and doublings can have."""


def halvings(img_size: int) -> int:
    """How often an image is halved until 4 to 7 pixels are left.

    Raises:
        ValueError: that is not possible.
    """
    size, n = img_size, 0
    while size > 7 and size % 2 == 0:
        size, n = size // 2, n + 1
    if n == 0 or not 4 <= size <= 7:
        raise ValueError(f"img_size must be 4 to 7 pixels doubled several times, such as 28, 32 or 64, not {img_size}")
    return n
