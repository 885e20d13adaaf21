"""Build a part of the configuration, with errors a person can act on."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from src.utils.errors import RENAMED, UserError, begins_with_argument, explain_instantiation, explain_os

LISTS = (list, tuple, Sequence, Iterable, Collection)
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "null",
    **dict.fromkeys(LISTS, "a list"),
}
PART = "a part with a _target_"


def instantiate(config: DictConfig, key: str, **kwargs: Any) -> Any:
    """Builds `config`'s part `key`, such as `trainer` or `callbacks.sample_grid`, with plain Python values.

    Raises:
        UserError: the part is missing, refused its arguments, or its `_target_` cannot be imported.
    """
    part = OmegaConf.select(config, key)
    if not isinstance(part, DictConfig) or "_target_" not in part:
        raise UserError(f"{key} must be a part with a _target_, not {part!r}: see configs/{key.partition('.')[0]}/")
    check_part(OmegaConf.to_container(part, resolve=True), key)  # type: ignore[arg-type]
    try:
        return hydra.utils.instantiate(part, _convert_="all", **kwargs)
    except InstantiationException as error:
        raise UserError(explain_instantiation(error, config)) from error


def instantiate_each(config: DictConfig, group: str) -> Iterator[Any]:
    """Builds the entries of a group such as `callbacks`, one by one; an entry set to null is left out."""
    parts: Any = config.get(group) or {}
    return (instantiate(config, f"{group}.{name}") for name in parts if parts[name] is not None)


@contextmanager
def blamed_on(key: str, folder: str) -> Iterator[None]:
    """Turns what a part objects to at work into a sentence with the part's key in front.

    Args:
        key: the part.
        folder: the key that says where its files are.

    Raises:
        UserError: the block raised ValueError or OSError.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{key}{'.' if begins_with_argument(str(error)) else ': '}{error}") from error
    except OSError as error:
        raise UserError(f"{key}: {explain_os(error, f'choose another folder with {folder}=DIR')}") from error


def check_part(part: Mapping[str, Any], key: str) -> None:
    """Checks a part's arguments, and those of the parts in it, against the types that its constructor states.

    Raises:
        UserError: names the argument and what it may be.
    """
    for name, value in part.items():
        if f"{key}.{name}" in RENAMED and value is not None:
            raise UserError(f"{key}.{name} cannot be set: {RENAMED[f'{key}.{name}']}")
        if isinstance(value, dict):
            check_part(value, f"{key}.{name}")
    if "_target_" not in part:  # parts by name, such as `model.penalties`
        return
    try:
        target = hydra.utils.get_object(str(part["_target_"]))
    except Exception:  # building the part says what is wrong with it
        return
    try:
        check_types(target, part)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error


def check_types(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that a function does not have, and text where it wants a number and the like.

    Args:
        target: a function or class; values that it does not annotate are not checked.
        arguments: plain values; a dict stands for a part yet to be built.

    Raises:
        ValueError: begins with the argument's name.
    """
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    except Exception:  # not every library's annotations can be resolved, and builtins have none
        return
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in arguments.items():
        if name not in parameters:
            if open_ended or name.startswith("_"):  # Hydra's own, such as _target_
                continue
            others = ", ".join(each for each in parameters if each != "self")
            raise ValueError(f"{name} is not an option of {target.__name__}: remove it, or choose one of {others}")
        if name in hints and value != parameters[name].default and not fits(value, hints[name]):
            shown = "null" if value is None else repr(value)
            raise ValueError(f"{name} must be {in_words(hints[name])}, not {shown}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value, as YAML has it, can be what a type hint asks for; in doubt it can."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Literal:
        return value in inner
    if kind in (None, NoneType) or value is None:
        return value is None and kind in (None, NoneType, Any, object)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if kind is int else (int, float))
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, dict) or kind in (Any, object) or not isinstance(kind, type):
        return True
    if isinstance(value, list):
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(fits, value, inner))
        return kind in LISTS and (not inner or all(fits(each, inner[0]) for each in value))
    # A number or text can be a path or an option's name, but no network and no list.
    return issubclass(kind, Enum) or (issubclass(kind, Path) and isinstance(value, (str, Path)))


def in_words(hint: Any) -> str:
    """A type hint for people who write YAML."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        words = dict.fromkeys(in_words(each) for each in inner if not (each is int and float in inner))
        if len(words.keys() - {PART, "null"}) > 0:
            words.pop(PART, None)
        return " or ".join(words)
    if kind is Literal:
        return "one of " + ", ".join(str(each) for each in inner)
    if kind in LISTS and inner:
        length = f" of {len(inner)}" if kind is tuple and Ellipsis not in inner else ""
        return f"a list{length}, each {in_words(inner[0])}"
    return WORDS.get(kind, PART)
