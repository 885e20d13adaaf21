"""The verb `report`: a page about runs, from their folders alone, for people without an account."""

import glob
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.errors import UserError
from src.report.measures import count
from src.report.page import render
from src.report.run_folder import is_run, read_run
from src.run.commands import a_list, next_command, run_folders
from src.run.console import plain_console
from src.run.files import atomic_write

log = logging.getLogger(__name__)

MAX_RUNS = 50


def report(config: DictConfig) -> Path:
    """Writes one HTML file about the runs that `config.runs` names, and prints where it is.

    Returns:
        The file.

    Raises:
        UserError: a folder is not a run, nothing matches, or the file cannot be written.
    """
    folders = find_runs(config.runs, config.work_dir)
    path = where_to(config.out, folders, config.work_dir)
    runs = [read_run(folder) for folder in folders]
    write(render(runs), path)
    if wrong := [
        f"{run.name} ({', '.join([*run.missing, *run.damaged])})" for run in runs if run.missing or run.damaged
    ]:
        log.warning("not everything is there, see the page: %s", "; ".join(wrong))
    console = plain_console()
    console.print(f"report      {path} ({count(len(runs), 'run')}, {path.stat().st_size / 1e6:.1f} MB)")
    console.print(f"open        {path.resolve().as_uri()}")
    if len(runs) == 1:
        compare = next_command("task=report", f"runs={a_list([folders[0], 'OTHER_RUN'])}")
        console.print(f"compare     {compare}")
    return path


def find_runs(wanted: str | Sequence[str], work_dir: str | Path) -> list[Path]:
    """The folders that `runs` names, each once, in that order; those of a pattern sorted.

    Args:
        wanted: a folder, a pattern with `*`, `?` or `[]`, `last`, or a list of these.
        work_dir: what they are relative to.

    Raises:
        UserError: one is not a run, nothing matches, or there are too many.
    """
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    found: dict[Path, Path] = {}
    for each in listed:
        for folder in _named(each, Path(work_dir)):
            found.setdefault(folder.resolve(), folder)
    if len(found) > MAX_RUNS:
        raise UserError(f"runs names {len(found)} runs, more than a page can compare: name at most {MAX_RUNS}")
    return list(found.values())


def _named(each: str, work_dir: Path) -> list[Path]:
    path = work_dir / each
    if each == "last":
        runs = [folder for folder in run_folders(work_dir) if is_run(folder)]
        if not runs:
            raise UserError(f"runs=last finds no run in {work_dir / 'logs'}: train first, or type runs=FOLDER")
        return runs[-1:]
    if not path.exists() and glob.has_magic(each):
        matches = sorted(work_dir / match for match in glob.iglob(each, root_dir=work_dir, recursive=True))
        runs = [match for match in matches if is_run(match)]
        if not runs:
            why = (
                f"matches {count(len(matches), 'path')}, none of which is a run folder"
                if matches
                else "matches nothing"
            )
            raise UserError(f"runs={each} {why}: type a pattern such as runs='logs/runs/*/*'")
        return runs
    if not path.exists():
        raise UserError(f"runs={each} does not exist in {work_dir}: check the path, or type runs=last")
    if not path.is_dir():
        raise UserError(f"runs={each} is a file: name the folder that it is in")
    if not is_run(path):
        for below in ("*", "*/*", "*/*/*"):
            if any(map(is_run, path.glob(below))):
                raise UserError(f"{path} holds runs, but is not one itself: type runs='{path}/{below}'")
        raise UserError(f"{path} is not a run folder, as it has no run.json: name one such as logs/runs/<date>/<time>")
    return [path]


def where_to(out: str | None, folders: list[Path], work_dir: str | Path) -> Path:
    """The file to write.

    Raises:
        UserError: `out` is not the name of an HTML file.
    """
    if out is None and len(folders) == 1:
        return folders[0] / "report.html"
    if out is None:
        # The same runs write the same file, and other runs another.
        names = "\n".join(str(folder.resolve()) for folder in folders)
        code = hashlib.sha256(names.encode("utf-8", errors="replace")).hexdigest()[:8]
        return Path(work_dir) / "logs" / f"report-{len(folders)}-runs-{code}.html"
    path = Path(work_dir) / out
    if path.is_dir():
        return path / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={out} must end in .html, as the report is a web page: type out={out}.html")
    return path


def write(page: str, path: Path) -> None:
    """Writes the page.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        # "x" does not follow a link that somebody else's run folder may hold under this name.
        with open(partial, "x", encoding="utf-8", newline="\n") as file:
            file.write(page)
