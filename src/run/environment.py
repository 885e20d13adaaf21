"""Prepares the process for a run: folders that libraries can write, warnings. No torch is needed for it."""

import getpass
import logging
import netrc
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from src.config.help import CONFIGS


def replace_home(folder: Path) -> None:
    """Where HOME or TMPDIR cannot be written, as with `docker run --user`, libraries write into `folder` instead."""
    home = os.path.expanduser("~")
    if home == "~":  # no HOME, and the system does not know the user
        home = str(folder)
    os.environ.setdefault("HOME", home)  # wandb's process looks nowhere else
    # Where libraries keep what they want to find again (wandb, torch, matplotlib, Hugging Face, MLflow).
    kept = {"XDG_CACHE_HOME": ".cache", "XDG_DATA_HOME": ".local/share", "XDG_CONFIG_HOME": ".config"}
    for variable, usual in kept.items():
        place = Path(os.environ.get(variable) or Path(home, usual))
        if not can_write(place) and not (variable == "XDG_CONFIG_HOME" and os.access(place, os.R_OK)):
            os.environ[variable] = str(folder / usual)  # settings that can be read are still read
    try:
        getpass.getuser()  # torch.compile, MLflow and matplotlib ask for it
    except (KeyError, OSError):  # what it raises up to Python 3.12, and from 3.13 on
        os.environ["USER"] = str(os.getuid())
    try:
        temporary = tempfile.gettempdir()  # passes over a TMPDIR that cannot be written; other programs do not
    except OSError:
        temporary = str(folder / "tmp")
        os.makedirs(temporary, exist_ok=True)
        tempfile.tempdir = temporary
    if os.environ.get("TMPDIR") not in (None, temporary) or not can_write(Path("/tmp")):
        os.environ["TMPDIR"] = temporary


def can_write(folder: Path) -> bool:
    """Whether a file can be written into a folder that is there, or that can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def quieten() -> None:
    """Hides the libraries' warnings and tips; our own go through the logger or the console."""
    import pytorch_lightning  # noqa: F401  (it sets its loggers' levels when it is imported)

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def prefer_our_options() -> None:
    """Forgets what plugins register under the names of our files in configs/hydra.

    Hydra would merge the two, and says at length that it will not do so in future.
    """
    Plugins.instance()  # registers them
    for path in (CONFIGS / "hydra").rglob("*.yaml"):
        theirs: Any = ConfigStore.instance().repo
        for group in path.parent.relative_to(CONFIGS).parts:
            theirs = theirs.get(group, {})
        theirs.pop(path.name, None)


def has_wandb_key(url: str) -> bool:
    """Whether wandb would find a key, in the environment or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))
    try:
        return netrc.netrc(path).authenticators(urlparse(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
