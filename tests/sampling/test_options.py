"""Labels as they are typed: a shell does not tell numbers from text."""

from types import SimpleNamespace
from typing import Any

import pytest

from src.errors import UserError
from src.sampling.options import wanted_labels

TWELVE = [str(i) for i in range(1, 13)]


def typed(labels: Any, names: list[str]) -> list[int]:
    about = SimpleNamespace(reads_text=False, class_names=names, n_classes=len(names))
    return wanted_labels(labels, about).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "names", "meant"),
    [
        ([1], TWELVE, [0]),  # a class's name
        ([1, "12", "#1"], TWELVE, [0, 11, 1]),
        (1, [f"{i:02}" for i in range(1, 13)], [0]),
        ("01", [f"{i:02}" for i in range(1, 13)], [0]),
        ([0, -1], ["-1", "0", "1"], [1, 0]),
        ([10, 2], ["2", "10", "100"], [1, 0]),
        (5, [str(i) for i in range(10)], [5]),
        ([2, "cat"], ["ant", "bee", "cat"], [2, 2]),
        (None, TWELVE, list(range(12))),
    ],
)
def test_where_all_names_are_numbers_a_number_is_a_name(labels: Any, names: list[str], meant: list[int]) -> None:
    assert typed(labels, names) == meant


def test_what_could_be_two_classes_or_none_is_asked_about() -> None:
    with pytest.raises(UserError, match=r"^labels: 1 could mean several classes: use #2 for .*or #1"):
        typed([1], ["ant", "bee", "1"])
    with pytest.raises(
        UserError, match=r"^labels: there is no class 0: use a name such as '.*', or its number, #0 to #11"
    ):
        typed([0], TWELVE)
