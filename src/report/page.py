"""The page: one file that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.report.figures import dashes
from src.report.measures import IN_WORDS, count, duration
from src.report.one_run import about_one
from src.report.run_folder import Run
from src.report.several_runs import about_several
from src.report.verdict import STATUS_WORDS

FOLDER = Path(__file__).parent


def render(runs: Sequence[Run]) -> str:
    """The HTML about one run, or the comparison of several; the same runs give the same text.

    Whatever comes from a run folder is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"count": count, "duration": duration, "dashes": dashes}
    environment.globals |= {"status_words": STATUS_WORDS, "in_words": IN_WORDS}
    script, style = ((FOLDER / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        **(about_one(runs[0]) if len(runs) == 1 else about_several(runs)),
        script=script,
        style=style,
        # Were anything to slip through what is escaped, it could neither run nor load anything.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )
    return page.lstrip()
