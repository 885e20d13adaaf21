"""Which class a label means: `labels` of the verbs and of the service."""

import difflib
import re
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

SHOWN = 40  # characters of a label or a name in a message


def resolve(label: Any, class_names: Sequence[str]) -> int:
    """The class that a label means, from 0 to N - 1.

    Args:
        label: a class's name, in any Unicode form; a class's number from 0, as a number or as text; or `#NUMBER`, which
            always is the class of that number.
        class_names: N of them, in the order of their numbers.

    Raises:
        ValueError: there is no such class, or a number is the name of one class and the number of another. Its text is
            a sentence without the key.
    """
    if isinstance(label, str):
        for form in (str, lambda text: normalize("NFC", text)):
            found = [i for i, name in enumerate(class_names) if form(name) == form(label)]
            if found:
                return found[0]
        if (number := re.fullmatch(r"#(\d{1,9})", label, re.ASCII)) and int(number[1]) < len(class_names):
            return int(number[1])
        digits = without_zeros(label)
    else:
        digits = str(label) if isinstance(label, int) and not isinstance(label, bool) else None
    if digits is None:
        raise ValueError(no_class(label, class_names))

    # 1 is the name of "1" and of "01", but rather of the former.
    named = [i for i, name in enumerate(class_names) if name == digits] or [
        i for i, name in enumerate(class_names) if without_zeros(name) == digits
    ]
    numbered = [i for i in range(len(class_names)) if str(i) == digits]
    meant = list(dict.fromkeys(named + numbered))
    if not meant:
        raise ValueError(no_class(label, class_names))
    if len(meant) > 1:
        each = [f"#{i} for the class named {shown(class_names[i])}" for i in meant]
        raise ValueError(f"{shown(label)} could be a class's name or another one's number: use {' or '.join(each)}")
    return meant[0]


def no_class(label: Any, class_names: Sequence[str]) -> str:
    """A sentence that says so, and what there is."""
    last = len(class_names) - 1
    numbers = f"a number from 0 to {last}"
    if list(class_names) == [str(i) for i in range(len(class_names))]:
        return f"there is no class {shown(label)}: use {numbers}"
    if any(map(without_zeros, class_names)):
        numbers = f"its number, #0 to #{last}"
    by_form = {normalize("NFC", name).casefold(): name for name in class_names}
    close = difflib.get_close_matches(normalize("NFC", str(label)[:SHOWN]).casefold(), by_form, 1)
    example = by_form[close[0]] if close else class_names[last]
    return f"there is no class {shown(label)}: use a name such as {shown(example)}, or {numbers}"


def without_zeros(text: str) -> str | None:
    """A whole number as it is usually written; None: the text is none."""
    number = re.fullmatch(r"(-?)0*(\d+)", text, re.ASCII)
    return number[1] + number[2] if number else None


def shown(value: Any) -> str:
    """What was given, cut short."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
