"""The errors that every room raises. This file imports nothing of ours."""


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that names the key and what to type."""


class DivergedError(RuntimeError):
    """Training produced weights that are not finite."""
