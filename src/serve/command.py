"""The verb `serve`: a web service, and a page for people, that draw with a trained model."""

import ipaddress
import json
import logging
import multiprocessing
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from src.config.explain import EXTRAS
from src.errors import UserError
from src.models.request import Request
from src.run.commands import find_checkpoint
from src.run.console import plain_console
from src.run.trust import trusted_packages
from src.sampling.sampler import Noise, Sampler
from src.serve.listen import listen

KEY = "SERVE_API_KEY"  # the environment variable
MAX_PIXELS = 2048 * 2048  # of one image; a file can claim anything
log = logging.getLogger(__name__)


def serve(config: DictConfig) -> None:
    """Serves until SIGTERM or Ctrl-C, and then until every request that was accepted is answered.

    Raises:
        UserError: settings contradict each other, the address is taken, or the checkpoint cannot be used.
        SystemExit: with 1: requests were cut off at the end.
    """
    if config.queue < config.max_images:
        raise UserError(
            f"queue={config.queue} is less than one request may have: raise it to max_images={config.max_images}"
        )
    check_origins(config.origins)
    key = os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY} must be letters, digits and signs without spaces: choose another one")
    listener = listen(config.host, config.port)  # before anything that takes time
    path = find_checkpoint(config.ckpt_path, config.work_dir)
    try:
        import prometheus_client

        from src.serve.app import make_app
        from src.serve.engine import Engine
        from src.serve.limits import App, Guard
        from src.serve.origins import Origins
        from src.serve.server import Server
    except ImportError as error:
        raise UserError(f"task=serve needs {error.name}: pip install -r requirements-serve.txt") from error
    console = plain_console()
    sampler = open_for_serving(path, config.weights, config.work_dir, console, trusted_packages(config))

    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    engine = Engine(sampler, config.batch, config.threads or os.cpu_count() or 1, config.queue, registry)
    app = make_app(
        sampler, engine, config.max_images, registry, lambda: engine.works and not guard.stopping, key is not None
    )
    longest = max(len(json.dumps(name)) for name in sampler.about.class_names)
    max_body = 1024 + max(64, 2 * (longest + 4)) * config.max_images  # two lists of classes with some air
    guard = Guard(app, engine.release, key, config.rate, max_body, config.timeout, registry)
    outer: App = guard if config.origins is None else Origins(guard, list(config.origins))
    server = Server(outer, guard, config.grace, list(config.proxies) if config.proxies is not None else None)

    host, port = listener.getsockname()[:2]
    # What listens everywhere is opened here.
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
    about = sampler.about
    console.print(f"serving     {about.run} ({about.data}, {path})")
    console.print(f"page        {url}/")
    shown = f" -H 'Authorization: Bearer ${KEY}'".replace("'", '"') if key else ""
    body = json.dumps({"labels": [about.class_names[-1]], "n": 16, "seed": 0}, ensure_ascii=False)
    curl = f"curl {url}/generate{shown} --json {shlex.quote(body)} -o images.png"
    console.print(f"ask         {curl}")
    console.print("stop        Ctrl-C")
    if key is None and not is_loopback(host):
        log.warning("anybody who can reach port %s of %s may ask: set %s, or type host=127.0.0.1", port, host, KEY)
    server.run([listener])
    engine.close()
    if server.cut:
        many = "1 request was" if server.cut == 1 else f"{server.cut} requests were"
        console.print(f"stopped by {server.stopped_by}: {many} cut off after grace={config.grace} s")
        raise SystemExit(1)
    console.print(f"stopped by {server.stopped_by}: all {guard.answered:,} requests were answered")


def check_origins(origins: Sequence[str] | None) -> None:
    """Refuses origins that no browser sends.

    Raises:
        UserError: names the key.
    """
    for origin in () if origins is None or origins == ["*"] else origins:
        called = as_browsers_call(origin)
        if called is None:
            other = "" if origin.isascii() else ": write other letters as browsers do, xn--..."
            raise UserError(f"origins has {origin!r}, which is no site such as https://example.com{other}")
        if called != origin:
            raise UserError(f"origins has {origin!r}, which browsers call {called}: type origins=[{called}]")


def as_browsers_call(url: str) -> str | None:
    """The origin of a URL as browsers send it: `scheme://host[:port]`; None: there is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname or ""
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*", host) or not parts.scheme or "@" in parts.netloc:
        return None
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if port in (None, usual) else f':{port}'}"


def open_for_serving(path: Path, weights: Any, work_dir: str, console: Console, trusted: Sequence[str]) -> Sampler:
    """What draws with a checkpoint or ONNX file, always through ONNX Runtime, and has drawn once.

    Raises:
        UserError: the file cannot be used, or a package is missing.
    """
    from src.sampling.options import open_sampler

    if path.suffix == ".onnx":
        sampler, _ = open_sampler(str(path), work_dir, weights, threads=1)
    else:
        from src.serve.exported import export_checkpoint

        with (
            console.status(f"exporting {path.name} for ONNX Runtime"),
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
        ):
            file = Path(folder) / "generator.onnx"
            try:
                process.submit(export_checkpoint, path, weights, file, trusted).result()
            except ImportError as error:
                raise UserError(
                    f"ckpt_path={path} needs {error.name} to be exported: {EXTRAS}, or serve the generator.onnx that"
                    " task=export makes of it elsewhere"
                ) from error
            sampler, _ = open_sampler(str(file), work_dir, weights, threads=1)
    about = sampler.about
    shape = (2, about.channels, about.img_size, about.img_size)
    if about.channels not in (1, 3) or about.img_size**2 > MAX_PIXELS:
        raise UserError(f"ckpt_path={path} claims images of {shape[1:]}, which cannot be served: choose another one")
    try:
        images = sampler.run(Request(Noise(about.noise_shape, 0)(2), np.zeros(2, np.int64)))
        fits = images.shape == shape and images.dtype == np.float32 and bool(np.isfinite(images).all())
    except Exception as error:  # onnxruntime's kinds share no base
        raise UserError(f"ckpt_path={path} cannot draw ({str(error)[:200]}): choose another one") from error
    if not fits:
        raise UserError(f"ckpt_path={path} does not draw the images that it claims: choose another one")
    return sampler


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
