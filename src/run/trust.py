"""A checkpoint may have classes of trusted packages built, and nothing else. No torch is needed for it."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.errors import UserError

log = logging.getLogger(__name__)

# Our models, and torch's layers and optimizers; our data. Each with a dot at its end.
MODELS = ("src.models.", "torch.nn.", "torch.optim.")
DATA = ("src.datamodules.",)
VARIABLE = "TRUSTED_PACKAGES"


def trusted_packages(config: DictConfig) -> tuple[str, ...]:
    """The packages that the user trusts, each with a dot at its end: those of the key, and of the environment.

    Raises:
        UserError: one of them cannot be a package's name, or comes with Python.
    """
    typed = config.trusted_packages
    names = [("trusted_packages", name) for name in (typed.split(",") if isinstance(typed, str) else typed)]
    names += [(VARIABLE, name) for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    found = []
    for where, name in names:
        parts = name.strip().removesuffix(".").split(".")
        if not all(part.isidentifier() for part in parts):
            raise UserError(f"{where} must name packages such as my_package, not {name!r}")
        if parts[0] in sys.stdlib_module_names:
            raise UserError(f"{where} cannot name {name}, which comes with Python and can do anything: remove it")
        found.append(".".join(parts) + ".")
    return tuple(dict.fromkeys(found))


def refuse_untrusted(config: Any, path: Path, trusted: Sequence[str] = MODELS) -> None:
    """Checks that each `_target_` in the configuration of checkpoint `path` is a class of a `trusted` package.

    Nothing in it may be looked up elsewhere, either. Packages have a dot at their end.

    Raises:
        UserError: names what is not trusted.
    """
    for key, value in _leaves(config):
        if key == "_target_":
            if doubt := _doubt(value, tuple(trusted)):
                why, package = doubt
                remedy = f", or type trusted_packages=[{package}] if you trust that package" if package else ""
                raise UserError(
                    f"ckpt_path={path} asks for {value!r}, which {why}; nothing was built: choose another"
                    f" checkpoint{remedy}"
                )
        elif isinstance(value, str) and "${" in value:
            raise UserError(
                f"ckpt_path={path} asks for {value!r} to be looked up; nothing was built: choose another checkpoint"
            )


def strangers(config: DictConfig) -> dict[str, str]:
    """Each `_target_` of the model and the data that is not trusted, and the package to trust for it, "" if none."""
    ours, found = trusted_packages(config), {}
    for key, packages in (("model", MODELS), ("datamodule", DATA)):
        for name, target in _leaves(OmegaConf.to_container(config[key], resolve=True)):
            if name and (doubt := _doubt(target, (*packages, *ours), may_import=True)):
                found[target] = doubt[1]
    return found


def warn_of_strangers(config: DictConfig) -> None:
    """Says before training which parts the verbs would refuse to build from a checkpoint, and what to type then."""
    found = strangers(config)
    if packages := ",".join(sorted({*found.values()} - {""})):
        log.warning(
            "%s: from elsewhere, so that sample, evaluate and the other verbs will use this run's checkpoints only with"
            " trusted_packages=[%s], or with %s=%s in .env",
            *(", ".join(target for target, package in found.items() if package), packages, VARIABLE, packages),
        )
    if others := [target for target, package in found.items() if not package]:
        log.warning(
            "%s: not a class, so that no verb will use this run's checkpoints: write a class, and name it in _target_",
            ", ".join(others),
        )


def _doubt(target: Any, trusted: tuple[str, ...], may_import: bool = False) -> tuple[str, str] | None:
    """Why a `_target_` must not be built, and the package to trust for it, "" if none; None: it may be built.

    Modules of packages that are not trusted are imported only if they `may_import`.
    """
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    is_trusted = f"{module}.".startswith(trusted)
    if is_trusted or may_import:
        try:
            found = getattr(importlib.import_module(module), name)
            problem = "" if isinstance(found, type) else f"{name} is a {type(found).__name__}"
        except Exception as error:  # somebody's module may fail in any way
            problem = (str(error).splitlines() or [""])[0] or type(error).__name__
        if problem:
            return f"is not a class that can be imported here ({problem})", ""
        # Where a name leads counts, not how it is spelt: `torch.nn.modules.os.system` is not torch's.
        module = found.__module__
        if is_trusted and f"{module}.".startswith(trusted):
            return None
    parts = module.split(".")
    n_named = 2 if parts[0] in ("src", "torch") else 1  # these two never should be trusted as a whole
    can_be_named = all(part.isidentifier() for part in parts) and parts[0] not in sys.stdlib_module_names
    package = ".".join(parts[:n_named]) if can_be_named and len(parts) >= n_named else ""
    *others, last = (each.rstrip(".") for each in trusted)
    return f"is not a class of {', '.join(others)}{' or ' if others else ''}{last}", package


def _leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """All plain values, each with "_target_" or "" as its key."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from [(key, value)] if key == "_target_" else _leaves(value)
    elif isinstance(config, list):
        for value in config:
            yield from _leaves(value)
    else:
        yield "", config
