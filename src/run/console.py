"""Output that never ends a run: what the terminal or the file behind it cannot show is replaced."""

import codecs
import os
import sys
import unicodedata

from rich.console import Console

# Of what rich, Lightning and we draw with; Braille is how rich's spinners turn.
PLAIN = dict(zip("•↑↓\u2013\u2014━╸╺\u00d7█", "*^v-----x#", strict=True))
PLAIN |= dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*")


def show_what_can_be_shown() -> None:
    """Makes stdout and stderr, here and in the processes that are started, replace what they cannot encode."""
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put its own
            stream.reconfigure(errors="readable")
    # Python's own word for it: theirs begin before they could register ours.
    os.environ["PYTHONIOENCODING"] = f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:replace"


def plain_console() -> Console:
    """A console that prints text as it is: paths and commands may hold brackets and colons, which are no markup."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encoding: `•` becomes `*`, `é` becomes `e`, and what has no such form `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = [PLAIN.get(c) or unicodedata.normalize("NFKD", c) for c in error.object[error.start : error.end]]
    return "".join(each.encode("ascii", "ignore").decode() or "?" for each in plain), error.end
