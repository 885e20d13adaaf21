"""What a declared type allows, and the sentence that is made from it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from torch import nn

from src.config.types import Count, Positive, Share, check
from src.errors import UserError

WEIGHT = Annotated[float | None, Field(gt=0, description="a positive number, or null for none")]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, Count),
        (2**63 - 1, int),
        (1, float),  # YAML writes 1 for 1.0
        (0, Share),
        (None, WEIGHT),
        ("raw", Literal["ema", "raw"]),
        ([1, 2.5], tuple[float, float]),
        ([[1], []], Sequence[list[Count]]),
        ("a/b", str | Path | None),
        ({"_target_": "builtins.int"}, Count),  # is checked when it is made
        ({"r1": {"_target_": "x"}, "r2": None}, Mapping[str, nn.Module | None]),
        (object(), Any),
    ],
)
def test_a_value_that_fits(value: Any, hint: Any) -> None:
    check("key", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (0, Count, "key must be a whole number of at least 1, not 0"),
        (True, int, "key must be a whole number, not True"),
        (2**63, Count, "key must be a whole number of at least 1, not 9223372036854775808"),
        (1.0, int | None, "key must be a whole number or null, not 1.0"),
        (float("nan"), Share, "key must be a number from 0 to 1, not nan"),
        (0, Positive, "key must be a positive number, not 0"),
        (0, WEIGHT, "key must be a positive number, or null for none, not 0"),
        (0.5, Annotated[float, Field(ge=0, lt=0.5)], "key must be a number from 0 to below 0.5, not 0.5"),
        (0, Annotated[float, Field(gt=0, le=1)], "key must be a number above 0 and up to 1, not 0"),
        (None, bool, "key must be true or false, not null"),
        (1, str | Path, "key must be text or a path, not 1"),
        ("x", Literal["ema", "raw"], "key must be ema or raw, not 'x'"),
        ("x", Literal["a", "b", "c"], "key must be one of a, b, c, not 'x'"),
        ([1.0], tuple[float, float], "key must be a list of 2, each a number, not [1.0]"),
        ([0], list[Count], "key must be a list, each a whole number of at least 1, not [0]"),
        ("x", nn.Module | None, "key must be a part with a _target_ or null, not 'x'"),
        (5, Callable[[int], int], "key must be a part with a _target_, not 5"),
        ({"r1": 5}, Mapping[str, nn.Module], "key.r1 must be a part with a _target_, not 5"),
    ],
)
def test_a_value_that_does_not_fit(value: Any, hint: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        check("key", value, hint)
    assert str(error.value) == says
