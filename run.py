"""Composes a run from configs/ and hands it to one verb: `python run.py experiment=train_mnist_gan.yaml`."""

import codecs
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib import import_module
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from src.run.console import show_what_can_be_shown

ROOT = Path(__file__).resolve().parent
VERBS = ("train", "sample", "interpolate", "evaluate", "export", "serve", "report")
FOLDERS = ("work_dir=", "hydra.run.dir=", "hydra.sweep.dir=")
LISTINGS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}
HYDRA_FLAGS = (
    *("--", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)


def main() -> int:
    """Runs the command line; returns the exit code: 0, 1 (the run failed), 2 (the command is wrong), 128 + signal."""
    show_what_can_be_shown()
    try:
        text = text_of(ROOT / ".env")
        if broken := [line.original.line for line in parse_stream(StringIO(text)) if line.error]:
            print(f"error: {ROOT / '.env'}, line {broken[0]}, is not NAME=value: mend or delete it", file=sys.stderr)
            return 2
        for name, value in dotenv_values(stream=StringIO(text)).items():
            if value:
                os.environ.setdefault(name, value)
    except (OSError, ValueError) as error:  # also what is neither UTF-8 nor UTF-16
        print(
            f"error: {ROOT / '.env'} cannot be read ({error}): save it as UTF-8 text of NAME=value lines",
            file=sys.stderr,
        )
        return 2
    for name, value in list(os.environ.items()):
        if value == "" and (name == "DATA_DIR" or name.startswith("WANDB_")):  # empty means unset, as in .env.example
            del os.environ[name]
    if os.getcwd() not in sys.path:  # parts of one's own may lie where one types; what is installed or ours comes first
        sys.path.append(os.getcwd())
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its own way

    arguments = [as_option(argument) for argument in sys.argv[1:] if not is_default(argument)]
    arguments.sort(key=lambda argument: argument not in ("-m", "--multirun"))  # Hydra refuses it between others
    task = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("task=")), "train")
    if "-h" in arguments or "--help" in arguments:
        from src.config.help import help_on, help_on_all

        asked = any(argument.startswith("task=") for argument in arguments)
        if not asked or task in VERBS:
            print(help_on(task) if asked else help_on_all())
            return 0
    for name, text in [("the folder", os.getcwd()), *(("the argument", argument) for argument in arguments)]:
        if any("\ud800" <= character <= "\udfff" for character in text):
            print(f"error: {name} {text!a} is not UTF-8: choose another name", file=sys.stderr)
            return 2
    if task not in VERBS:
        print(f"error: there is no task={task}: choose one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if wrong := [flag for flag in flags if flag not in HYDRA_FLAGS]:
        print(f"error: {wrong[0]} is no option: keys have no dashes, type {wrong[0][2:]}=VALUE", file=sys.stderr)
        return 2

    import hydra
    from omegaconf import DictConfig

    from src.config.command_line import in_hydras_grammar
    from src.run.ranks import let_first_record

    sys.argv[1:] = in_hydras_grammar(task, arguments)
    folders = [a for a in sys.argv[1:] if a.startswith(FOLDERS) and r"\${" in a]
    if "${" in os.getcwd() or folders:  # where Hydra writes to is looked up more than once
        print("error: ${ in a folder's name refers to a key: run in a folder with another name", file=sys.stderr)
        return 2
    let_searches_go_on()
    sys.argv += let_first_record()
    reported: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=task)
    def job(config: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from src.run.environment import replace_home

        replace_home(Path(config.work_dir) / "logs" / ".home")
        if "wandb" in (config.get("logger") or {}):
            # It is imported by wandb.init in any case, and slower the more modules are loaded by then.
            import wandb.apis.public  # noqa: F401
        if config.get("ignore_warnings"):
            quieten()
        try:
            made = getattr(import_module(f"src.{task}"), task)(config)
            return made if task == "train" else None  # the number that a sweep optimises
        except Exception as error:
            debugging = HydraConfig.get().runtime.choices.get("debug", "none") != "none"
            code = report(error, show_traceback or debugging, Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                reported.append(error)
                raise  # Hydra goes on with the other jobs, and raises it again after the last
            raise SystemExit(code) from error

    try:
        job()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:
        from src.config.explain import explain_os
        from src.errors import UserError

        if error not in reported:
            if reported and "No trials are completed" in str(error):  # Optuna's
                error = UserError("no trial of this search succeeded: the lines above say why")
            elif isinstance(error, UnicodeDecodeError) and (file := not_utf8()):
                error = UserError(f"{file} cannot be read ({error}): save it as UTF-8")
            elif isinstance(error, OSError) and error.errno is not None:  # the run folder could not be made
                error = UserError(explain_os(error))
            return report(error, show_traceback, known=known_keys(task, arguments))
    if reported:  # a search goes on without its failed jobs
        from src.config.explain import is_users

        return 2 if is_users(reported[0]) else 1
    return 0


def let_searches_go_on() -> None:
    """Makes Optuna's sweeper record a trial that failed and go on, as other sweeps do, where nothing else is set."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers them, with defaults of their own
    try:
        from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
    except ImportError:
        return
    ConfigStore.instance().store("optuna", OptunaSweeperConf(max_failure_rate=1.0), group="hydra/sweeper")


def report(error: Exception, show_traceback: bool, folder: Path | None = None, known: Iterable[str] = ()) -> int:
    """Says on stderr what went wrong, in one sentence; returns the exit code.

    Args:
        error: what was raised.
        show_traceback: whether to print it, too; otherwise that of a failed run is kept in `folder`.
        folder: the run folder, if the run has begun.
        known: keys of the configuration, for suggestions.
    """
    from src.config.explain import explain, is_users

    if show_traceback:
        traceback.print_exception(error)
    if is_users(error) and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK") != "0":
        return 2  # another process that torchrun started on this machine says it
    print(f"error: {explain(error, known)}", file=sys.stderr)
    if is_users(error):
        return 2
    if not show_traceback:
        print(f"where: {keep_traceback(error, folder)}", file=sys.stderr)
    return 1


def text_of(path: Path) -> str:
    """A text file as editors save it, on Windows as UTF-16 or with a byte order mark; empty if it is not there."""
    if not path.is_file():
        return ""
    content = path.read_bytes()
    text = content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    if "\0" in text:
        raise ValueError("it has null bytes")
    return text


def not_utf8() -> Path | None:
    """A configuration that cannot be read as UTF-8, as Hydra reads them."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return None


def is_default(argument: str) -> bool:
    """Whether an argument asks for no experiment or no search, which is how it is without it."""
    key, _, value = argument.partition("=")
    return key in ("experiment", "hparams_search") and value.lower() in ("", "null", "none")


def as_option(argument: str) -> str:
    """Translates what people have typed for years: Hydra refuses booleans and null as the name of a group's option."""
    key, _, value = argument.partition("=")
    if key == "debug":
        return {"true": "debug=default", "false": "debug=none", "null": "debug=none"}.get(value.lower(), argument)
    if key in ("logger", "callbacks") and value.lower() in ("null", "false"):
        return f"{key}=none"
    return argument


def quieten() -> None:
    """Hides the libraries' warnings and tips; our own go through the logger or the console."""
    import logging

    import pytorch_lightning  # noqa: F401  (it sets its loggers' levels when it is imported)

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def known_keys(task: str, arguments: list[str]) -> list[str]:
    """Every key of the configuration as far as it composes, for suggestions."""
    from hydra.core.global_hydra import GlobalHydra

    from src.config.command_line import composed

    GlobalHydra.instance().clear()
    keys: list[str] = []
    todo: list[tuple[str, object]] = [("", composed(task, arguments))]
    while todo:
        prefix, node = todo.pop()
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.append(f"{prefix}{key}")
            todo.append((f"{prefix}{key}.", value))
    return keys


def keep_traceback(error: Exception, folder: Path | None) -> str:
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


if __name__ == "__main__":
    if LISTINGS & set(sys.argv) and hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a listing without a word
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        # The C locale, and Python was told to believe it: no file could have an umlaut in its name.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    sys.exit(main())
