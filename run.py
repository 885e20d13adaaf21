"""Composes a run from configs/ and hands it to one verb: `python run.py experiment=train_mnist_gan.yaml`."""

import os
import sys
import traceback
import warnings
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent
VERBS = ("train", "sample")


def main() -> int:
    """Runs the command line; returns the exit code: 0, 1 (the run failed), 2 (the command is wrong), 128 + signal."""
    for name, value in dotenv_values(ROOT / ".env").items():
        if value:
            os.environ.setdefault(name, value)
    for name in ("DATA_DIR", "WANDB_API_KEY", "WANDB_MODE"):
        if os.environ.get(name) == "":  # empty means unset, as in .env.example
            del os.environ[name]
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its own way

    arguments = [as_hydra_reads_it(argument) for argument in sys.argv[1:]]
    task = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("task=")), "train")
    sys.argv[1:] = arguments
    if task not in VERBS:
        print(f"error: there is no task={task}: choose one of {', '.join(VERBS)}", file=sys.stderr)
        return 2

    import hydra
    from omegaconf import DictConfig

    failure_dir: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=task)
    def job(config: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        failure_dir[:] = [HydraConfig.get().runtime.output_dir]
        if config.get("ignore_warnings"):
            quieten()
        if task == "train":
            from src.train import train

            return train(config)
        from src.sample import sample

        sample(config)
        return None

    try:
        job()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from src.utils.errors import explain, is_users

        show_traceback = show_traceback or any(a.startswith("debug=") and a != "debug=none" for a in arguments)
        if show_traceback:
            traceback.print_exc()
        print(f"error: {explain(error, known_keys(task, arguments))}", file=sys.stderr)
        if not is_users(error) and not show_traceback:
            print(f"where: {keep_traceback(failure_dir)}", file=sys.stderr)
        return 2 if is_users(error) else 1
    return 0


def as_hydra_reads_it(argument: str) -> str:
    """What people have typed for years, in Hydra's terms: it takes no booleans and no null for a group's file."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key == "debug":
        return {"true": "debug=default", "false": "debug=none", "null": "debug=none"}.get(value.lower(), argument)
    if key in ("logger", "callbacks") and value.lower() in ("null", "false"):
        return f"{key}=none"
    return argument


def quieten() -> None:
    """Hides the libraries' warnings and tips; our own go through the logger or the console."""
    import logging

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def known_keys(task: str, arguments: list[str]) -> list[str]:
    """Every key of the configuration as far as it composes, for suggestions."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    groups = [a for a in arguments if (ROOT / "configs" / a.partition("=")[0]).is_dir()]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for overrides in (groups, []):
            try:
                config = compose(task, overrides)
            except Exception:
                continue
            plain = OmegaConf.to_container(config, resolve=False)
            keys: list[str] = []
            todo: list[tuple[str, object]] = [("", plain)]
            while todo:
                prefix, node = todo.pop()
                for key, value in node.items() if isinstance(node, dict) else ():
                    keys.append(f"{prefix}{key}")
                    todo.append((f"{prefix}{key}.", value))
            return keys
    return []


def keep_traceback(folder: list[str]) -> str:
    """Writes the current traceback to the run folder, or else says how to see it."""
    try:
        path = Path(folder[0]) / "traceback.txt"
        path.write_text(traceback.format_exc())
        return f"{path} (or type HYDRA_FULL_ERROR=1 before the command)"
    except (IndexError, OSError):
        return "type HYDRA_FULL_ERROR=1 before the command for the traceback"


if __name__ == "__main__":
    sys.exit(main())
