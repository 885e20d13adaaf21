"""What a declared type says of a value that somebody typed: whether it can be, and in words what it must be.

`gamma: Annotated[float, Field(gt=0)]` states a range where the argument is declared. A `description` takes the place of
the words that are made from the type: it completes the sentence `gamma must be ...`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from src.errors import UserError

Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, description="a positive number")]
Share = Annotated[float, Field(ge=0, le=1)]

LISTS = (list, tuple, Sequence, Iterable, Collection)
PART = "a part with a _target_"
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "null",
    **dict.fromkeys(LISTS, "a list"),
}
RANGES = {
    ("ge",): " of at least {}",
    ("gt",): " above {}",
    ("ge", "le"): " from {} to {}",
    ("ge", "lt"): " from {} to below {}",
    ("gt", "le"): " above {} and up to {}",
    (): "",
}


def check(name: str, value: Any, hint: Any) -> None:
    """Refuses a plain value of the key `name` that cannot be what a type hint asks for; in doubt it can.

    A part, which has a `_target_`, fits: what it makes is checked when it is made.
    """
    if isinstance(value, dict):
        if "_target_" in value:
            return
        for key, inner in value.items():
            check(f"{name}.{key}", inner, element_type(hint))
    try:
        TypeAdapter(_in_yaml(hint), config=ConfigDict(strict=True, regex_engine="python-re")).validate_python(value)
    except ValidationError as error:
        shown = "null" if value is None else repr(value)
        if value is None and get_origin(hint) is Annotated and not FieldInfo.from_annotation(hint).description:
            hint = get_args(hint)[0]  # whoever gave no number needs its type, not its range
        raise UserError(f"{name} must be {in_words(hint)}, not {shown}") from error


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows, without their ranges; a choice of words counts as text."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return alternatives(inner[0])
    if kind in (Union, UnionType):
        return tuple(each for option in inner for each in alternatives(option))
    return tuple({type(each) for each in inner}) if kind is Literal else (hint,)


def element_type(hint: Any) -> Any:
    """The type of what a list or a mapping by name holds; `Any` where a hint states none."""
    return next((get_args(each)[-1] for each in alternatives(hint) if get_origin(each) in (dict, Mapping, *LISTS)), Any)


def takers(target: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The function that takes a target's arguments; of a class whose constructor has `**kwargs`, also its parents'."""
    if not isinstance(target, type):
        yield target
        return
    for init in (vars(kind)["__init__"] for kind in target.__mro__ if "__init__" in vars(kind)):
        yield init
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature(init).parameters.values()):
            return


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's or a class's arguments, as far as they are known."""
    try:
        found = [get_type_hints(taker, include_extras=True) for taker in takers(target)]
    except Exception:  # not every library's annotations can be resolved, and builtins have none
        return {}
    return {name: hint for hints in reversed(found) for name, hint in hints.items()}


def in_words(hint: Any) -> str:
    """A type hint for people who write YAML."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        field = FieldInfo.from_annotation(hint)
        ends = {
            end: getattr(each, end) for each in field.metadata for end in ("ge", "gt", "le", "lt") if hasattr(each, end)
        }
        return field.description or in_words(inner[0]) + RANGES[tuple(ends)].format(*ends.values())
    if kind in (Union, UnionType):
        words = dict.fromkeys(in_words(each) for each in inner if not (each is int and float in inner))
        if len(words.keys() - {PART, "null"}) > 0:
            words.pop(PART, None)
        return " or ".join(words)
    if kind is Literal:
        choices = [str(each) for each in inner]
        return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    if kind in LISTS and inner:
        length = f" of {len(inner)}" if kind is tuple and Ellipsis not in inner else ""
        return f"a list{length}, each {in_words(inner[0])}"
    return WORDS.get(kind, PART)


def _in_yaml(hint: Any) -> Any:
    """The type that a plain value of YAML must have, where a constructor states `hint`."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return Annotated[_in_yaml(inner[0]), *inner[1:]]
    if kind in (Union, UnionType):
        return Union[tuple(_in_yaml(each) for each in inner)]  # noqa: UP007
    if kind is tuple and inner and Ellipsis not in inner:
        return Annotated[list[_in_yaml(inner[0])], Field(min_length=len(inner), max_length=len(inner))]  # type: ignore[misc]
    if kind in LISTS:
        return list[_in_yaml(inner[0])] if inner else list  # type: ignore[misc]
    if kind is int:
        return Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what NumPy and torch can count with
    if kind in (bool, float, str, NoneType, None, Literal):
        return hint
    if not isinstance(kind, type) or kind in (Any, object) or issubclass(kind, Enum):
        return Any
    return str if issubclass(kind, Path) else dict  # a dict is a part that is yet to be built
