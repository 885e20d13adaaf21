"""Functions that torch compiles."""

from collections.abc import Callable
from typing import Any

import torch

from src.config.explain import telling
from src.errors import UserError


class Compiled:
    """A function as torch compiles it, when it is first called.

    Args:
        function: takes tensors of the same shapes each time.
        key: the option that asks for it, for messages.
    """

    def __init__(self, function: Callable[..., Any], key: str) -> None:
        self._run = torch.compile(function, dynamic=False)
        self._key = key
        self._works = False

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns.

        Raises:
            UserError: torch cannot compile it.
        """
        if self._works:
            return self._run(*arguments)
        try:
            found = self._run(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds, and long
            raise UserError(
                f"{self._key}=true cannot be had, as torch.compile fails ({telling(str(error))}): install a C++"
                f" compiler such as g++, or type {self._key}=false"
            ) from error
        self._works = True
        return found
