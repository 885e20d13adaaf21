"""What comes before Hydra: settings from `.env`, and a look at the arguments. Neither torch nor Hydra is needed."""

import ast
import codecs
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from src.config.help import VERBS
from src.errors import UserError

HYDRA_FLAGS = (
    *("--", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
# Options that are words, and what stands for them. No experiment is no argument.
MEANT: dict[str, str | None] = {
    "debug=true": "debug=default",
    **dict.fromkeys(("debug=false", "debug=null"), "debug=none"),
    **dict.fromkeys(("logger=false", "logger=null"), "logger=none"),
    **dict.fromkeys(("callbacks=false", "callbacks=null"), "callbacks=none"),
    **{f"{group}={none}": None for group in ("experiment", "hparams_search") for none in ("", "null", "none")},
}


def read_env_file(path: Path) -> None:
    """Puts the variables of a `.env` file, if there is one, into the environment, except those that are set there.

    The file is UTF-8, or as editors on Windows save it: UTF-16, or with a byte order mark. `DATA_DIR`,
    `STUDY_STORAGE` and W&B's variables count as not set where they are empty.
    """
    try:
        content = path.read_bytes() if path.is_file() else b""
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has null bytes")
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise UserError(f"{path} cannot be read ({error}): save it as UTF-8 text of NAME=value lines") from error
    for line in parse_stream(StringIO(text)):
        if line.error:
            raise UserError(f"{path}, line {line.original.line}, is not NAME=value: mend or delete it")
    for name, value in dotenv_values(stream=StringIO(text)).items():
        if value:
            os.environ.setdefault(name, value)
    for name in [name for name, value in os.environ.items() if not value]:
        if name in ("DATA_DIR", "STUDY_STORAGE") or name.startswith("WANDB_"):
            del os.environ[name]


def as_typed_by_agent(arguments: Sequence[str]) -> list[str]:
    """What the agent of a W&B sweep types is in Python's notation: None, lists, and nested parameters as dicts."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return list(arguments)
    typed = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        value: Any = text
        if text == "None" or text.startswith(("[", "{")):
            with suppress(ValueError, SyntaxError):  # then it is what somebody has typed
                value = ast.literal_eval(text)
        if isinstance(value, dict):
            typed += as_typed_by_agent([f"{key}.{inner}={each}" for inner, each in value.items()])
        else:
            typed.append(argument if value is text else f"{key}={json.dumps(value, ensure_ascii=False)}")
    return typed


def in_hydras_words(typed: Iterable[str]) -> list[str]:
    """What was typed, as Hydra has it: `true`, `false` and `null` stand for a group's options."""
    meant = []
    for argument in typed:
        key, _, value = argument.partition("=")
        meant.append(MEANT.get(f"{key}={value.lower()}", argument))
    arguments = [each for each in meant if each is not None]
    return sorted(arguments, key=lambda each: each not in ("-m", "--multirun"))  # Hydra wants these first


def check_arguments(arguments: Sequence[str], verb: str) -> None:
    """Refuses what Hydra would not explain: text that is not UTF-8, an unknown verb, an unknown flag."""
    for name, text in [("the folder", os.getcwd()), *(("the argument", each) for each in arguments)]:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name} {text!a} is not UTF-8: choose another name")
    if verb not in VERBS:
        raise UserError(f"there is no task={verb}: choose one of {', '.join(VERBS)}")
    for flag in (each.partition("=")[0] for each in arguments if each.startswith("--")):
        if flag not in HYDRA_FLAGS:
            raise UserError(f"{flag} is not an option: keys have no dashes, type {flag[2:]}=VALUE")
