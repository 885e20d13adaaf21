"""A command that fails says why in one sentence, once, and has the right exit code. No torch is needed for it."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig

from src.config.command_line import composed
from src.config.explain import SCALE, explain, explain_os, is_users
from src.config.help import CONFIGS
from src.errors import UserError
from src.run.commands import is_sweep
from src.run.ranks import tells_why
from src.run.slurm import by_srun

# What submitit and Ray raise where a process has ended before its job.
LOST = ("UncompletedJobError", "WorkerCrashedError")


class JobFailed(Exception):
    """Ends one job of a sweep, which goes on. It can be sent from one process to another."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class Failures:
    """What went wrong in a command: in its only job, in jobs of a sweep, or before them."""

    def __init__(self, task: str, arguments: Sequence[str], show_traceback: bool) -> None:
        self.task = task
        self.arguments = arguments
        self.show_traceback = show_traceback
        self.exit_code = 0  # of the first job that failed here: 2 (the command is wrong) or 1 (the run failed)

    def in_job(self, error: Exception) -> NoReturn:
        """Says why a job failed, and ends the process, or with a `JobFailed` a job of a sweep, which goes on."""
        runtime = HydraConfig.get().runtime
        self.show_traceback |= runtime.choices.get("debug", "none") != "none"
        code, sentence = self._tell(error, Path(runtime.output_dir))
        if not is_sweep():
            raise SystemExit(code) from error
        self.exit_code = self.exit_code or code
        raise JobFailed(code, sentence) from error

    def in_command(self, error: Exception) -> int:
        """Says why the command failed, unless its job has said so; returns the exit code."""
        if isinstance(error, JobFailed):  # Hydra raises a job's error again after the last job
            return error.code
        if "Unknown plugin class : 'hydra_plugins." in str(error):  # Hydra's
            chosen = HydraConfig.get().runtime.choices["hydra/launcher"]
            error = UserError(f"hydra/launcher={chosen} is not installed: {SCALE}")
        elif type(error).__name__ in LOST:
            print("a process that a job needs was killed", file=sys.stderr)
            return 0  # the end of the sweep says whether all jobs have finished
        elif isinstance(error, UnicodeDecodeError):
            for path in (path for path in CONFIGS.rglob("*.yaml") if error.object in path.read_bytes()):
                error = UserError(f"{path} cannot be read ({error}): save it as UTF-8")
                break
        elif isinstance(error, OSError) and error.errno is not None:  # the run folder could not be made
            error = UserError(explain_os(error))
        return self._tell(error)[0]

    def _tell(self, error: Exception, folder: Path | None = None) -> tuple[int, str]:
        """Says on stderr what went wrong; returns the exit code and the sentence.

        The traceback of a failed run is kept in its `folder`, unless it is shown.
        """
        code = 2 if is_users(error) else 1
        if self.show_traceback:
            traceback.print_exception(error)
        tells, code = tells_why(code)
        if not tells:
            return code, ""  # another process on this machine says it
        config = composed(self.task, self.arguments) if folder is None else {}
        sentence = explain(error, config)
        print(f"error: {sentence}", file=sys.stderr)
        if code == 1 and not self.show_traceback:
            where = "type HYDRA_FULL_ERROR=1 before the command for the traceback"
            if folder is not None:
                ranks = ["RANK", "LOCAL_RANK"] + ["SLURM_PROCID"] * by_srun()
                rank = next((os.environ[name] for name in ranks if name in os.environ), "0")
                file = folder / ("traceback.txt" if rank == "0" else f"traceback_{rank}.txt")
                with suppress(OSError):
                    text = "".join(traceback.format_exception(error))
                    file.write_text(text, encoding="utf-8", errors="backslashreplace")
                    where = f"{file} (or {where})"
            print(f"where: {where}", file=sys.stderr)
        return code, sentence
