"""Translates what people type into Hydra's grammar, so that text and paths are taken literally."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf

from src.config.help import CONFIGS
from src.config.keys import KEYS
from src.config.text import escaped, existing, same
from src.config.types import LISTS, alternatives, element_type, hints_of
from src.errors import UserError

OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][^=\s'\"]*)=(.*)", re.DOTALL)
PLAIN = re.compile(r"(?!(true|false|null|nan|inf)$)[a-z_/][\w/.\-]*", re.ASCII | re.IGNORECASE)
QUOTED = re.compile(r"""\s*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?=,|$)""", re.DOTALL)
REFERENCE = re.compile(r"\\*\$\{(?:(?=(?P<resolver>[\w.]+):.*\})|(?=\.*(?P<key>[\w.]+)\}))?", re.DOTALL)
FLAGS_WITH_VALUES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")
UNREADABLE = object()

_typed: dict[str, str] = {}  # what was typed, by what Hydra was given for it


def as_typed(override: str) -> str:
    """One of Hydra's overrides as it was typed."""
    return _typed.get(override, override)


def in_quotes(text: str) -> str:
    """Text in the quotes of Hydra's grammar, with every special character escaped."""
    return QuotedString(escaped(text), Quote.single).with_quotes()


def in_hydras_grammar(task: str, arguments: Sequence[str]) -> list[str]:
    """Translates the arguments of `python run.py` for the verb `task` into Hydra's grammar.

    The value of a key that holds text or a path becomes a quoted string, unless it is quoted already. In a sweep its
    commas separate values, unless a space follows one of them, or the key takes a path and either the whole exists or
    a part does not.
    """
    sweeps = any(re.fullmatch(r"-m|--multirun|hydra\.mode=.*|hparams_search=.+", each) for each in arguments)
    made = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        match = OVERRIDE.fullmatch(argument)
        if match is None or PLAIN.fullmatch(match[3]) or before in FLAGS_WITH_VALUES:
            made.append(argument)
            continue
        plus, key, value = match.groups()
        if (CONFIGS / key).is_dir():
            names = [path.stem for path in (CONFIGS / key).glob("*.yaml")]
            name = next((name for name in names if same(name, value.removesuffix(".yaml"))), value)
            made.append(argument if value.isascii() else f"{plus}{key}={_quoted(name)}")
            continue
        config = composed(task, arguments)  # a command needs that rarely, and it takes a while
        kinds = alternatives(_type_of(key, task, config))
        parts = _parts(value, kinds) if sweeps else [value]
        read = [_read(part, kinds, config) for part in parts]
        _typed.update({f"{plus}{key}={a}": f"{plus}{key}={b}" for a, b in zip(read, parts, strict=True) if a != b})
        made.append(f"{plus}{key}={','.join(read)}")
    folders = ("work_dir=", "hydra.run.dir=", "hydra.sweep.dir=")  # which Hydra looks up more than once
    if "${" in os.getcwd() or any(each.startswith(folders) and r"\${" in each for each in made):
        raise UserError("${ in a folder's name refers to a key: run in a folder with another name")
    return made


def _type_of(key: str, task: str, config: Mapping[str, Any]) -> Any:
    """The type hint of a key; `Any` where nothing states one."""
    if key in KEYS[task]:
        return KEYS[task][key]
    if key.startswith("hydra."):
        hint: Any = HydraConf
        for name in key.split(".")[1:]:
            hint = get_type_hints(hint).get(name, Any) if isinstance(hint, type) else Any
        return Path if hint is str and key.endswith("dir") else hint
    present = _at(config, key)
    if isinstance(present, (bool, int, float)):
        return type(present)
    owner, _, name = key.rpartition(".")
    part = _at(config, owner)
    if isinstance(part, dict) and "_target_" in part:
        try:
            target = get_object(str(part["_target_"]))
        except Exception:  # what cannot be imported is told later
            return Any
        if hint := hints_of(target).get(name):
            return hint
    return str if isinstance(present, str) and "${" not in present else Any


