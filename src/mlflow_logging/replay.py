"""What MLflow keeps of a run: sent as it comes, or afterwards from the run folder.

`MLFLOW_TRACKING_URI=URI python -m src.mlflow_logging.replay RUN_FOLDER RUN_ID` completes a run of a server that was
down while the run was trained.
"""

import json
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.run.run_record import read_rows

MAX_VALUE, MAX_KEY = 6000, 250  # characters; MLflow cuts or refuses more
WHOLE_VALUE = " ... (whole in config.yaml)"


def clean(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)[:MAX_KEY]


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each value with the path to it, such as `model/optimizer_g/lr`."""
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}/")
        else:
            text = str(value)
            is_long = len(text) > MAX_VALUE
            yield clean(prefix + name), text[: MAX_VALUE - len(WHOLE_VALUE)] + WHOLE_VALUE if is_long else text


def send_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """MLflow takes a parameter once: a resumed run keeps its first values."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    client.log_batch(run_id, params=[Param(key, value) for key, value in flat(params) if key not in known])


def points(metrics: Mapping[str, Any], step: int | None, seconds: float) -> list[Any]:
    """Numbers as MLflow's metrics, at `step` batches and at `seconds` since 1970. Text and tables are left out."""
    from mlflow.entities import Metric

    return [
        Metric(clean(name), math.nan if value is None else float(value), int(1000 * seconds), step or 0)
        for name, value in metrics.items()
        if not isinstance(value, (str, list))
    ]


def complete(
    client: Any,
    run_id: str,
    run_dir: Path,
    status: str,
    checkpoints: bool,
    missed: Collection[str] = ("record", "files"),
) -> None:
    """Ends a run: sends what MLflow missed, how the run ended, and the files that the run folder has in the end.

    Args:
        client: MLflow's client of the server, which has the run `run_id`.
        status: `finished`, `failed` or another word for `KILLED`.
        missed: `record`: parameters and metrics; `files`: the configuration and pictures.
    """
    about = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    params = about["config"] | {key: about[key] for key in ("command", "commit", "machine", "data")}
    if "record" in missed:
        send_params(client, run_id, params)
        run = client.get_run(run_id)
        known = {(name, each.step) for name in run.data.metrics for each in client.get_metric_history(run_id, name)}
        found = []
        for row in read_rows(run_dir / "metrics.jsonl"):
            step, epoch, seconds = (row.pop(name) for name in ("step", "epoch", "seconds"))
            at = run.info.start_time / 1000 + seconds
            if numbers := points(row, step, at):
                found += numbers + points({"epoch": epoch}, step, at)
        client.log_batch(run_id, metrics=[each for each in found if (each.key, each.step) not in known])
    client.set_terminated(
        run_id, {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
    )

    names = ("config_tree.txt", "run.json", "metrics.jsonl", "results.json", "diff.patch", "run.log")
    files: list[tuple[Path, str | None]] = [(run_dir / name, None) for name in names]
    if "files" in missed:
        client.log_dict(run_id, params, "config.yaml")
        for path in (run_dir / "samples").glob("*.png"):  # in the folders that src/callbacks/ names
            files.append((path, "gen_imgs_raw" if path.name.startswith("raw_") else "gen_imgs"))
        for path in (run_dir / "pictures").rglob("*.png"):
            files.append((path, clean(path.relative_to(run_dir / "pictures").parts[0].removesuffix(".png"))))
    if checkpoints:
        files += [(path, "ckpts") for path in sorted((run_dir / "ckpts").glob("*.ckpt"))]
    for path, folder in files:
        if path.is_file():
            client.log_artifact(run_id, str(path), folder)


if __name__ == "__main__":
    from mlflow.tracking import MlflowClient

    folder = Path(sys.argv[1])
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = all(part.get("checkpoints", True) for part in record["config"]["logger"].values() if part)
    complete(MlflowClient(), sys.argv[2], folder, record["status"], kept)
