"""A checkpoint at an address or in a W&B artifact is fetched once, and then is a file like any other."""

import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from string import punctuation
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from rich.progress import wrap_file

from src.config.explain import explain_os
from src.errors import UserError
from src.run.console import plain_console
from src.run.environment import has_wandb_key
from src.run.files import sha256_of

log = logging.getLogger(__name__)

WANDB = "wandb:"
ADDRESSES = ("https://", "http://")
ENDINGS = (".ckpt", ".onnx", ".npz")
ANSWERS = {401: "it asks who you are", 403: "you may not read it", 404: "there is no such file", 410: "it is gone"}
TIMEOUT_S = 30.0  # without a byte
LARGEST = 8 * 2**30  # bytes of a file


def fetch(ckpt_path: str, work_dir: str | Path) -> Path:
    """The file at `https://...` or `wandb:ENTITY/PROJECT/NAME:ALIAS`, kept in `logs/.checkpoints/` of `work_dir`."""
    cache = Path(work_dir) / "logs" / ".checkpoints"
    fetcher = _from_wandb if ckpt_path.lower().startswith(WANDB) else _from_address
    try:
        path = fetcher(ckpt_path, cache)
        sha256 = sha256_of(path)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise UserError(
            f"ckpt_path={ckpt_path} cannot be fetched ({why}): check the address and the network"
        ) from error
    except OSError as error:
        raise UserError(
            f"ckpt_path={ckpt_path}: {explain_os(error, 'choose another folder with work_dir=DIR')}"
        ) from error
    plain_console().print(f"fetched     {path} (sha256 {sha256})")
    return path


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web addresses alone, and never from an encrypted connection to an open one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> Any:
        allowed = ADDRESSES[:1] if req.full_url.lower().startswith(ADDRESSES[0]) else ADDRESSES
        if not newurl.lower().startswith(allowed):
            raise urllib.error.HTTPError(newurl, code, f"it leads to {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _from_address(address: str, cache: Path) -> Path:
    parts = urlsplit(address)
    if not parts.hostname:
        raise UserError(f"ckpt_path={address} names no server: type https://SERVER/FILE")
    if parts.username or parts.password:
        raise UserError("ckpt_path is an address with a password, which the run would keep: type it without")
    if parts.scheme.lower() == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        log.warning("ckpt_path=%s is not encrypted, so that anybody on the way can change the file: use https", address)
    folder = cache / hashlib.sha256(address.encode()).hexdigest()[:16]
    kept = next((path for path in sorted(folder.glob("*")) if path.suffix in ENDINGS), None)
    tag = folder / "etag"
    plain = quote(address, safe=punctuation)  # a browser shows spaces and umlauts as they are
    request = urllib.request.Request(plain, headers={"User-Agent": "run.py"})
    if kept is not None and tag.exists():
        request.add_header("If-None-Match", tag.read_text(encoding="utf-8"))
    opener = urllib.request.build_opener(_Redirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 304 and kept is not None:
            return kept
        why = ANSWERS.get(error.code, error.reason)
        raise UserError(f"ckpt_path={address}: the server answers {error.code} ({why}): check the address") from error
    with answer:
        path = _download(address, answer, folder)
        if kept is not None and kept != path:
            kept.unlink(missing_ok=True)
        tag.unlink(missing_ok=True)
        if etag := answer.headers.get("ETag"):
            tag.write_text(etag, encoding="utf-8")
        return path


def _download(address: str, answer: HTTPResponse, folder: Path) -> Path:
    """Writes the answer to a file in `folder`, whole or not at all, with the ending that its content asks for."""
    length = answer.headers.get("Content-Length", "")
    size = int(length) if length.isdigit() else None
    _check_size(address, size or 0)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        partial = Path(scratch) / "partial"
        with open(partial, "wb") as file, wrap_file(answer, size or 0, description="", transient=True) as source:
            while chunk := source.read(2**20):
                file.write(chunk)
                _check_size(address, file.tell())
        if size is not None and partial.stat().st_size != size:
            raise UserError(f"ckpt_path={address} ended after {partial.stat().st_size:,} of {size:,} bytes: try again")
        with open(partial, "rb") as file:
            begins = file.read(64).lstrip()
        if begins[:1] == b"<":
            raise UserError(f"ckpt_path={address} is a web page, not a file: type the address of the file itself")
        disposition = re.search(r'filename="?([^";]+)', answer.headers.get("Content-Disposition", ""))
        name = disposition[1] if disposition else unquote(urlsplit(address).path)
        stem, ending = os.path.splitext(re.split(r"[/\\]", name)[-1])
        if ending.lower() not in ENDINGS:
            ending = ".onnx" if begins[:1] == b"\x08" else ".ckpt"  # how a model of ONNX begins
            if zipfile.is_zipfile(partial):
                with zipfile.ZipFile(partial) as archive:
                    ending = ".npz" if all(each.endswith(".npy") for each in archive.namelist()) else ".ckpt"
        path = folder / ((re.sub(r"[^\w-]", "_", stem).strip("_")[:80] or "model") + ending.lower())
        os.replace(partial, path)
    return path


def _check_size(what: str, size: int) -> None:
    if size > LARGEST:
        raise UserError(
            f"ckpt_path={what} is larger than {LARGEST / 2**30:g} GiB: fetch it yourself, and name the file"
        )


def _from_wandb(name: str, cache: Path) -> Path:
    what = name[len(WANDB) :]
    if not re.fullmatch(r"[^/:\s]+/[^/:]+/[^/:]+:[^/:]+", what):
        raise UserError(f"ckpt_path={name} must be wandb:ENTITY/PROJECT/NAME:ALIAS, as W&B's page of the artifact says")
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"ckpt_path={name} needs {error.name}: pip install -r requirements.txt") from error
    if not has_wandb_key(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")):
        raise UserError(f"ckpt_path={name} needs a key of W&B: set WANDB_API_KEY in .env")
    try:
        artifact: Any = wandb.Api(timeout=int(TIMEOUT_S)).artifact(what)
        entries = artifact.manifest.entries
        files = ["model.ckpt"] if "model.ckpt" in entries else [each for each in entries if each.endswith(ENDINGS)]
        if len(files) != 1:
            raise UserError(
                f"ckpt_path={name} holds {', '.join(sorted(entries)[:5]) or 'nothing'}, but no model.ckpt: choose"
                " another artifact"
            )
        _check_size(name, entries[files[0]].size or 0)
        folder = cache / f"wandb-{hashlib.sha256(artifact.digest.encode()).hexdigest()[:16]}"
        path = folder / Path(files[0]).name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as scratch:
                os.replace(entries[files[0]].download(root=scratch), path)
        return path
    except UserError:
        raise
    except (wandb.errors.Error, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"ckpt_path={name} cannot be fetched from W&B ({why}): check its name and alias") from error
