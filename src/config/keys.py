"""The keys of each verb and what their values may be: what is typed is read by these types, and a test compares them
with configs/. The keys of a run's parts have the types that the parts' constructors state.
"""

from pathlib import Path
from typing import Any, Literal

Paths = Path | list[Path]
Labels = int | str | list[int | str] | None
Weights = Literal["ema", "raw"]

DRAWS: dict[str, Any] = {
    "task": str,
    "work_dir": Path,
    "ckpt_path": Path,
    "weights": Weights,
    "trusted_packages": list[str],
}

KEYS: dict[str, dict[str, Any]] = {
    "train": {
        "task": str,
        "name": str | None,
        "group": str | None,
        "tags": list[str],
        "notes": str | None,
        "seed": int,
        "work_dir": Path,
        "data_dir": Path,
        "ckpt_path": Path | None,
        "init_from": Path | None,
        "test_after_training": bool,
        "optimized_metric": str | None,
        "print_config": bool,
        "ignore_warnings": bool,
        "trusted_packages": list[str],
    },
    "sample": DRAWS
    | {
        "labels": Labels,
        "n_per_label": int,
        "seed": int,
        "truncation": float,
        "batch_size": int,
        "png": bool,
        "out": Path,
    },
    "interpolate": DRAWS
    | {"labels": Labels, "n_noises": int, "steps": int, "seed": int, "truncation": float, "out": Path},
    "evaluate": DRAWS | {"ckpt_path": Paths, "n": int, "cas": bool, "out": Path, "seed": int, "data_dir": Path},
    "export": DRAWS
    | {
        "formats": str | list[str] | None,
        "calibration": int,
        "seed": int,
        "license": str,
        "latency": bool,
        "compile": bool,
        "out": Path,
    },
    "serve": DRAWS
    | {
        "host": str,
        "port": int,
        "max_images": int,
        "queue": int,
        "batch": int,
        "threads": int | None,
        "rate": float | None,
        "timeout": float,
        "grace": float,
        "proxies": list[str] | None,
        "origins": list[str] | None,
    },
    "report": {"task": str, "work_dir": Path, "runs": Paths, "out": Path | None},
}
