"""Files: written whole or not at all, and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.config.explain import explain_os
from src.errors import UserError


@contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name when the block has ended well.

    Until then its name has the `ending` by which libraries choose the format.
    """
    partial = path.with_name(f".{path.name}.partial{ending}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A verb's output: as `replacing`, with the ending of `path`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(path, path.suffix) as partial:
            yield partial
    except OSError as error:
        raise UserError(explain_os(error, "choose another folder with out=DIR")) from error


def sha256_of(path: Path) -> str:
    """A file's checksum, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
