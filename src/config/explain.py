"""Turns errors into one sentence that says what to type instead."""

import difflib
import errno
import importlib
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from src.config.help import CONFIGS
from src.errors import UserError

EXTRAS = "pip install -r requirements-extras.txt"
SCALE = "pip install -r requirements-scale.txt"
# Keys that people know from older templates and Lightning 1.x, and what to do instead.
RENAMED = {
    "model.lr": "use model.optimizer_g.lr and model.optimizer_d.lr, or model.optimizer.lr of model=flow_model",
    "model.b1": "use model.optimizer_g.betas and model.optimizer_d.betas, or model.optimizer.betas of model=flow_model",
    "model.b2": "use model.optimizer_g.betas and model.optimizer_d.betas, or model.optimizer.betas of model=flow_model",
    "trainer.resume_from_checkpoint": "use ckpt_path",
    "trainer.progress_bar_refresh_rate": "use callbacks.progress_bar.refresh_rate",
    "trainer.weights_summary": "use trainer.enable_model_summary",
    "trainer.gradient_clip_val": "use model.clip_grad_norm",
    "trainer.accumulate_grad_batches": "remove it and raise datamodule.batch_size",
}
# What to type, where a library's message does not say it.
REMEDIES = {
    "must be either both floats": "write 0.0 instead of 0",
    "Invalid learning rate": "set lr to a positive number such as 2.0e-4",
    "Invalid beta parameter": "set betas to two numbers from 0.0 to below 1, such as [0.5, 0.999]",
    "No supported gpu backend": "use trainer.gpus=0 for the CPU",
}
# Lines that come before what went wrong, in libraries' messages of several lines.
NO_NEWS = re.compile(
    r"Error executing job|Caught \w+ in|An error occurred|.* \(Request ID: .*\)$|-- Process \d+ terminated"
)
HEADINGS = re.compile(
    r"(?:#+ )?(?:Last error|Exception summary|Original error(?: was)?|Explanation):?\s*(.*)", re.IGNORECASE
)
# What torch's backends say to a process whose peer is gone; the rest of the sentence helps nobody.
PEER_GONE = re.compile(
    r"(?=.*(?:gloo|NCCL|c10d|TCPStore|SocketImpl))(?:\[\S+gloo\S*:\d+\] )?"
    r"(.*?(?:by peer|remote process exited|[Tt]imed out|[Tt]imeout|[Bb]roken pipe|got 0 bytes))",
    re.DOTALL,
)
WORKER_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited)")
# Lines that do not help whoever typed the command.
NOISE = re.compile(
    r"\(Background on this error at|full_key:|object_type=|For further information|frame #\d+|Exception raised from"
    r"|For debugging consider|Compile with `TORCH|CUDA kernel errors might"
)


def is_users(error: BaseException) -> bool:
    """Whether the user's input is to blame (exit code 2) rather than the run (exit code 1)."""
    if isinstance(error, (UserError, HydraException, OmegaConfBaseException, YAMLError)) or _is_lightnings(error):
        return True
    return isinstance(error, ValueError) and "Config group override" in str(error)


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning objects to how it is configured. It is not imported for this: serving does without it."""
    return any(kind.__name__ == "MisconfigurationException" for kind in type(error).__mro__)


def explain(error: BaseException, config: Mapping[str, Any] | None = None) -> str:
    """One line about `error`; suggestions are keys of `config`."""
    return " ".join(_explain(error, config or {}).split())


def telling(text: str) -> str:
    """The part of a library's message that says what went wrong: in most it is the first line."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not NOISE.match(line.strip())]
    if not lines:
        return text.strip()
    if re.match(r"\d+ validation errors? for ", lines[0]):  # pydantic: a field, and below it what is wrong with it
        said = " ".join(line if line[0].isspace() else f"; {line}:" for line in lines[1:])
        said = re.sub(r"\s*\[type=\w+, input_value=(.*?), input_type=\w+\]", r", not \1", said)
        return " ".join(said.replace("Value error, ", "").split()).replace(" ;", ";").removeprefix("; ")
    if any("Traceback (most recent call last)" in line for line in lines):  # of another process
        raised = [line for line in lines if re.match(r"\s*[A-Za-z_][\w.]*: \S", line)]
        return (raised or lines)[-1].strip()
    if lines[0].startswith(("while parsing", "while scanning")):  # YAML: what was read, where, what is wrong, where
        wrong, *where = lines[max(i for i, line in enumerate(lines) if not line[0].isspace()) :]
        return " ".join([wrong, *(line.strip() for line in where[:1])]).rstrip(":")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if (heading := HEADINGS.match(line.strip())) and (heading[1] or following):
            return heading[1] or following.strip()
    while len(lines) > 1 and NO_NEWS.match(lines[0].strip()):
        del lines[0]
    return " ".join(line.strip() for line in lines[: 4 if lines[0].endswith(":") else 1])


