"""Mistakes, told in one sentence that says what to type instead."""

import difflib
import errno
import re
from collections.abc import Iterable

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that names the key and what to type."""


# Keys that people know from older templates and Lightning 1.x.
RENAMED = {
    "model.lr": "model.optimizer_g.lr and model.optimizer_d.lr",
    "model.b1": "model.optimizer_g.betas and model.optimizer_d.betas",
    "model.b2": "model.optimizer_g.betas and model.optimizer_d.betas",
    "trainer.resume_from_checkpoint": "ckpt_path",
    "trainer.progress_bar_refresh_rate": "callbacks.progress_bar.refresh_rate",
    "trainer.weights_summary": "trainer.enable_model_summary",
    "trainer.gradient_clip_val": "nothing: gradient clipping is not available with two optimizers",
    "trainer.accumulate_grad_batches": "datamodule.batch_size",
}
EXTRAS = "pip install -r requirements-extras.txt"


def is_users(error: BaseException) -> bool:
    """Whether the user's input is to blame (exit code 2) rather than the run (exit code 1)."""
    kinds = (UserError, HydraException, OmegaConfBaseException, MisconfigurationException)
    return isinstance(error, kinds) or (isinstance(error, ValueError) and "Config group override" in str(error))


def explain(error: BaseException, known_keys: Iterable[str] = ()) -> str:
    """One sentence about `error`; `known_keys` are the composed configuration's, for suggestions."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MissingConfigException):
        return _missing_option(error, text)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: overrides are key=value, and lists are key=[1,2]"
    if isinstance(error, ConfigCompositionException):
        if match := re.match(r"Could not override '([^']+)'", first):
            return _unknown_key(match[1], known_keys)
        if match := re.match(r"Ambiguous value for argument '([^=]+)=([^']+)'", first):
            return f"{match[1]}={match[2]} is a sweep: type {match[1]}=[{match[2]}] for a list, or -m to run each value"
    if isinstance(error, InterpolationResolutionError) and (cause := error.__cause__ or error.__context__):
        return f"{error.full_key}: {cause}".splitlines()[0]
    if isinstance(error, InstantiationException):
        return explain_instantiation(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _os_error(error)
    if isinstance(error, (UserError, MisconfigurationException)):
        return text
    if "Config group override" in text:
        return "a configuration group takes the name of one of its files: see configs/"
    return f"{type(error).__name__}: {first}"


def explain_instantiation(error: InstantiationException) -> str:
    """What a part's constructor objected to, with the part's key in front."""
    key = match[1] if (match := re.search(r"full_key: (\S+)", str(error))) else ""
    cause = error.__cause__
    if isinstance(cause, (ModuleNotFoundError, ImportError)):
        if str(cause).startswith(("No module named 'src", "cannot import name")):
            return f"{key}._target_: {cause}"
        return f"{key} needs a package that is not installed ({cause}): {EXTRAS}"
    if isinstance(cause, TypeError) and (match := re.search(r"unexpected keyword argument '(\w+)'", str(cause))):
        return f"{key}.{match[1]} is not an option of {key}: remove it"
    if isinstance(cause, TypeError) and (match := re.search(r"missing .* arguments?: (.*)", str(cause))):
        return f"{key} lacks {match[1]}"
    if isinstance(cause, ValueError):
        # Our constructors begin their messages with the argument's name.
        separator = "." if re.match(r"[a-z_]+ (is|must|asks|needs|cannot)\b", str(cause)) else ": "
        return f"{key}{separator}{cause}"
    if cause is not None:
        return f"{key}: {explain(cause)}"
    return str(error).splitlines()[0] + (f" ({key})" if key else "")


def _unknown_key(key: str, known: Iterable[str]) -> str:
    if key in RENAMED:
        return f"there is no key {key}: use {RENAMED[key]}"
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"there is no key {key}: " + (f"did you mean {close[0]}?" if close else "see configs/ for those there are")


def _missing_option(error: MissingConfigException, text: str) -> str:
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match[1], match[2]
        if group == "hydra/sweeper":
            return f"the sweeper {name!r} is not installed: {EXTRAS}"
        options = sorted(error.options or [])
        close = difflib.get_close_matches(name.removesuffix(".yaml"), options, n=1)
        suggestion = f"did you mean {group}={close[0]}?" if close else f"there are {', '.join(options)}"
        return f"there is no {group}={name}: {suggestion}"
    return text.splitlines()[0]


def _os_error(error: OSError) -> str:
    where = f" {error.filename!s}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"no space left to write{where} ({error.strerror}): make room, or write elsewhere with hydra.run.dir=DIR"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no permission for{where} ({error.strerror}): choose another folder with data_dir=DIR or hydra.run.dir=DIR"
        )
    return f"{error.strerror}:{where}: choose another path with data_dir=DIR or hydra.run.dir=DIR"
