"""A label means one class, or is asked about; a class's folder can be made everywhere."""

import re
from typing import Any
from unicodedata import normalize

import pytest

from src.config.text import LONGEST
from src.sampling.labels import folder_names, resolve

DIGITS = [str(i) for i in range(10)]
TWELVE = [str(i) for i in range(1, 13)]
PADDED = [f"{i:02}" for i in range(1, 13)]
CLOTHES = ["T-shirt/top", "Trouser", "Größe/ä b", "Shirt"]


@pytest.mark.parametrize(
    ("label", "names", "meant"),
    [
        (5, DIGITS, 5),
        ("5", DIGITS, 5),
        ("Shirt", CLOTHES, 3),
        (1, CLOTHES, 1),
        ("1", CLOTHES, 1),
        (normalize("NFD", "Größe/ä b"), CLOTHES, 2),
        (normalize("NFC", "Größe/ä b"), [normalize("NFD", name) for name in CLOTHES], 2),
        ("1", TWELVE, 0),  # text that is a name is that name
        ("12", TWELVE, 11),
        (12, TWELVE, 11),
        (1, TWELVE, 0),  # where all names are numbers, a number is a name
        (11, TWELVE, 10),
        ("1", PADDED, 0),
        (1, PADDED, 0),
        (0, ["1", "0"], 1),
        (0, ["-1", "0", "1"], 1),
        ("#1", TWELVE, 1),
        ("#0", TWELVE, 0),
        ("01", PADDED, 0),
        (12, PADDED, 11),
        (1, ["01", "1"], 1),
        (-1, ["-1", "0", "1"], 0),
        ("-01", ["-1", "0", "1"], 0),
        ("#2", ["-1", "0", "1"], 2),
        ("#1", ["#1", "a"], 0),
    ],
)
def test_a_label_means_one_class(label: Any, names: list[str], meant: int) -> None:
    assert resolve(label, names) == meant


@pytest.mark.parametrize(
    ("label", "names", "named", "numbered"),
    [
        (1, ["1", "a"], 0, 1),
        ("1", ["01", "a"], 0, 1),
        ("1", ["01", "001"], 0, 1),
        (3, ["a", "3", "b", "c"], 1, 3),
        (0, ["#1", "0"], 1, 0),
    ],
)
def test_a_number_of_two_classes_is_asked_about_and_what_it_says_helps(
    label: Any, names: list[str], named: int, numbered: int
) -> None:
    with pytest.raises(ValueError, match="could mean several classes: use ") as error:
        resolve(label, names)
    offered = dict(re.findall(r"(#\d+|'[^']+') for the class named '([^']*)'", str(error.value)))
    assert list(offered.values()) == [names[named], names[numbered]]
    assert [resolve(each.strip("'"), names) for each in offered] == [named, numbered]


@pytest.mark.parametrize(
    ("label", "names", "sentence"),
    [
        (10, DIGITS, "there is no class 10: use a number from 0 to 9"),
        (-1, DIGITS, "there is no class -1: use a number from 0 to 9"),
        ("#10", DIGITS, "there is no class '#10': use a number from 0 to 9"),
        (True, DIGITS, "there is no class True: use a number from 0 to 9"),
        (1.0, DIGITS, "there is no class 1.0: use a number from 0 to 9"),
        (None, DIGITS, "there is no class None: use a number from 0 to 9"),
        ("", DIGITS, "there is no class '': use a number from 0 to 9"),
        ("\u0665", DIGITS, "there is no class '\u0665': use a number from 0 to 9"),  # a five in Arabic
        ("t-shirt", CLOTHES, "there is no class 't-shirt': use a name such as 'Shirt', or a number from 0 to 3"),
        ("TROUSERS", CLOTHES, "there is no class 'TROUSERS': use a name such as 'Trouser', or a number from 0 to 3"),
        (0, TWELVE, "there is no class 0: use a name such as '10', or its number, #0 to #11"),
        (2, ["-1", "0", "1"], "there is no class 2: use a name such as '1', or its number, #0 to #2"),
        (13, TWELVE, "there is no class 13: use a name such as '3', or its number, #0 to #11"),
        ("x" * 999, DIGITS, f"there is no class '{'x' * 39}...: use a number from 0 to 9"),
    ],
)
def test_what_is_no_class_is_refused_with_one_that_is(label: Any, names: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        resolve(label, names)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (DIGITS, DIGITS),
        (
            ["Größe ä b", "猫", "naïve (1)", "a.b", "it's #1 & co"],
            ["Größe ä b", "猫", "naïve (1)", "a.b", "it's #1 & co"],
        ),
        (["T-shirt/top", "a\\b", 'x<>:"|?*y'], ["T-shirt_top", "a_b", "x_______y"]),
        (
            ["..", ".", "", " ", "../../etc", "/", ".hidden"],
            ["_", "__2", "__3", "__4", "_.._.._etc", "__5", "_.hidden"],
        ),
        (["a\x00b", "a\nb", "a\u202eb", "a\ud800b"], ["a_b", "a_b_2", "a_b_3", "a_b_4"]),
        (["CON", "nul.txt", "Com1", "lpt9 .x", "console"], ["_CON", "_nul.txt", "_Com1", "_lpt9 .x", "console"]),
        (["dog", "Dog", "DOG."], ["dog", "Dog_2", "DOG_3"]),
        (["a/b", "a_b", "a_b_2"], ["a_b_3", "a_b", "a_b_2"]),  # names that can stay do
        (["trailing. ", " leading"], ["trailing", "leading"]),
        ([normalize("NFD", "ä"), normalize("NFC", "ä")], ["ä_2", "ä"]),
    ],
)
def test_a_class_has_a_folder_on_every_system(names: list[str], folders: list[str]) -> None:
    assert folder_names(names) == folders


def test_long_names_are_cut_between_characters_and_stay_different() -> None:
    first, second = folder_names(["猫" * 200 + "a", "猫" * 200 + "b"])
    assert first == "猫" * (LONGEST // 3) and second == f"{first}_2"
