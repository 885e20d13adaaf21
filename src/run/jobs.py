"""What became of the jobs of a `-m` command: read from their folders, shown as a table, with the commands to go on."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from src.run.commands import next_command
from src.run.console import plain_console
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER

RECORD = "job.json"  # in a job's folder: where it runs, and how it ended
MAIN = ("label_accuracy", "worst_class_accuracy", "fd", "recall", "cas")  # what a table of jobs has room for
LISTED = 10  # jobs that did not finish whose commands are printed


class Job(NamedTuple):
    """One job of a sweep or a search."""

    number: int
    overrides: list[str]
    status: str  # finished | failed | stopped | killed | not begun
    error: str = ""  # why it failed, in one sentence
    folder: Path | None = None  # None: it has not begun
    metrics: dict[str, float] = {}  # the final ones; empty where it did not finish
    code: int | None = None  # its exit code; None: it was killed, or has not begun


def read_records(folder: Path) -> dict[int, tuple[Path, dict[str, Any]]]:
    """By the number of each job that has begun in a sweep's folder: its own folder, and its record."""
    found = {}
    for path in folder.rglob(RECORD):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[int(record["number"])] = path.parent, record
        except (OSError, ValueError, KeyError, TypeError):  # it goes while we look, or is somebody else's
            continue
    return found


def read_jobs(folder: Path, planned: Sequence[list[str]] | None = None) -> list[Job]:
    """The jobs in a sweep's folder by their number.

    Args:
        folder: the sweep's.
        planned: the overrides of each job that was to run; None: only those that began are known.
    """
    records = read_records(folder)
    jobs = []
    for number in sorted(records) if planned is None else range(len(planned)):
        if number not in records:
            jobs.append(Job(number, planned[number] if planned else [], "not begun"))
            continue
        place, record = records[number]
        code = record["code"]
        status = "killed" if code is None else {0: "finished", 1: "failed", 2: "failed"}.get(code, "stopped")
        metrics: dict[str, float] = {}
        results = place / "results.json"
        if status == "finished" and results.exists():
            metrics = json.loads(results.read_text(encoding="utf-8"))["metrics"]
        jobs.append(Job(number, record["overrides"], status, record["error"], place, metrics, code))
    return jobs


def varied(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between jobs."""
    values: dict[str, set[str]] = {}
    for job in overrides:
        for key, _, value in (each.partition("=") for each in job):
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def print_jobs(jobs: Sequence[Job], title: str = "", marked: int | None = None) -> None:
    """Prints a table of jobs: what sets each apart, how it ended, and its main metrics.

    Args:
        jobs: in the order of the rows.
        title: above the table.
        marked: the number of the job that gets a star, such as a search's best.
    """
    keys = varied([job.overrides for job in jobs])
    names = common_metrics([job.metrics for job in jobs if job.metrics])
    chosen = [name for name in names if name.partition("/")[2] in MAIN] or names[: len(MAIN)]
    table = Table("job", *keys, "status", *chosen, title=title or None)
    for job in jobs:
        values = dict(each.partition("=")[::2] for each in job.overrides)
        cells = [values.get(key, "") for key in keys]
        star = " *" if job.number == marked else ""
        table.add_row(f"{job.number}{star}", *cells, job.status, *(_shown(job.metrics.get(name)) for name in chosen))
    plain_console().print(table)


def print_spread(jobs: Sequence[Job], title: str = "") -> None:
    """Prints the mean of each final metric over jobs that differ in the seed alone, and how far they are spread.

    The spread is the standard deviation of a sample (n - 1), as in the report. `real images` is the mean of what as
    many real images get.
    """
    done = [job.metrics for job in jobs if job.metrics]
    table = Table("metric", "mean", "std", "lowest", "highest", "real images", title=title or None)
    for name in common_metrics(done):
        values = [metrics[name] for metrics in done if math.isfinite(metrics[name])]
        floors = [metrics[f"{name}_floor"] for metrics in done if f"{name}_floor" in metrics]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else None
            floor = statistics.fmean(floors) if floors else None
            shown = [statistics.fmean(values), std, min(values), max(values), floor]
            table.add_row(name, *map(_shown, shown))
    plain_console().print(table)


def common_metrics(found: Sequence[Mapping[str, float]]) -> list[str]:
    """The final metrics that all have, of the test where all were tested: those of quality, else all there are."""
    for split in ("test/", "val/"):
        names = [name for name in dict.fromkeys(name for each in found for name in each) if name.startswith(split)]
        names = [name for name in names if all(name in each for each in found)]
        ranked = [f"{split}{name}" for name in (*MAIN, *LOWER_IS_BETTER, *HIGHER_IS_BETTER)]
        if names:
            return list(dict.fromkeys(name for name in ranked if name in names)) or names
    return []


def print_unfinished(jobs: Sequence[Job], kept: Sequence[str] = ()) -> None:
    """Prints why jobs did not finish, and for each the command that goes on with it, in its own folder."""
    console = plain_console()
    unfinished = [job for job in jobs if job.status != "finished"]
    keys = varied([job.overrides for job in jobs])
    for job in unfinished[:LISTED]:
        which = " ".join(each for each in job.overrides if each.partition("=")[0] in keys)
        why = f": {job.error}" if job.error else ""
        console.print(f"{f'job {job.number}':<11} {which} {job.status}{why}")
        words = [*job.overrides, *kept]
        if any(each.startswith("hparams_search=") for each in words):
            words.append("hydra.mode=RUN")
        checkpoint = job.folder / "ckpts" / "last.ckpt" if job.folder else None
        if checkpoint and checkpoint.exists():
            words = [each for each in words if not each.startswith(("ckpt_path=", "init_from="))]
            words.append(f"ckpt_path={checkpoint}")
        if job.folder:
            words.append(f"hydra.run.dir={job.folder}")
        console.print(f"{'go on':<11} {next_command(*words)}")
    if len(unfinished) > LISTED:
        console.print(f"{'':<11} and {len(unfinished) - LISTED} more")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
