"""What `--help` prints, read from the comments in configs/. Neither torch nor Hydra is needed for it."""

import re
import textwrap
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COMMANDS = {
    "python run.py experiment=train_mnist_cnn_gan": "train an experiment",
    "python run.py trainer.max_epochs=20 datamodule=digits": "change any key or part",
    "python run.py -m seed=1,2,3": "a sweep: one run a value",
    "python run.py ckpt_path=last trainer.max_epochs=30": "resume the newest run",
    "python run.py task=sample ckpt_path=last labels=[5]": "draw with it",
    "python run.py debug=true": "five batches of everything",
}
# An example of each verb.
VERBS = {
    "train": "experiment=train_mnist_cnn_gan trainer.max_epochs=2 'notes=a first try'",
    "sample": "ckpt_path=last labels=[3,8] n_per_label=16",
    "interpolate": "ckpt_path=last labels=[3,8]",
    "evaluate": "ckpt_path=[a.ckpt,b.ckpt]",
    "export": "ckpt_path=last formats=[onnx]",
    "serve": "ckpt_path=last port=8080",
    "report": "runs=[a,b]",
}


def help_on_all() -> str:
    """One screen: the verbs, commands, experiments and groups."""
    names = [path.name for path in sorted(CONFIGS.iterdir()) if path.is_dir() and path.name != "hydra"]
    return "\n".join(
        [
            "Usage: python run.py [task=VERB] [KEY=VALUE]...",
            "",
            "Verbs (their keys: python run.py task=VERB --help)",
            *_table({verb: _about(CONFIGS / f"{verb}.yaml") for verb in VERBS}),
            "",
            "Commands that people type",
            *_table(COMMANDS),
            "",
            "Experiments (experiment=NAME)",
            *_table({path.stem: _about(path) for path in sorted((CONFIGS / "experiment").glob("*.yaml"))}),
            "",
            *_wrapped(f"Groups (GROUP=OPTION; the options: python run.py task=train --help): {', '.join(names)}", "  "),
            "Hydra's own options: python run.py --hydra-help",
        ]
    )


def help_on(verb: str) -> str:
    """A verb's keys with their defaults and comments; of `train` also the groups and the keys of the main parts."""
    lines = [_about(CONFIGS / f"{verb}.yaml"), "", f"  python run.py task={verb} {VERBS[verb]}", "", "Keys"]
    lines += _keys(CONFIGS / f"{verb}.yaml")
    if verb == "train":
        options = {
            path.relative_to(CONFIGS).as_posix(): ", ".join(sorted(option.stem for option in path.glob("*.yaml")))
            for path in sorted(CONFIGS.rglob("*"))
            if path.is_dir() and "hydra" not in path.parts
        }
        lines += ["", "Groups and their options (GROUP=OPTION)", *_table(options)]
        for part, option in [("trainer", "default"), ("model", "mnist_gan_model"), ("datamodule", "mnist")]:
            lines += ["", f"Keys of {part}={option}", *_keys(CONFIGS / part / f"{option}.yaml", f"{part}.")]
        lines += ["", "All keys, as they are composed: python run.py --cfg job"]
    return "\n".join(lines)


def _about(path: Path) -> str:
    """The first line of a file's header comment; empty where it has none, as somebody's own experiment may."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = [line.lstrip("#").strip() for line in lines if line.startswith("#")]
    first = next((line for line in comments if line and not line.startswith("@package")), "")
    return first.partition("composes: ")[2] or first


def _keys(path: Path, prefix: str = "") -> list[str]:
    """`KEY=DEFAULT  comment` of each key at the top of a file that holds a value."""
    found = re.findall(r"^([a-z]\w*): *([^#\s].*?) *(?:# *(.*))?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return _table({f"{prefix}{key}={default}": comment for key, default, comment in found if key != "task"})


def _table(rows: dict[str, str]) -> list[str]:
    """Two columns, the second one wrapped."""
    width = max((len(name) for name in rows if len(name) <= 54), default=0)
    lines = []
    for name, text in rows.items():
        lines += _wrapped(f"  {name:<{width}}  {text}", " " * (4 + width)) if text else [f"  {name}"]
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
