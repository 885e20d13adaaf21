"""The verb `report`: a page about runs, from their folders alone, for people without an account."""

import base64
import glob
import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import DictConfig

from src.errors import UserError
from src.report.measures import count
from src.report.one_run import about_one
from src.report.run_folder import Run, is_run
from src.report.several_runs import about_several
from src.run.commands import a_list, next_command, run_folders
from src.run.console import plain_console
from src.run.files import atomic_write

log = logging.getLogger(__name__)


def report(config: DictConfig) -> Path:
    """Writes one HTML file about the runs that `config.runs` names, prints where it is, and returns its path.

    Raises:
        UserError: a folder is not a run, nothing matches, or the file cannot be written.
    """
    folders = find_runs(config.runs, config.work_dir)
    if config.out is not None:
        path = Path(config.work_dir, config.out)
        if path.is_dir():
            path = path / "report.html"
        elif path.suffix.lower() not in (".html", ".htm"):
            raise UserError(
                f"out={config.out} must end in .html, as the report is a web page: type out={config.out}.html"
            )
    elif len(folders) == 1:
        path = folders[0] / "report.html"
    else:
        # The same runs write the same file, and other runs another.
        names = "\n".join(str(folder.resolve()) for folder in folders)
        code = hashlib.sha256(names.encode("utf-8", errors="replace")).hexdigest()[:8]
        path = Path(config.work_dir, "logs", f"report-{len(folders)}-runs-{code}.html")
    runs = [Run(folder) for folder in folders]
    page = render(runs)
    with atomic_write(path) as unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        # "x" does not follow a link that somebody else's run folder may hold under this name.
        with open(unfinished, "x", encoding="utf-8", newline="\n") as file:
            file.write(page)
    wrong = [(run.name, ", ".join([*run.missing, *run.damaged])) for run in runs if run.missing or run.damaged]
    if wrong:
        log.warning("not everything is there, see the page: %s", "; ".join(f"{name} ({what})" for name, what in wrong))
    console = plain_console()
    console.print(f"report      {path} ({count(len(runs), 'run')}, {path.stat().st_size / 1e6:.1f} MB)")
    console.print(f"open        {path.resolve().as_uri()}")
    if len(runs) == 1:
        compare = next_command("task=report", f"runs={a_list([folders[0], 'OTHER_RUN'])}")
        console.print(f"compare     {compare}")
    return path


def find_runs(wanted: str | Sequence[str], work_dir: str | Path) -> list[Path]:
    """The folders that `wanted` names, each once: a folder, a pattern, `last`, or a list of these."""
    found: dict[Path, Path] = {}
    for each in [wanted] if isinstance(wanted, str) else wanted:
        path = Path(work_dir, each)
        if each == "last":
            runs = [folder for folder in run_folders(work_dir) if is_run(folder)][-1:]
            if not runs:
                raise UserError(f"runs=last finds no run in {path.parent / 'logs'}: train first, or type runs=FOLDER")
        elif is_run(path):
            runs = [path]
        elif not path.exists() and glob.has_magic(each):
            matches = sorted(Path(work_dir, match) for match in glob.iglob(each, root_dir=work_dir, recursive=True))
            runs = [match for match in matches if is_run(match)]
            if not runs:
                paths = f"{count(len(matches), 'path')}, none of which is a run folder" if matches else "nothing"
                raise UserError(f"runs={each} matches {paths}: type a pattern such as runs='logs/runs/*/*'")
        elif not path.exists():
            raise UserError(f"runs={each} does not exist in {work_dir}: check the path, or type runs=last")
        elif not path.is_dir():
            raise UserError(f"runs={each} is a file: name the folder that it is in")
        else:
            for below in ("*", "*/*", "*/*/*"):
                if any(map(is_run, path.glob(below))):
                    raise UserError(f"{path} holds runs, but is not one itself: type runs='{path}/{below}'")
            raise UserError(
                f"{path} is not a run folder, as it has no run.json: name one such as logs/runs/<date>/<time>"
            )
        for folder in runs:
            found.setdefault(folder.resolve(), folder)
    if len(found) > 50:
        raise UserError(f"runs names {len(found)} runs, more than a page can compare: name at most 50")
    return list(found.values())


def render(runs: Sequence[Run]) -> str:
    """The HTML about one run, or the comparison of several; the same runs give the same text.

    It needs nothing but itself, and escapes whatever comes from a run folder.
    """
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["yaml"] = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=100)
    about = about_one(runs[0]) if len(runs) == 1 else about_several(runs)
    strips = [strip for strip in about["strips"] if strip["frames"]]
    epochs = sorted({epoch for strip in strips for epoch in strip["frames"]})
    script = (here / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        about,
        strips=strips,
        stops=epochs if len(epochs) > 1 else [],  # of the slider
        count=count,
        script=script,
        style=(here / "report.css").read_text(encoding="utf-8"),
        # Were anything to slip through what is escaped, it could neither run nor load anything.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )
    return page.lstrip()
