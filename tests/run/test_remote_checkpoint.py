"""Checkpoints at addresses and in W&B artifacts, fetched from a server of the test's own."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from src.errors import UserError
from src.run import remote_checkpoint
from src.run.commands import find_checkpoint
from tests.conftest import Typed


class Server:
    """Serves `files`, by path: status, headers, content. It counts what it sends, and knows ETags."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.sent: list[tuple[str, int]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, content = owner.files.get(self.path, (404, {}, b"<html>not found</html>"))
                if self.headers.get("If-None-Match", "none") == headers.get("ETag"):
                    status, content = 304, b""
                owner.sent.append((self.path, status))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def put(self, path: str, content: bytes, status: int = 200, **headers: str) -> str:
        self.files[path] = status, {name.replace("_", "-"): value for name, value in headers.items()}, content
        return self.url + path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_file_is_fetched_once_until_it_changes(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.put("/runs/best.ckpt?v=1", b"first", ETag='"1"')
    path = find_checkpoint(url, tmp_path)
    assert path.read_bytes() == b"first" and path.name == "best.ckpt"
    assert hashlib.sha256(b"first").hexdigest() in capsys.readouterr().out

    assert find_checkpoint(url, tmp_path) == path
    server.put("/runs/best.ckpt?v=1", b"second", ETag='"2"')
    assert find_checkpoint(url, tmp_path).read_bytes() == b"second"
    assert [status for _, status in server.sent] == [200, 304, 200]
    assert [each.suffix for each in path.parent.iterdir() if each.name != "etag"] == [".ckpt"]


def test_an_address_may_be_typed_as_browsers_show_it(server: Server, tmp_path: Path) -> None:
    server.put("/gr%C3%B6%C3%9Fe%201.ckpt?a=b%20c", b"found")
    for typed in ("/größe 1.ckpt?a=b c", "/gr%C3%B6%C3%9Fe%201.ckpt?a=b%20c"):
        path = find_checkpoint(server.url + typed, tmp_path)
        assert path.read_bytes() == b"found" and path.name == "größe_1.ckpt"


def test_its_ending_is_that_of_the_content(server: Server, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "checkpoint")
    np.savez(tmp_path / "samples.npz", images=np.zeros(3))
    for name, content, ending in [
        ("/download?id=1", (tmp_path / "checkpoint").read_bytes(), ".ckpt"),
        ("/download?id=2", (tmp_path / "samples.npz").read_bytes(), ".npz"),
        ("/download?id=3", b"\x08\x0a\x12\x07pytorch", ".onnx"),
        ("/generator.ONNX", b"anything", ".onnx"),
    ]:
        assert find_checkpoint(server.put(name, content), tmp_path).suffix == ending
    named = server.put("/get", b"x", Content_Disposition='attachment; filename="../../my model.onnx"')
    path = find_checkpoint(named, tmp_path)
    assert path.name == "my_model.onnx" and path.is_relative_to(tmp_path / "logs" / ".checkpoints")


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/missing.ckpt", None, "answers 404 (there is no such file): check the address"),
        ("/secret.ckpt", (401, {}, b""), "answers 401 (it asks who you are)"),
        ("/broken.ckpt", (503, {}, b""), "answers 503"),
        ("/page", (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"), "is a web page, not a file"),
        ("/other", (200, {}, b"\n <!DOCTYPE html>"), "is a web page, not a file"),
        ("/away.ckpt", (302, {"Location": "file:///etc/passwd"}, b""), "file:///etc/passwd"),
        ("/ftp.ckpt", (301, {"Location": "ftp://127.0.0.1/x"}, b""), "leads to ftp://127.0.0.1/x"),
        ("/cut.ckpt", (200, {"Content-Length": "99"}, b"short"), "ended after 5 of 99 bytes"),
        ("/large.ckpt", (200, {}, b"x" * 2000), "is larger than"),
        ("/liar.ckpt", (200, {"Content-Length": "99999"}, b""), "is larger than"),
    ],
)
def test_what_cannot_be_fetched(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    answer: tuple[int, dict[str, str], bytes] | None,
    says: str,
) -> None:
    monkeypatch.setattr(remote_checkpoint, "LARGEST", 1000)
    if answer:
        server.files[path] = answer
    with pytest.raises(UserError) as error:
        find_checkpoint(server.url + path, tmp_path)
    assert f"ckpt_path={server.url}{path}" in str(error.value) and says in str(error.value)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.put("/there.ckpt", b"found")
    url = server.put("/here.ckpt", b"", 302, Location="/there.ckpt")
    assert find_checkpoint(url, tmp_path).read_bytes() == b"found"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:9/x.ckpt", "cannot be fetched"),
        ("https://", "names no server"),
        ("https://me:secret@example.org/x.ckpt", "with a password"),
    ],
)
def test_addresses_that_lead_nowhere(tmp_path: Path, address: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        find_checkpoint(address, tmp_path)
    assert "secret" not in str(error.value)


def test_every_verb_takes_an_address_and_trusts_it_no_more(
    server: Server, checkpoint: Path, typed: Typed, tmp_path: Path
) -> None:
    good = server.put("/good.ckpt", checkpoint.read_bytes())
    bad = server.put("/bad.ckpt", b"\x80\x04\x95 not weights")
    assert typed("task=sample", f"ckpt_path={good}", "n_per_label=1", f"out={tmp_path}") == (0, "")
    code, stderr = typed("task=sample", f"ckpt_path={bad}")
    assert code == 2 and "bad.ckpt" in stderr and "choose another" in stderr


def artifact_of(files: dict[str, bytes]) -> Any:
    """What `wandb.Api().artifact(...)` returns, as far as it is used."""

    def download(name: str, root: str) -> str:
        path = Path(root) / name
        path.write_bytes(files[name])
        return str(path)

    entries = {name: SimpleNamespace(size=len(files[name]), download=partial(download, name)) for name in files}
    return SimpleNamespace(digest="abc", manifest=SimpleNamespace(entries=entries))


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name not in found:
            raise wandb.errors.CommError(f"artifact membership '{name}' not found\nmore")
        return found[name]

    monkeypatch.setattr(wandb, "Api", lambda timeout: SimpleNamespace(artifact=find))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return found


def test_an_artifact_is_fetched_once(artifacts: dict[str, Any], tmp_path: Path) -> None:
    artifacts["me/digits/model-1:best"] = artifacts["me/digits/model-1:v3"] = artifact_of({"model.ckpt": b"weights"})
    path = find_checkpoint("wandb:me/digits/model-1:best", tmp_path)
    assert path.read_bytes() == b"weights"
    del artifacts["me/digits/model-1:v3"].manifest.entries["model.ckpt"].download
    assert find_checkpoint("wandb:me/digits/model-1:v3", tmp_path) == path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wandb:me/digits/model-1:none", "artifact membership 'me/digits/model-1:none' not found): check its name"),
        ("wandb:me/digits/model-1", "must be wandb:ENTITY/PROJECT/NAME:ALIAS"),
        ("wandb:", "must be wandb:ENTITY/PROJECT/NAME:ALIAS"),
        ("wandb:me/digits/code:v0", "holds a.py, b.py, but no model.ckpt: choose another artifact"),
    ],
)
def test_artifacts_that_cannot_be_meant(artifacts: dict[str, Any], tmp_path: Path, name: str, says: str) -> None:
    artifacts["me/digits/code:v0"] = artifact_of({"b.py": b"", "a.py": b""})
    with pytest.raises(UserError) as error:
        find_checkpoint(name, tmp_path)
    assert f"ckpt_path={name}" in str(error.value) and says in str(error.value)


def test_an_artifact_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a key of W&B: set WANDB_API_KEY"):
        find_checkpoint("wandb:me/digits/model-1:best", tmp_path)
