"""The verb `report`: a page about runs, from their folders alone, for people without an account."""

import glob
import hashlib
import logging
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from src.config.explain import explain_os
from src.errors import UserError
from src.report.measures import count
from src.report.page import render
from src.report.run_folder import Run, is_run, read_run
from src.run.commands import a_list, begun, next_command
from src.run.console import plain_console

log = logging.getLogger(__name__)

MAX_RUNS = 50


def report(config: DictConfig) -> Path:
    """Writes one HTML file about the runs that `config.runs` names, and says where it lies.

    Returns:
        The file.

    Raises:
        UserError: a folder is no run, nothing matches, or the file cannot be written.
    """
    folders = find_runs(config.runs, config.work_dir)
    runs = [read_run(folder) for folder in folders]
    page = render(runs)
    path = write(page, where_to(config.out, folders, config.work_dir))
    if incomplete := [in_short(run) for run in runs if run.missing or run.damaged]:
        log.warning("not everything is there, see the page: %s", "; ".join(incomplete))
    console = plain_console()
    size = path.stat().st_size / 1e6
    console.print(f"report      {path} ({count(len(runs), 'run')}, {size:.1f} MB)")
    console.print(f"open        {path.resolve().as_uri()}")
    if len(runs) == 1:
        compare = next_command("task=report", f"runs={a_list([folders[0], 'OTHER_RUN'])}")
        console.print(f"compare     {compare}")
    return path


def find_runs(wanted: Any, work_dir: str | Path) -> list[Path]:
    """The folders that `runs` names, each once, in that order; those of a pattern sorted.

    Args:
        wanted: a folder, a pattern with `*`, `?` or `[]`, `last`, or a list of these.
        work_dir: what they are relative to.

    Raises:
        UserError: one is no run, nothing matches, or there are too many.
    """
    listed = list(wanted) if isinstance(wanted, (list, ListConfig)) else [wanted]
    if not listed or not all(isinstance(each, str) and each for each in listed):
        raise UserError(
            f"runs must be a run folder, a list such as runs=[a,b], a quoted pattern or last, not {wanted!r}"
        )
    found: dict[Path, Path] = {}
    for each in listed:
        for folder in _named(each, Path(work_dir)):
            found.setdefault(folder.resolve(), folder)
    if len(found) > MAX_RUNS:
        raise UserError(f"runs names {len(found)} runs, more than a page can compare: name at most {MAX_RUNS}")
    return list(found.values())


def _named(each: str, work_dir: Path) -> list[Path]:
    logs = work_dir / "logs"
    path = Path(each)
    if each == "last":
        newest = max(_runs([*logs.glob("runs/*/*"), *logs.glob("multiruns/*/*/*")]), key=begun, default=None)
        if newest is None:
            raise UserError(f"runs=last finds no run in {logs}: train first, or type runs=FOLDER")
        return [newest]
    if (work_dir / path).exists() or not glob.has_magic(each):
        if not (work_dir / path).is_dir():
            if (work_dir / path).exists():
                raise UserError(f"runs={each} is a file: name the folder that it is in")
            raise UserError(f"runs={each} does not exist in {work_dir}: check the path, or type runs=last")
        return [work_dir / path]
    matches = sorted(work_dir / match for match in glob.iglob(str(path), root_dir=work_dir, recursive=True))
    runs = _runs(matches)
    if not runs:
        why = f"matches {count(len(matches), 'path')}, none of which is a run folder" if matches else "matches nothing"
        raise UserError(f"runs={each} {why}: type a pattern such as runs='logs/runs/*/*'")
    return runs


def _runs(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_dir() and is_run(path)]


def where_to(out: Any, folders: list[Path], work_dir: str | Path) -> Path:
    """The file to write.

    Raises:
        UserError: `out` is no name of an HTML file.
    """
    if out is None:
        if len(folders) == 1:
            return folders[0] / "report.html"
        # The same runs write the same file, and other runs another.
        names = "\n".join(str(folder.resolve()) for folder in folders)
        code = hashlib.sha256(names.encode("utf-8", errors="replace")).hexdigest()[:8]
        return Path(work_dir) / "logs" / f"report-{len(folders)}-runs-{code}.html"
    if not isinstance(out, str) or not out:
        raise UserError(f"out must be a file such as report.html, not {out!r}")
    path = Path(work_dir) / out
    if path.is_dir():
        return path / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={out} must end in .html, as the report is a web page: type out={out}.html")
    return path


def write(page: str, path: Path) -> Path:
    """Writes the page beside its place and then renames it: what is there is whole, old or new.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.unlink(missing_ok=True)
            # "x" follows no link that somebody else's run folder may hold under this name.
            with open(partial, "x", encoding="utf-8", newline="\n") as file:
                file.write(page)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"out: {explain_os(error, 'type another place with out=FILE.html')}") from error
    return path


def in_short(run: Run) -> str:
    """A run's name and what is wrong with its folder, in few words."""
    parts = [f"lacks {', '.join(run.missing)}"] if run.missing else []
    parts += [f"{count(len(run.damaged), 'thing')} damaged"] if run.damaged else []
    return f"{shlex.quote(run.name)} {' and has '.join(parts) if run.missing else 'has ' + parts[0]}"
