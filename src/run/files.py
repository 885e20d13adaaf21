"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.config.explain import explain_os
from src.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name when the block has ended well.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(explain_os(error, "choose another folder with out=DIR")) from error
