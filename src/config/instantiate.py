"""Builds the parts of the configuration, with errors a person can act on."""

import inspect
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin

import hydra
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loggers import Logger

from src.config.explain import RENAMED, begins_with_argument, explain_os, explain_part
from src.config.types import alternatives, check, element_type, hints_of, takers
from src.errors import UserError

# What each part of a run must be, and each of a group.
KINDS = {"model": LightningModule, "datamodule": LightningDataModule, "trainer": Trainer}
KINDS_IN = {"callbacks": Callback, "logger": Logger}


def instantiate(config: DictConfig, key: str, **kwargs: Any) -> Any:
    """Builds `config`'s part `key`, such as `trainer` or `callbacks.sample_grid`, with plain Python values.

    Args:
        **kwargs: further arguments, ready-made.

    Raises:
        UserError: the part is missing, refused its arguments, its `_target_` cannot be imported, or what that makes is
            not what belongs there.
    """
    kind = KINDS.get(key) or KINDS_IN.get(key.rpartition(".")[0], Any)
    return _build(_checked(config, key), key, kind, kwargs)


def _build(part: Any, key: str, hint: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Builds what plain values describe: calls each `_target_` with its arguments, which are built first.

    Hydra would do the same at once, but then nobody could look at a part before its owner has taken it.
    """
    if isinstance(part, list):
        return [_build(value, f"{key}.{i}", element_type(hint)) for i, value in enumerate(part)]
    if not isinstance(part, dict):
        return part
    if "_target_" not in part:
        return {name: _build(value, f"{key}.{name}", element_type(hint)) for name, value in part.items()}
    try:
        target = hydra.utils.instantiate({"_target_": part["_target_"], "_partial_": True})
        hints = hints_of(target.func)
        built = {name: _build(value, f"{key}.{name}", hints.get(name, Any)) for name, value in part.items()}
        arguments = {name: value for name, value in built.items() if not name.startswith("_")}
        call = partial(target, *built.get("_args_", ()), **arguments, **(kwargs or {}))
        made = call if part.get("_partial_") else call()
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain_part(key, error, part)) from error
    _check_made(made, hint, key, part["_target_"])
    return made


def instantiate_each(config: DictConfig, group: str) -> Iterator[Any]:
    """Builds the entries of a group such as `callbacks`, one by one; an entry set to null is left out.

    All are checked at once: a mistake in one is told before another is built, or lacks a package.
    """
    parts: Any = config.get(group) or {}
    # Of several that write checkpoints, Lightning takes the first one's best.
    names = sorted(parts, key=lambda name: name != "model_checkpoint")
    checked = {f"{group}.{name}": _checked(config, f"{group}.{name}") for name in names if parts[name] is not None}
    return (_build(part, key, KINDS_IN[group]) for key, part in checked.items())


def _checked(config: DictConfig, key: str) -> dict[str, Any]:
    """`config`'s part `key` as plain values, which its constructor takes."""
    part = OmegaConf.select(config, key)
    if not isinstance(part, DictConfig) or "_target_" not in part:
        raise UserError(f"{key} must be a part with a _target_, not {part!r}: see configs/{key.partition('.')[0]}/")
    plain: dict[str, Any] = OmegaConf.to_container(part, resolve=True)  # type: ignore[assignment]
    _check_part(plain, key)
    return plain


def _check_part(part: Mapping[str, Any], key: str) -> None:
    """Checks a part's arguments, and those of the parts in it, against the types that its constructor states."""
    for name, value in part.items():
        if f"{key}.{name}" in RENAMED and value is not None:
            raise UserError(f"{key}.{name} cannot be set: {RENAMED[f'{key}.{name}']}")
        if isinstance(value, dict):
            _check_part(value, f"{key}.{name}")
    if "_target_" in part:  # otherwise these are parts by name, such as `model.penalties`
        try:
            target = hydra.utils.get_object(str(part["_target_"]))
        except Exception:  # building the part says what is wrong with it
            return
        check_arguments(target, part, key)


def check_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], key: str, declared: Mapping[str, Any] | None = None
) -> None:
    """Refuses arguments that the function or class of the part `key` does not have, or that are not of its types.

    The types that are `declared` take the place of its own; what has neither is not checked.
    """
    hints = hints_of(target) | dict(declared or {})
    try:
        found = [inspect.signature(taker).parameters for taker in takers(target)]
    except Exception:  # builtins have none
        return
    parameters = {name: each for its in reversed(found) for name, each in its.items()}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in found[-1].values())
    for name, value in arguments.items():
        if name not in parameters:
            if open_ended or name.startswith("_"):  # Hydra's own, such as _target_
                continue
            others = ", ".join(each for each in parameters if each not in ("self", "kwargs"))
            raise UserError(f"{key}.{name} is not an option of {target.__name__}: remove it, or choose one of {others}")
        default = parameters[name].default  # need not be of the type that it states
        if type(value) is not type(default) or value != default:  # true is not 1
            check(f"{key}.{name}", value, hints.get(name, Any))


def _check_made(made: Any, hint: Any, key: str, target: str) -> None:
    """Refuses what a `_target_` has made where it is not what `hint` asks for; in doubt it is."""
    called = made.func if isinstance(made, partial) else made
    called = getattr(called, "func", called)  # Hydra's own partial
    kind = called if isinstance(called, type) else type(made)  # the class itself, or that of what is made

    def fits(option: Any) -> bool:
        wanted, inner = get_origin(option) or option, get_args(option)
        if wanted is abc.Callable:
            if kind is not type(made) and inner and isinstance(inner[-1], type):
                return issubclass(kind, inner[-1])
            return callable(made)
        if not isinstance(wanted, type) or wanted in (Any, object):
            return True
        if isinstance(made, type):
            return wanted is type
        try:
            return isinstance(made, (int, float) if wanted is float else wanted)
        except TypeError:  # a protocol that cannot be asked
            return True

    options = alternatives(hint)
    if made is not None and any(map(fits, options)):
        return
    needed = " or ".join(_in_words(each) for each in options if each is not NoneType)
    if isinstance(made, partial) and all(get_origin(each) is not abc.Callable for each in options):
        raise UserError(f"{key}._partial_ is true, but {needed} is needed: set it to false")
    shown = "nothing" if made is None else f"the class {kind.__name__}" if made is kind else _in_words(kind)
    raise UserError(f"{key}._target_={target} makes {shown}, but {needed} is needed: choose another class")


def _in_words(hint: Any) -> str:
    """What a type asks for, by its own name and its article."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is abc.Callable:
        return f"what makes {_in_words(inner[-1])}" if inner and isinstance(inner[-1], type) else "something to call"
    if not isinstance(kind, type) or kind is Any:
        return "something"
    return f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}"


@contextmanager
def blamed_on(key: str, folder: str) -> Iterator[None]:
    """Puts the part's key in front of the ValueErrors and OSErrors that it raises at work, as UserErrors.

    The key `folder` says where its files are.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{key}{'.' if begins_with_argument(str(error)) else ': '}{error}") from error
    except OSError as error:
        raise UserError(f"{key}: {explain_os(error, f'choose another folder with {folder}=DIR')}") from error
