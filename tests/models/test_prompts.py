import random
import string

import numpy as np
import pytest

from src.models.prompts import LENGTH, MOST, Prompts, check_prompts, clean, misspell, to_codes

DIGITS = [["seven", "7"], ["nine"]]


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("  A Nine!!", "a nine"),
        ("T-shirt/top", "t shirt top"),
        ("STRASSE straße", "strasse strasse"),
        ("A\u0308pfel \uff17", "äpfel 7"),  # one letter of two code points, a wide digit
        ("\n\t", ""),
        ("七", "七"),
    ],
)
def test_clean(prompt: str, seen: str) -> None:
    assert clean(prompt) == seen
    codes = to_codes([prompt])
    assert codes.shape == (1, LENGTH) and codes.dtype == np.int64
    assert "".join(map(chr, codes[0][codes[0] > 0])) == seen


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "no letter and no digit"), ("?!", "no letter and no digit"), ("x" * 200, "200 characters.*at most 128")],
)
def test_refused_prompts(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_prompts(["fine", prompt])


def test_a_text_of_any_length_is_cut_before_it_is_cleaned() -> None:
    """Combining marks are sorted by a method that would take hours for so many."""
    marks = "a nine" + "\u0301\u0316" * 500_000
    with pytest.raises(ValueError, match=f"has 1000006 characters, and a prompt has at most {LENGTH}"):
        check_prompts([marks])
    assert to_codes([marks, "a nine"])[:, :5].tolist() == [[*map(ord, "a nin")]] * 2
    check_prompts(["!" * (MOST - 6) + "a nine"])


def test_training_never_sees_held_out_phrasings() -> None:
    prompts = Prompts(DIGITS, ["a {}", "the digit {}"], ["look at this {}"], fillers=0.5, typos=0.0)
    drawn = prompts.draw([0, 1] * 500, random.Random(0))
    assert not any("look at this" in each for each in drawn)
    assert all("seven" in a or "7" in a for a in drawn[::2]) and all("nine" in b for b in drawn[1::2])
    with_more = [each for each in drawn[1::2] if each not in ("a nine", "the digit nine")]
    assert 0.4 < len(with_more) / 500 < 0.57  # some of the prompts with fillers get none
    held_out = {prompts.phrase(1, "held_out", random.Random(i)) for i in range(20)}
    assert held_out == {"look at this nine"}


def test_braces_in_a_template_mean_themselves() -> None:
    prompts = Prompts(DIGITS, ["{x} a {} {0}"])
    assert prompts.phrase(1, "seen", random.Random(0)) == "{x} a nine {0}"


def test_typos() -> None:
    prompts = Prompts(DIGITS, ["{}"], fillers=0.0, typos=0.4)
    drawn = prompts.draw([1] * 1000, random.Random(0))
    assert 0.3 < np.mean([each != "nine" for each in drawn]) < 0.45
    assert prompts.draw([1, 0], random.Random(3)) == prompts.draw([1, 0], random.Random(3))


def test_misspell_changes_one_place() -> None:
    rng = random.Random(0)
    for _ in range(200):
        wrong = misspell("seven", rng)
        assert abs(len(wrong) - 5) <= 1 and set(wrong) <= set(string.ascii_lowercase)
        start = next((i for i, (a, b) in enumerate(zip(wrong, "seven", strict=False)) if a != b), 4)
        assert wrong.endswith("seven"[start + 2 :])
    assert misspell("7", rng) == "7"


def test_names_do_not_turn_up_as_fillers() -> None:
    prompts = Prompts(["more", "nice"], ["{}"], fillers=1.0, typos=0.0)
    assert not any("nice" in each.split() for each in prompts.draw([0] * 300, random.Random(0)))
    assert prompts.canonical() == ["more", "nice"]


def test_captions_get_fillers_and_typos_and_none_of_each_others_words() -> None:
    captions = ["a red ball", "a blue ball", "", "x" * LENGTH]
    prompts = Prompts([], [], fillers=0.5, typos=0.3)
    rng = random.Random(0)
    varied = [prompts.vary(captions, rng) for _ in range(500)]
    red, blue, empty, longest = zip(*varied, strict=True)
    assert 0.25 < np.mean([each == "a red ball" for each in red]) < 0.5
    assert sum("red ball" in each for each in red) > 400
    assert not any("blue" in each.split() for each in red) and any("green" in each.split() for each in red)
    assert set(empty) == {""} and max(len(each) for each in (*red, *blue, *longest)) <= LENGTH
    plain = Prompts([], [], fillers=0.0, typos=0.0)
    assert plain.vary(captions, rng) == captions


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"names": DIGITS, "templates": ["a digit"]}, "once"),
        ({"names": [["one"], []]}, "a name for each class"),
        ({"names": ["?"]}, "no letter"),
    ],
)
def test_refused_arguments(arguments: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prompts(**arguments)