def _explain(error: BaseException, config: Mapping[str, Any]) -> str:
    text = str(error).strip()
    first = telling(text) if text else type(error).__name__
    if "Traceback (most recent call last)" in text:  # of a worker process, with the name of the error
        text = first = first.removeprefix("src.errors.UserError: ").removeprefix(f"{type(error).__name__}: ")
    if isinstance(error, MissingConfigException):
        if not (match := re.search(r"Could not (?:find|load) '([^']+)/([^'/]*)'", text)):
            return text.splitlines()[0]
        group, name = match.groups()
        options = sorted(error.options or _options(group))
        close = difflib.get_close_matches(name.removesuffix(".yaml"), options, n=1)
        suggestion = f"did you mean {group}={close[0]}?" if close else f"choose one of {', '.join(options)}"
        return f"there is no {group}={name}: {suggestion}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: overrides are key=value, and lists are key=[1,2]"
    if isinstance(error, ConfigCompositionException):
        if match := re.match(r"Could not override '([^'@]+)", first):
            return _unknown_key(match[1], list(_keys(config)))
        if match := re.search(r"Ambiguous value for argument '([^=]+)=([^']+)'", text):
            return f"{match[1]}={match[2]} is a sweep: type {match[1]}=[{match[2]}] for a list, or -m to run each value"
        if match := re.match(r"Could not (?:append|delete)[^']*'([^']+)'", first):
            return f"{match[1]}: {first}"
    if isinstance(error, InterpolationResolutionError) and (cause := error.__cause__ or error.__context__):
        while isinstance(cause, InterpolationResolutionError) and (deeper := cause.__cause__ or cause.__context__):
            cause = deeper
        return str(cause) if isinstance(cause, UserError) else f"{error.full_key}: {telling(str(cause))}"
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return f"the configuration has no {error.full_key or first}: do not remove it"
    if isinstance(error, InstantiationException):
        return explain_part(match[1] if (match := re.search(r"full_key: (\S+)", text)) else "", error)
    gone = WORKER_GONE.search(text) if isinstance(error, RuntimeError) else None
    if gone or (isinstance(error, (ConnectionError, EOFError)) and _is_from_loader(error)):  # it was sending a batch
        return (
            f"a worker process that loads data is gone{f' (pid {gone[1]})' if gone else ''}, often for lack of memory,"
            " or of /dev/shm in a container: type ckpt_path=last to go on from the last checkpoint, with fewer"
            " datamodule.num_workers if it happens again"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os(error)
    if isinstance(error, YAMLError):
        return f"cannot read a configuration: {first}"
    if "Config group override" in text:
        return "a configuration group takes the name of one of its files: see configs/"
    if isinstance(error, RuntimeError) and (gone := PEER_GONE.match(text)):
        return (
            f"another process of this run has ended or cannot be reached ({gone[1]}): what it printed says why; type"
            " ckpt_path=last to go on from the last checkpoint"
        )
    if type(error).__module__.startswith("src."):  # ours say what to do
        return text
    if _is_lightnings(error) or type(error) is ValueError:
        return text + _remedy(text)
    return f"{type(error).__name__}: {first}{_remedy(first)}"


def _is_from_loader(error: BaseException) -> bool:
    """Whether torch's DataLoader raised it."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).parts[-3:-1] == ("utils", "data") for frame, _ in frames)


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _unknown_key(key: str, known: list[str]) -> str:
    if key in RENAMED:
        return f"there is no key {key}: {RENAMED[key]}"
    if key in known:  # Hydra says no more than that either
        inside = [k for k in known if k.startswith(f"{key}.")] or [key]
        return f"{key} cannot be replaced as a whole: set the keys in it, such as {inside[0]}=VALUE"
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    namesakes = [k for k in known if k.endswith(f".{name}")]
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"there is no key {key}: did you mean {siblings[close[0]]}?"
    if parent in known and not siblings:  # null, or a plain value
        group = parent.replace(".", "/")
        options = "|".join(sorted(_options(group)))
        way = f"choose one of {group}={options} first" if options else f"set it as a whole, {parent}=VALUE"
        return f"there is no key {key}, as {parent} has no keys: {way}"
    if parent in known:  # the group is right
        return f"there is no key {key}: choose one of {', '.join(sorted(siblings))}"
    if close := namesakes[:1] or difflib.get_close_matches(key, known, n=1):
        return f"there is no key {key}: did you mean {close[0]}?"
    top = sorted(k for k in known if "." not in k)
    return f"there is no key {key}: choose one of {', '.join(top) or 'those in configs/'}"


def _options(group: str) -> list[str]:
    return [path.stem for path in (CONFIGS / group).glob("*.yaml")]


def _remedy(text: str) -> str:
    return next((f": {remedy}" for sentence, remedy in REMEDIES.items() if sentence in text), "")


def explain_part(key: str, error: Exception, part: Mapping[str, Any] | None = None) -> str:
    """Why the part `key` cannot be built; names the argument where its values in `part` show which one is meant."""
    cause = error.__cause__ if isinstance(error, InstantiationException) else error
    text = str(cause or error).strip()
    if isinstance(cause, ImportError):
        if not (match := re.match(r"Error loading '([^']+)'", text)):
            remedy = f": {EXTRAS}" if key.startswith("logger") else ""
            return f"{key} needs a package that is not installed ({telling(text)}){remedy}"
        module, _, name = match[1].rpartition(".")
        try:
            members = vars(importlib.import_module(module)).items()
        except (ImportError, ValueError):
            return (
                f"{key}._target_={match[1]} cannot be imported: check its spelling, or install the package that has it"
            )
        there = [name for name, value in members if getattr(value, "__module__", "") == module]
        close = difflib.get_close_matches(name, there, n=1) or there
        return f"{key}._target_={match[1]} does not exist: {module} has {', '.join(close) or 'nothing of its own'}"
    if isinstance(cause, TypeError) and (match := re.search(r"unexpected keyword argument '(\w+)'", text)):
        return f"{key}.{match[1]} is not an option of {key}: remove it"
    if isinstance(cause, TypeError) and (match := re.search(r"missing .* arguments?: (.*)", text)):
        return f"{key} lacks {match[1]}: add it, or set {key}._partial_=true where its owner adds it"
    if isinstance(cause, ValueError) and begins_with_argument(text):
        return f"{key}.{text}{_remedy(text)}"
    if cause is None:
        return f"{key}._target_: {telling(text)}"
    named = [name for name in part or {} if re.search(rf"\b{re.escape(name)}\b", text)]
    valued = [name for name, value in (part or {}).items() if isinstance(value, str) and repr(value) in text]
    likely = [*(name for name in named if name in valued), *named, *valued]
    return f"{'.'.join([key, *likely[:1]])}: {explain(cause)}"


def begins_with_argument(text: str) -> bool:
    """Whether a message begins with an argument's name, as our constructors' do."""
    return re.match(r"[a-z_]+ (?:\([^)]*\) )?(is|must|asks|needs|cannot)\b", text) is not None


def explain_os(error: OSError, remedy: str = "choose another folder with hydra.run.dir=DIR") -> str:
    """What the operating system refused, and what to do."""
    if error.errno is None:  # not the system's: one of ours, which already says what to do
        return str(error)
    where = f" {error.filename!s}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"no space left to write{where} ({error.strerror}): make room, or {remedy}"
    return f"cannot use{where} ({error.strerror}): {remedy}"
