"""A command that fails says why in one sentence, once, and has the right exit code. No torch is needed for it."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from src.config.command_line import composed
from src.config.explain import explain, explain_os, is_users
from src.config.help import CONFIGS
from src.errors import UserError
from src.run.commands import is_sweep


class Failures:
    """What went wrong in a command: in its only job, in jobs of a sweep, or before them."""

    def __init__(self, task: str, arguments: Sequence[str], show_traceback: bool) -> None:
        self.task = task
        self.arguments = arguments
        self.show_traceback = show_traceback
        self._told: list[Exception] = []

    def in_job(self, error: Exception) -> None:
        """Says why a job failed, and ends the process unless the job is one of a sweep, which goes on."""
        runtime = HydraConfig.get().runtime
        debugging = runtime.choices.get("debug", "none") != "none"
        code = tell(error, self.show_traceback or debugging, Path(runtime.output_dir))
        if not is_sweep():
            raise SystemExit(code) from error
        self._told.append(error)

    def in_command(self, error: Exception) -> int:
        """Says why the command failed, unless its job has said so; returns the exit code."""
        if error in self._told:  # Hydra raises a job's error again after the last job
            return self.exit_code
        if self._told and "No trials are completed" in str(error):  # Optuna's
            error = UserError("no trial of this search succeeded: the lines above say why")
        elif isinstance(error, UnicodeDecodeError) and (file := _not_utf8()):
            error = UserError(f"{file} cannot be read ({error}): save it as UTF-8")
        elif isinstance(error, OSError) and error.errno is not None:  # the run folder could not be made
            error = UserError(explain_os(error))
        return tell(error, self.show_traceback, known=known_keys(self.task, self.arguments))

    @property
    def exit_code(self) -> int:
        """That of the first job that failed; 0 where none did."""
        return exit_code_of(self._told[0]) if self._told else 0


def exit_code_of(error: Exception) -> int:
    """2: the command is wrong; 1: the run failed."""
    return 2 if is_users(error) else 1


def tell(error: Exception, show_traceback: bool, folder: Path | None = None, known: Sequence[str] = ()) -> int:
    """Says on stderr what went wrong, in one sentence; returns the exit code.

    The traceback of a failed run is kept in `folder` unless it is shown. Suggestions come from the `known` keys.
    """
    code = exit_code_of(error)
    if show_traceback:
        traceback.print_exception(error)
    if code == 2 and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK") != "0":
        return code  # another process that torchrun started on this machine says it
    print(f"error: {explain(error, known)}", file=sys.stderr)
    if code == 1 and not show_traceback:
        print(f"where: {_keep_traceback(error, folder)}", file=sys.stderr)
    return code


def _keep_traceback(error: Exception, folder: Path | None) -> str:
    """Writes the traceback to the run folder, or else says how to see it."""
    remedy = "type HYDRA_FULL_ERROR=1 before the command for the traceback"
    if folder is None:
        return remedy
    try:
        text = "".join(traceback.format_exception(error))
        (folder / "traceback.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return remedy
    return f"{folder / 'traceback.txt'} (or {remedy})"


def _not_utf8() -> Path | None:
    """A configuration that is not UTF-8, as Hydra reads them."""
    for path in CONFIGS.rglob("*.yaml"):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return None


def known_keys(task: str, arguments: Sequence[str]) -> list[str]:
    """Every key of the configuration as far as it composes."""
    GlobalHydra.instance().clear()
    keys: list[str] = []
    todo = [("", composed(task, arguments))]
    while todo:
        prefix, node = todo.pop()
        keys += [f"{prefix}{key}" for key in node]
        todo += [(f"{prefix}{key}.", value) for key, value in node.items() if isinstance(value, dict)]
    return keys
