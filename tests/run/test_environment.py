"""What a run does where the machine, the container or the cluster lacks something."""

import getpass
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.run.environment import replace_home
from tests.conftest import QUICK, ROOT

NOBODY = 54321  # a user whom the system does not know, as with `docker run --user`
BELOW_A_FILE = "/dev/null/home"  # where not even root can write


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, which a test may change."""
    names = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR")
    copy = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", copy)
    monkeypatch.setattr(tempfile, "tempdir", None)
    return copy


def test_a_home_that_cannot_be_written_is_replaced(environ: dict[str, str], tmp_path: Path) -> None:
    environ["HOME"] = BELOW_A_FILE
    environ["XDG_DATA_HOME"] = str(tmp_path / "own")
    replace_home(tmp_path / "other")
    assert environ["XDG_CACHE_HOME"] == str(tmp_path / "other" / ".cache")
    assert environ["XDG_CONFIG_HOME"] == str(tmp_path / "other" / ".config")
    assert environ["XDG_DATA_HOME"] == str(tmp_path / "own")  # chosen by the user, and can be written


@pytest.mark.parametrize("user_is_known", [True, False])
def test_no_home_in_the_environment(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user_is_known: bool
) -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    if not user_is_known:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        home = str(tmp_path / "other")
    environ.pop("HOME", None)
    replace_home(tmp_path / "other")
    assert environ["HOME"] == home  # wandb's own process looks nowhere else


def test_a_home_that_can_be_written_stays(environ: dict[str, str], tmp_path: Path) -> None:
    environ["HOME"] = str(tmp_path)
    before = dict(environ)
    replace_home(tmp_path / "other")
    assert environ == before
    assert not list(tmp_path.iterdir())


def test_settings_that_can_be_read_are_still_read(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".config").mkdir()
    environ["HOME"] = str(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    replace_home(Path("/other"))
    assert environ["XDG_CACHE_HOME"] == "/other/.cache" and "XDG_CONFIG_HOME" not in environ


def test_a_temporary_folder_that_cannot_be_written_is_replaced(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ["TMPDIR"] = BELOW_A_FILE
    replace_home(tmp_path)
    assert environ["TMPDIR"] == tempfile.gettempdir() != BELOW_A_FILE

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [BELOW_A_FILE])  # there is none at all
    replace_home(tmp_path)
    assert tempfile.gettempdir() == str(tmp_path / "tmp")


def test_a_user_without_a_name_gets_a_number(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        environ.pop(name, None)
    replace_home(Path("/other"))
    assert getpass.getuser() == str(os.getuid())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_run_of_nobody_without_a_home(open_folder: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py")]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
        if subprocess.run([*as_nobody, "task=?"], capture_output=True).returncode == 2:  # may read this project
            command = as_nobody
    typed = [*QUICK, "logger=wandb", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.quality=null"]
    typed += ["callbacks.model_checkpoint.monitor=null", "test_after_training=false"]
    given = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME", "USERNAME")}

    done = subprocess.run(
        [*command, *typed],
        cwd=open_folder,
        env=given | {"HOME": BELOW_A_FILE, "TMPDIR": BELOW_A_FILE},
        capture_output=True,
        encoding="utf-8",
    )

    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stderr and "INFO" not in done.stderr  # wandb's own log went to its file
    assert sorted(path.name for path in open_folder.iterdir()) == ["logs"]
    assert {path.name for path in (open_folder / "logs").iterdir()} == {"runs", ".home"}
