"""Text in configurations and file names, in whichever form Unicode writes its umlauts."""

import os
import re
from pathlib import Path
from unicodedata import category, normalize

LONGEST = 80  # bytes of a folder's name: Windows has 260 characters for a whole path
# Names of devices on Windows, whatever their ending.
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³]|conin\$|conout\$)\s*(\..*)?", re.IGNORECASE)


def escaped(text: str) -> str:
    r"""The text as OmegaConf takes it literally: it would look up what stands in `${}`."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def same(a: str, b: str) -> bool:
    """Whether two texts read the same, whether `ö` is one character in them or an `o` with dots added."""
    return normalize("NFC", a) == normalize("NFC", b)


def existing(path: str) -> str:
    """The path with `~` expanded, in the Unicode form that the file system has."""
    path = os.path.expanduser(path)
    if path.isascii() or os.path.lexists(path):
        return path
    found = Path()
    for part in Path(path).parts:
        if not os.path.lexists(found / part):
            try:
                part = next(each.name for each in found.iterdir() if same(each.name, part))
            except (OSError, StopIteration):
                return path
        found /= part
    return str(found)


def safe_name(name: str) -> str:
    """The name as a file name that every system accepts."""
    unseen = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
    text = "".join("_" if c in '<>:"/\\|?*' or category(c) in unseen else c for c in normalize("NFC", name))
    text = text.encode()[:LONGEST].decode(errors="ignore").strip().rstrip(".").rstrip()
    # Hidden folders are left out where folders are data sets.
    return f"_{text}" if not text or text.startswith(".") or RESERVED.fullmatch(text) else text


def without_zeros(text: str) -> str | None:
    """A whole number without leading zeros; None where the text is not a whole number."""
    number = re.fullmatch(r"(-?)0*(\d+)", text, re.ASCII)
    return number[1] + number[2] if number else None
