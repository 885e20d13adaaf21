"""Settings from `.env`. Neither torch nor Hydra is needed for it."""

import codecs
import os
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from src.errors import UserError


def read_env_file(path: Path) -> None:
    """Puts the variables of a `.env` file into the environment, except those that are set there already.

    The file is UTF-8, or as editors on Windows save it: UTF-16, or with a byte order mark. It need not exist.
    `DATA_DIR` and W&B's variables count as not set where they are empty.

    Raises:
        UserError: the file cannot be read, or a line is not NAME=value.
    """
    try:
        text = ""
        if path.is_file():
            content = path.read_bytes()
            is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has null bytes")
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise UserError(f"{path} cannot be read ({error}): save it as UTF-8 text of NAME=value lines") from error
    for line in parse_stream(StringIO(text)):
        if line.error:
            raise UserError(f"{path}, line {line.original.line}, is not NAME=value: mend or delete it")
    for name, value in dotenv_values(stream=StringIO(text)).items():
        if value:
            os.environ.setdefault(name, value)
    for name in [name for name, value in os.environ.items() if not value]:
        if name == "DATA_DIR" or name.startswith("WANDB_"):
            del os.environ[name]
