"""The arguments of `python run.py`, before Hydra reads them. Neither torch nor Hydra is needed for it."""

import os
from collections.abc import Iterable, Sequence

from src.config.help import VERBS, help_on, help_on_all
from src.errors import UserError

LISTINGS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}
HYDRA_FLAGS = (
    *("--", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
FOLDERS = ("work_dir=", "hydra.run.dir=", "hydra.sweep.dir=")


def in_hydras_words(typed: Iterable[str]) -> list[str]:
    """What was typed, as Hydra has it: a group's option is a word, and no experiment is no argument."""
    arguments = [as_option(each) for each in typed if not _is_default(each)]
    return sorted(arguments, key=lambda each: each not in ("-m", "--multirun"))  # Hydra wants these first


def as_option(argument: str) -> str:
    """The option of a group that `true`, `false` or `null` stands for; other arguments stay as they are."""
    key, _, value = argument.partition("=")
    if key == "debug":
        return {"true": "debug=default", "false": "debug=none", "null": "debug=none"}.get(value.lower(), argument)
    if key in ("logger", "callbacks") and value.lower() in ("null", "false"):
        return f"{key}=none"
    return argument


def _is_default(argument: str) -> bool:
    key, _, value = argument.partition("=")
    return key in ("experiment", "hparams_search") and value.lower() in ("", "null", "none")


def verb_in(arguments: Sequence[str]) -> str | None:
    """The `task` that was typed last; None: nobody typed one."""
    return next((each.partition("=")[2] for each in reversed(arguments) if each.startswith("task=")), None)


def help_wanted(arguments: Sequence[str]) -> str | None:
    """The text that `--help` asks for; None: nobody asked, or for help on a verb that does not exist."""
    if not {"-h", "--help"} & set(arguments):
        return None
    verb = verb_in(arguments)
    if verb is None:
        return help_on_all()
    return help_on(verb) if verb in VERBS else None


def check_arguments(arguments: Sequence[str]) -> str:
    """The verb, after a look at what Hydra would not explain.

    Raises:
        UserError: text that is not UTF-8, an unknown verb, or an unknown flag.
    """
    for name, text in [("the folder", os.getcwd()), *(("the argument", each) for each in arguments)]:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name} {text!a} is not UTF-8: choose another name")
    verb = verb_in(arguments)
    if verb is not None and verb not in VERBS:
        raise UserError(f"there is no task={verb}: choose one of {', '.join(VERBS)}")
    for flag in (each.partition("=")[0] for each in arguments if each.startswith("--")):
        if flag not in HYDRA_FLAGS:
            raise UserError(f"{flag} is not an option: keys have no dashes, type {flag[2:]}=VALUE")
    return verb or "train"


def check_folders(overrides: Iterable[str]) -> None:
    """Refuses folders whose name looks like a reference: Hydra looks up more than once where it writes to.

    Raises:
        UserError: the working directory, or one that was typed.
    """
    if "${" in os.getcwd() or any(each.startswith(FOLDERS) and r"\${" in each for each in overrides):
        raise UserError("${ in a folder's name refers to a key: run in a folder with another name")