def _read(value: str, kinds: Sequence[Any], config: Mapping[str, Any]) -> str:
    """A value in Hydra's grammar, of a key that holds one of these types."""
    lists = [kind for kind in kinds if (get_origin(kind) or kind) in LISTS]
    if lists and value.startswith("[") and value.endswith("]") and not (Path in kinds and _exists(value)):
        inner = alternatives(element_type(lists[0]))
        elements = split(value[1:-1]) if value[1:-1].strip() else []
        return f"[{','.join(_read(each.strip(), inner, config) for each in elements)}]"
    parsed = _parse(value)
    if value in ("", "null") or (type(parsed) in kinds and type(parsed) is not str):
        return value
    if isinstance(parsed, QuotedString):  # only what refers to nothing is escaped
        kept = _literal(parsed.text, config, in_quotes=True)
        return value if kept == parsed.text else QuotedString(kept, parsed.quote).with_quotes()
    if not {str, Path} & set(kinds) and (parsed is not UNREADABLE or value.startswith(("[", "{"))):
        return value
    text = value
    if Path in kinds:
        if len(text) > 1 and text[0] == text[-1] == '"':  # how Lightning writes hydra.run.dir for its processes
            text = text[1:-1]
        text = existing(text)
    text = _literal(text, config)
    return value if PLAIN.fullmatch(text) and text == value else _quoted(text)


def _literal(text: str, config: Mapping[str, Any], in_quotes: bool = False) -> str:
    """Escapes each `${` that names no key or resolver; in quotes it may be escaped already."""

    def kept(found: re.Match[str]) -> str:
        resolver, key = found["resolver"], found["key"]
        if resolver:
            refers = resolver in ("hydra", "now") or OmegaConf.has_resolver(resolver)
        else:
            refers = bool(key) and (key in config or _at(config, key) is not None)
        is_escaped = in_quotes and found[0].count("\\") % 2 == 1
        return found[0] if is_escaped or refers else escaped(found[0])

    return REFERENCE.sub(kept, text)


def composed(task: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A verb's configuration with the options and `_target_`s that were typed, as far as it composes; not resolved."""
    chosen = []
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if value and ((CONFIGS / key).is_dir() or key.endswith("._target_") or key == "hydra.searchpath"):
            chosen.append(argument if value.startswith("[") else argument.partition(",")[0])  # the first of a sweep
    if "--config-dir" in arguments[:-1]:
        folder = os.path.abspath(arguments[list(arguments).index("--config-dir") + 1])
        chosen.append(f"hydra.searchpath=[{_quoted(f'file://{folder}')}]")
    return _composed(task, tuple(chosen))


@cache  # many commands in one process choose the same parts
def _composed(task: str, chosen: Sequence[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()  # a command that failed has left it
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in (list(chosen), []):
            with suppress(Exception):  # Hydra will say what is wrong
                return OmegaConf.to_container(compose(task, overrides), resolve=False)  # type: ignore[return-value]
    return {}


def split(text: str) -> list[str]:
    """Splits a list at its commas, except those in quotes and in brackets."""
    parts, start, depth, i = [], 0, 0, 0
    while i <= len(text):
        if i == start and (quoted := QUOTED.match(text, i)):
            i = quoted.end()
        if i == len(text) or (text[i] == "," and depth == 0):
            parts.append(text[start:i])
            start = i + 1
        else:
            depth = max(0, depth + (text[i] in "([{") - (text[i] in ")]}"))
        i += 1
    return parts if depth == 0 else text.split(",")  # a bracket that nothing closes is text


def _parts(value: str, kinds: Sequence[Any]) -> list[str]:
    """The values of a sweep; the value alone where its commas are text, or syntax that Hydra reads well."""
    parsed = _parse(value)
    if not (str in kinds or Path in kinds or parsed is UNREADABLE or any(get_origin(kind) in LISTS for kind in kinds)):
        return [value]
    if choice := re.fullmatch(r"choice\((.*)\)", value, re.DOTALL):
        return [part.strip() for part in split(choice[1])]
    if isinstance(parsed, Sweep) and not getattr(parsed, "simple_form", False):  # range(...) and its like
        return [value]
    parts = split(value)
    if any(part.startswith(" ") for part in parts[1:]):
        return [value]
    is_path = Path in kinds and not value.startswith("[")
    if is_path and (_exists(value) or not all(part in ("last", "null") or _exists(part) for part in parts)):
        return [value]
    return parts


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _parse(value: str) -> Any:
    """The value that Hydra reads, or UNREADABLE."""
    try:
        return OverridesParser.create().parse_rule(f"x={value}", "override")._value
    except HydraException:
        return UNREADABLE


def _exists(path: str) -> bool:
    return os.path.lexists(existing(path))


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
