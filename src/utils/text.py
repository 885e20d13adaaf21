"""Text that means itself: in configurations, in file names, and in either form in which Unicode writes an umlaut."""

import os
import re
from pathlib import Path
from unicodedata import normalize


def escaped(text: str) -> str:
    r"""Text as a value of a configuration that is literal: OmegaConf would look up what stands in `${}`."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def same(a: str, b: str) -> bool:
    """Whether two texts read the same, whether `ö` is one character in them or an `o` with dots added."""
    return normalize("NFC", a) == normalize("NFC", b)


def existing(path: str) -> str:
    """The path as the file system has it, where that differs in its Unicode form alone; otherwise `path`."""
    if path.isascii() or os.path.lexists(os.path.expanduser(path)):
        return path
    parts = Path(path).expanduser().parts
    found = Path(parts[0] if Path(parts[0]).is_absolute() else ".")
    for part in parts[1:] if Path(parts[0]).is_absolute() else parts:
        if not os.path.lexists(found / part):
            try:
                part = next(each.name for each in found.iterdir() if same(each.name, part))
            except (OSError, StopIteration):
                return path
        found /= part
    return str(found)
