"""Which class a label means, and what a class's folder is called."""

import difflib
import functools
import json
import re
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from src.config.text import safe_name, without_zeros

SHOWN = 40  # characters of a label or a name in a message


def resolve(label: Any, class_names: Sequence[str]) -> int:
    """The class that a label means, from 0 to N - 1.

    Args:
        label: a class's name, in any Unicode form; a class's number from 0, as a number or as text; or `#NUMBER`, which
            is the class of that number unless another one is named so. Where all names are numbers, a number is a name.
        class_names: N of them, in the order of their numbers.

    Raises:
        ValueError: there is no such class, or a number could mean several. Its text is a sentence without the key.
    """
    by_name, by_form, by_number = tables(tuple(class_names))
    digits = None
    if isinstance(label, str):
        found = by_name.get(label, by_form.get(normalize("NFC", label)))
        if found is not None:
            return found
        if (number := re.fullmatch(r"#(\d{1,9})", label, re.ASCII)) and int(number[1]) < len(class_names):
            return int(number[1])
        digits = without_zeros(label)
    elif isinstance(label, int) and not isinstance(label, bool):
        digits = str(label)
    if digits is None:
        raise ValueError(no_class(label, class_names))
    # 1 is the name of "1" and of "01", but rather of the former.
    meant = [by_name[digits]] if digits in by_name else by_number.get(digits, [])
    if not are_numbers(class_names) and digits.isdigit() and len(digits) < 10 and int(digits) < len(class_names):
        meant = list(dict.fromkeys([*meant, int(digits)]))
    if not meant:
        raise ValueError(no_class(label, class_names))
    if len(meant) > 1:
        # A class may be named like another one's #NUMBER.
        exact = [repr(class_names[i]) if f"#{i}" in by_name else f"#{i}" for i in meant]
        each = [f"{text} for the class named {shown(class_names[i])}" for i, text in zip(meant, exact, strict=True)]
        raise ValueError(f"{shown(label)} could mean several classes: use {' or '.join(each)}")
    return meant[0]


def are_numbers(class_names: Sequence[str]) -> bool:
    """Whether all classes have a whole number for a name."""
    return sum(map(len, tables(tuple(class_names))[2].values())) == len(class_names)


@functools.lru_cache(8)
def tables(class_names: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int], dict[str, list[int]]]:
    """The classes by their names, by these in one Unicode form, and those of each number that is a name."""
    by_name: dict[str, int] = {}
    by_form: dict[str, int] = {}
    by_number: dict[str, list[int]] = {}
    for i, name in enumerate(class_names):
        by_name.setdefault(name, i)
        by_form.setdefault(normalize("NFC", name), i)
        if (number := without_zeros(name)) is not None:
            by_number.setdefault(number, []).append(i)
    return by_name, by_form, by_number


def no_class(label: Any, class_names: Sequence[str]) -> str:
    """A sentence that says so, and what there is."""
    last = len(class_names) - 1
    numbers = f"a number from 0 to {last}"
    if list(class_names) == [str(i) for i in range(len(class_names))]:
        return f"there is no class {shown(label)}: use {numbers}"
    if tables(tuple(class_names))[2]:
        numbers = f"its number, #0 to #{last}"
    by_form = {normalize("NFC", name).casefold(): name for name in class_names}
    close = difflib.get_close_matches(normalize("NFC", str(label)[:SHOWN]).casefold(), by_form, 1)
    example = by_form[close[0]] if close else class_names[last]
    return f"there is no class {shown(label)}: use a name such as {shown(example)}, or {numbers}"


def shown(value: Any) -> str:
    """What was given, cut short."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class that every system can have: the class's own where it can be.

    No two are the same where case or Unicode forms make no difference.
    """
    safe = [safe_name(name) for name in class_names]
    taken: set[str] = set()
    names = [""] * len(safe)
    # Names that can stay go first.
    for i in sorted(range(len(safe)), key=lambda i: safe[i] != class_names[i]):
        name, n = safe[i], 1
        while (key := normalize("NFC", name.casefold())) in taken:
            n += 1
            name = f"{safe[i]}_{n}"
        taken.add(key)
        names[i] = name
    return names


def metadata_row(file_name: str, text: str, is_prompt: bool = False) -> str:
    """A line of `metadata.jsonl`, Hugging Face's convention for folders of pictures; `datamodule=folder` reads it.

    `text` is the name of the picture's class, or with `is_prompt` what it was drawn from.
    """
    return json.dumps({"file_name": file_name, "text" if is_prompt else "label": text}, ensure_ascii=False) + "\n"
