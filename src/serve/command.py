"""The verb `serve`: a web service, and a page for people, that draw with a trained model."""

import errno
import ipaddress
import json
import logging
import multiprocessing
import os
import shlex
import socket
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pydantic import AnyUrl

from src.config.explain import EXTRAS
from src.errors import UserError
from src.models.prompts import LENGTH, to_codes
from src.models.request import Request
from src.run.commands import find_checkpoint
from src.run.console import plain_console
from src.run.trust import trusted_packages
from src.sampling.options import HOW, drawing_options, open_sampler
from src.sampling.sampler import Noise, Sampler

KEY = "SERVE_API_KEY"  # the environment variable
log = logging.getLogger(__name__)


def serve(config: DictConfig) -> None:
    """Serves until SIGTERM or Ctrl-C, and then until every accepted request is answered.

    Raises:
        UserError: settings contradict each other, the address is taken, or the checkpoint cannot be used.
        SystemExit: with 1: requests were cut off at the end.
    """
    if config.queue < config.max_images:
        raise UserError(
            f"queue={config.queue} is less than one request may have: raise it to max_images={config.max_images}"
        )
    check_origins(config.origins or ())
    key = os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY} must be letters, digits and signs without spaces: choose another one")
    listener = listen(config.host, config.port)  # before anything that takes time
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector

        from src.serve.app import make_app
        from src.serve.engine import Engine
        from src.serve.limits import Guard, Origins
        from src.serve.server import Server
    except ImportError as error:
        raise UserError(f"task=serve needs {error.name}: pip install -r requirements-serve.txt") from error
    drawing = drawing_options(config, *HOW)
    sampler = open_for_serving(path, config.weights, trusted_packages(config), drawing)
    about = sampler.about

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    engine = Engine(sampler, config.batch, config.threads or os.cpu_count() or 1, config.queue, registry)
    app = make_app(sampler, engine, config.max_images, registry, key)
    longest = max((len(json.dumps(name)) for name in about.class_names), default=0)
    if about.reads_text:
        longest = max(longest, 2 + 12 * LENGTH)  # quotes, and two escapes of six bytes for a rare character
    max_body = 1024 + max(64, 2 * (longest + 4)) * config.max_images  # two lists with some air
    guard = Guard(app, engine, config.rate, max_body, config.timeout, registry)
    outer = guard if config.origins is None else Origins(guard, list(config.origins))
    proxies = None if config.proxies is None else list(config.proxies)
    server = Server(outer, engine, config.timeout, config.grace, proxies)

    host, port = listener.getsockname()[:2]
    # A service that listens on all addresses is opened at localhost.
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
    shown = f' -H "Authorization: Bearer ${KEY}"' if key else ""
    example = about.prompts[-1] if about.prompts else "what to draw"
    what = {"prompts": [example]} if about.reads_text else {"labels": [about.class_names[-1]]}
    body = json.dumps(what | {"n": 16, "seed": 0}, ensure_ascii=False)
    console = plain_console()
    console.print(f"serving     {about.run} ({', '.join(filter(None, [about.data, str(path)]))})")
    console.print(f"page        {url}/")
    console.print(f"ask         curl {url}/generate{shown} --json {shlex.quote(body)} -o images.png")
    console.print("stop        Ctrl-C")
    if key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        log.warning("anybody who can reach port %s of %s may ask: set %s, or type host=127.0.0.1", port, host, KEY)
    server.run([listener])
    engine.close()
    if server.cut:
        many = "1 request was" if server.cut == 1 else f"{server.cut} requests were"
        console.print(f"stopped by {server.stopped_by}: {many} cut off after grace={config.grace} s")
        raise SystemExit(1)
    console.print(f"stopped by {server.stopped_by}: all {server.server_state.total_requests:,} requests were answered")


def check_origins(origins: Sequence[str]) -> None:
    """Refuses origins that no browser sends; [*] means all."""
    for origin in () if list(origins) == ["*"] else origins:
        try:
            url = AnyUrl(origin)
            if not url.host or "*" in url.host or url.username or url.password:
                raise ValueError
        except ValueError as error:  # pydantic's is one
            raise UserError(f"origins has {origin!r}, which is not a site such as https://example.com") from error
        sent = "/".join(str(url).split("/")[:3])  # without a path, and without the scheme's usual port
        if sent != origin:
            raise UserError(f"origins has {origin!r}, which browsers call {sent}: type origins=[{sent}]")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine; nobody can connect yet."""
    remedy = "type host=127.0.0.1 for this machine alone, host=0.0.0.0 for its networks"
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"host={host} is not an address: {remedy}") from error
    except PermissionError as error:
        raise UserError(f"port={port} is reserved: type a port above 1023, such as port=8000") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port % 65535 + 1
            raise UserError(f"port={port} is taken by another program: type another, such as port={other}") from error
        raise UserError(f"host={host} is not this machine's ({error.strerror}): {remedy}") from error
    return listener


def open_for_serving(path: Path, weights: str, trusted: Sequence[str], drawing: Mapping[str, Any]) -> Sampler:
    """Opens a checkpoint or ONNX file with ONNX Runtime, and draws two images with it.

    A checkpoint is exported by a process of its own: torch takes ten times the memory of serving. One that cannot be
    exported is drawn with by torch.
    """
    exported = True
    if path.suffix == ".onnx":
        sampler = open_sampler(path, weights, threads=1, drawing=drawing)
    else:
        with (
            plain_console().status(f"exporting {path.name} for ONNX Runtime"),
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
        ):
            file = Path(folder) / "generator.onnx"
            try:
                exported = process.submit(export_checkpoint, path, weights, file, trusted, drawing).result()
            except ImportError as error:
                raise UserError(
                    f"ckpt_path={path} needs {error.name} to be exported: {EXTRAS}, or serve the generator.onnx that"
                    " task=export makes of it elsewhere"
                ) from error
            if exported:
                sampler = open_sampler(file, weights, 1, trusted, drawing)
        if not exported:  # the other process has ended, and left the GPU's memory
            sampler = open_sampler(path, weights, 1, trusted, drawing)
    about = sampler.about
    shape = (2, about.channels, about.img_size, about.img_size)
    if about.channels not in (1, 3) or about.img_size > 2048:  # a file can claim anything
        raise UserError(f"ckpt_path={path} claims images of {shape[1:]}, which cannot be served: choose another one")
    # A text that is known to no file has a text encoder loaded now, instead of at the first request.
    examples = about.examples(2) if exported else to_codes(["one example", "another example"])
    try:
        images = sampler.run(Request(Noise(about.noise_shape, 0)(2), examples))
    except UserError:
        raise
    except Exception as error:  # onnxruntime's kinds share no base
        raise UserError(f"ckpt_path={path} cannot draw ({str(error)[:200]}): choose another one") from error
    if images.shape != shape or images.dtype != np.float32 or not np.isfinite(images).all():
        raise UserError(f"ckpt_path={path} does not draw the images that it claims: choose another one")
    return sampler


def export_checkpoint(path: Path, weights: str, out: Path, trusted: Sequence[str], drawing: Mapping[str, Any]) -> bool:
    """Writes the checkpoint's generator as ONNX, if it can be, and returns whether."""
    from src.export.to_onnx import export_generator
    from src.sampling.checkpoint_sampler import CheckpointSampler

    sampler = CheckpointSampler(path, weights, trusted, drawing)
    if not sampler.model.not_exported:
        export_generator(sampler.model, out, sampler.about)
    return not sampler.model.not_exported
