"""The keys of each verb and what their values may be: what is typed is read by these types and checked against them.

The keys of a run's parts have the types that the parts' constructors state.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from src.config.types import Count, Seed, Share, check

Checkpoint = Annotated[Path, Field(description="a file (or last, the newest run's)")]
Folder = Annotated[Path, Field(min_length=1, description="a folder")]
Format = Literal["onnx", "int8", "torch", "tensorrt"]
Labels = int | str | list[int | str] | None
Packages = Annotated[str | list[str], Field(description="a list of packages such as trusted_packages=[my_package]")]
Seconds = Annotated[float, Field(gt=0, lt=1e9, description="a number above 0")]
Several = Annotated[int, Field(ge=2)]
SITES = "a list of sites such as origins=[https://example.com,http://localhost:3000], or [*] for all"

ANY_VERB: dict[str, Any] = {"task": str, "work_dir": Path}
WITH_MODEL = ANY_VERB | {"ckpt_path": Checkpoint, "weights": Literal["ema", "raw"], "trusted_packages": Packages}
DRAWING = WITH_MODEL | {"seed": Seed, "out": Folder}
PROMPTS = Annotated[str | list[str] | None, Field(description="text, or a list such as prompts='[\"a nine\"]'")]
GUIDED: dict[str, Any] = {"guidance": Annotated[float, Field(ge=0, le=100)] | None, "negative": str | None}
SOLVED: dict[str, Any] = GUIDED | {
    "steps": Annotated[int, Field(ge=1, le=1000)] | None,
    "solver": Literal["euler", "heun", "multistep"] | None,
    "scheduler": str | None,
}

KEYS: dict[str, dict[str, Any]] = {
    "train": ANY_VERB
    | {
        "name": str | None,
        "group": str | None,
        "tags": Annotated[list[str], Field(description="a list of words such as [baseline]")],
        "notes": str | None,
        "seed": Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 2**32 - 1")],
        "data_dir": Path,
        "ckpt_path": Checkpoint | None,
        "init_from": Checkpoint | None,
        "test_after_training": bool,
        "optimized_metric": str | None,
        "study": Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$", description="a name of letters, digits, _, . and -")]
        | None,
        "print_config": bool,
        "ignore_warnings": bool,
        "trusted_packages": Packages,
    },
    "sample": DRAWING
    | SOLVED
    | {
        "labels": Labels,
        "prompts": PROMPTS,
        "n_per_label": Count,
        "truncation": Share,
        "batch_size": Count,
        "png": bool,
    },
    "interpolate": DRAWING
    | GUIDED
    | {"labels": Labels, "prompts": PROMPTS, "n_noises": Several, "steps": Several, "truncation": Share},
    "evaluate": DRAWING
    | SOLVED
    | {
        "ckpt_path": Checkpoint | list[Path],
        "n": Annotated[int, Field(ge=10)],
        "cas": bool,
        "clip": Annotated[str, Field(min_length=1)] | None,
        "data_dir": Path,
    },
    "export": DRAWING
    | SOLVED
    | {
        "formats": Annotated[
            Format | Annotated[list[Format], Field(min_length=1)] | None,
            Field(description="some of onnx, int8, torch, tensorrt, such as formats=[onnx,int8]"),
        ],
        "calibration": Annotated[int, Field(ge=1, le=100_000)],
        "license": Annotated[str, Field(min_length=1, description="a name such as MIT")],
        "latency": bool,
        "compile": bool,
    },
    "serve": WITH_MODEL
    | SOLVED
    | {
        "host": Annotated[str, Field(min_length=1, description="an address of this machine such as 127.0.0.1")],
        "port": Annotated[
            int, Field(ge=0, le=65535, description="a number from 1 to 65535, or 0 for any that is free")
        ],
        "max_images": Count,
        "queue": Count,
        "batch": Count,
        "threads": Count | None,
        "rate": Seconds | None,
        "timeout": Seconds,
        "grace": Seconds,
        "proxies": Annotated[list[str], Field(description="a list of addresses such as proxies=[10.0.0.1]")] | None,
        "origins": Annotated[list[str], Field(min_length=1, description=SITES)] | None,
    },
    "report": ANY_VERB
    | {
        "runs": Annotated[
            Folder | Annotated[list[Folder], Field(min_length=1)],
            Field(description="a run folder, a list such as runs=[a,b], a quoted pattern or last"),
        ],
        "out": Annotated[Path, Field(min_length=1, description="a file such as report.html")] | None,
    },
}


def check_keys(config: DictConfig) -> None:
    """Refuses a value that one of the verb's own keys cannot have, with a UserError."""
    for key, hint in KEYS[config.task].items():
        value = config[key]
        check(key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, hint)
