"""Composes a run from configs/ and hands it to one verb: `python run.py experiment=train_mnist_gan.yaml`."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from src.config.before_hydra import as_typed_by_agent, check_arguments, in_hydras_words, read_env_file
from src.config.help import VERBS, help_on, help_on_all
from src.errors import UserError
from src.run.console import show_what_can_be_shown
from src.run.slurm import remember_what_comes_early

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Runs the command line; returns the exit code: 0, 1 (the run failed), 2 (the command is wrong), 128 + signal."""
    remember_what_comes_early()
    show_what_can_be_shown()
    try:
        read_env_file(ROOT / ".env")
        if os.getcwd() not in sys.path:  # last, for the user's own parts
            sys.path.append(os.getcwd())
        arguments = in_hydras_words(as_typed_by_agent(sys.argv[1:]))
        verb = next((each.partition("=")[2] for each in reversed(arguments) if each.startswith("task=")), None)
        if {"-h", "--help"} & set(arguments) and verb in (None, *VERBS):
            print(help_on(verb) if verb else help_on_all())
            return 0
        task = "train" if verb is None else verb
        check_arguments(arguments, task)
        return run(task, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def run(task: str, arguments: list[str]) -> int:
    """Composes the configuration and calls the verb, in a sweep once a job; returns the exit code."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from src.config.command_line import in_hydras_grammar
    from src.config.keys import check_keys
    from src.run.environment import prefer_our_options, quieten, replace_home
    from src.run.failures import Failures, JobFailed
    from src.run.launcher import offer_launcher
    from src.run.ranks import let_first_record, remove_empty
    from src.run.search import offer_search
    from src.run.sweep import conclude, in_worker

    by_lightning = "LOCAL_RANK" in os.environ and "RANK" not in os.environ  # it inherits what is set below
    asked = os.environ.get("HYDRA_FULL_ERROR") == "1" and not by_lightning
    failures = Failures(task, arguments, show_traceback=asked)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its own way
    prefer_our_options()
    sys.argv[1:] = in_hydras_grammar(task, arguments)
    sys.argv += let_first_record()
    offer_search()
    offer_launcher()

    @hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=task)
    def job(config: DictConfig) -> float | None:
        replace_home(Path(config.work_dir) / "logs" / ".home")
        if "wandb" in (config.get("logger") or {}):
            # It is imported by wandb.init in any case, and slower the more modules are loaded by then.
            import wandb.apis.public  # noqa: F401
        if config.get("ignore_warnings"):
            quieten()
        try:
            check_keys(config)
            made = getattr(import_module(f"src.{task}"), task)(config)
            return made if task == "train" else None  # the number that a sweep optimises
        except Exception as error:
            failures.in_job(error)
        except (SystemExit, KeyboardInterrupt) as stop:
            # In a worker, nothing but the job may end; submitit leaves with -1 where SLURM starts the job again.
            if in_worker() and getattr(stop, "code", None) != -1:
                raise JobFailed(143, "") from None
            raise
        finally:
            remove_empty(Path(HydraConfig.get().runtime.output_dir))

    try:
        job()
        code = failures.exit_code  # a search goes on without its failed jobs
    except Exception as error:
        code = failures.in_command(error)
    except (SystemExit, KeyboardInterrupt) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
        if stopped := conclude(verdict, interrupted=code):
            return stopped
        raise
    ended = conclude(verdict)
    return code or ended


def verdict(folders: Sequence[Path]) -> list[str]:
    """What the report says of the runs in these folders, in short; nothing where there is no report."""
    try:
        from src.report.several_runs import in_short
    except ModuleNotFoundError:
        return []
    return in_short(folders)


if __name__ == "__main__":
    listings = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}
    if listings & set(sys.argv) and hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a listing without a word
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        # The C locale, and Python was told to believe it: no file could have an umlaut in its name.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    sys.exit(main())
