"""Output that never ends a run: characters that the terminal or a file cannot show are replaced."""

import codecs
import os
import stat
import sys
import unicodedata

from rich.console import Console

# What rich, Lightning and we draw with; rich's spinners are Braille.
PLAIN = dict(zip("•↑↓\u2013\u2014━╸╺\u00d7█", "*^v-----x#", strict=True))
PLAIN |= dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*")


def show_what_can_be_shown() -> None:
    """Makes stdout and stderr, here and in the processes that are started, replace what they cannot encode."""
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put its own
            stream.reconfigure(errors="readable")
    # Python's own error handler, as those processes print before they could register ours.
    os.environ["PYTHONIOENCODING"] = f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:replace"


def leave_terminal() -> None:
    """After SIGHUP: what is printed goes nowhere if the terminal has gone, where writing to it would fail."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for number in (1, 2):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):  # it was a terminal
                os.dup2(nowhere.fileno(), number)


def plain_console() -> Console:
    """A console that prints text as it is: brackets and colons in paths and commands are not markup."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encoding: `•` becomes `*`, `é` becomes `e`, and other characters `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = [PLAIN.get(c) or unicodedata.normalize("NFKD", c) for c in error.object[error.start : error.end]]
    return "".join(each.encode("ascii", "ignore").decode() or "?" for each in plain), error.end
