"""Stands between the network and the application: how often and how much clients may ask, and for how long."""

import asyncio
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack

from fastapi import HTTPException
from fastapi.datastructures import Headers
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.serve.engine import Engine

log = logging.getLogger(__name__)

PROBES = ("/health", "/ready")  # count against no rate
# The paths and methods that the metrics tell apart.
PATHS = (*PROBES, "/", "/page.css", "/page.js", "/icon.svg", "/openapi.json", "/about", "/generate", "/metrics")
METHODS = ("GET", "HEAD", "OPTIONS", "POST")
HEADERS = [
    # Nothing from other servers, and no inline scripts.
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
MAX_CLIENTS = 10_000  # whose rates are remembered


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Tells a client in one sentence why there is no other answer, and what to do."""
    return JSONResponse({"error": sentence}, status, headers)


class RateLimit:
    """A token bucket for each client: `rate` requests a second, and twice as many after a pause."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(2 * rate, 1.0)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when that was

    def wait(self, client: str, now: float) -> float:
        """Seconds until the client may ask again; 0: it may ask now, which takes a token."""
        if ":" in client:  # whoever has one IPv6 address has 2^64 of them
            client = str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))
        tokens, before = self._clients.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        seconds = max(0.0, (1 - tokens) / self._rate)
        self._clients[client] = (tokens if seconds else tokens - 1, now)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return seconds


class Guard:
    """An ASGI middleware that limits and counts requests; `request.state.sent` closes when an answer is sent.

    `rate` and `timeout` are those of configs/serve.yaml; a request's body has at most `max_body` bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: Engine,
        rate: float | None,
        max_body: int,
        timeout: float,
        registry: CollectorRegistry,
    ) -> None:
        self._app = app
        self._engine = engine
        self._rate = RateLimit(rate) if rate else None
        self._max_body = max_body
        self._timeout = timeout
        labels = ("path", "method", "status")
        self._requests = Counter("serve_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram("serve_request_seconds", "From headers to sent", ("path",), registry=registry)
        self._in_progress = Gauge("serve_requests_in_progress", "Requests being answered", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        status = n_bytes = 0
        arrived = False

        async def limited_receive() -> Message:
            nonlocal n_bytes, arrived
            message = await receive()
            if message["type"] == "http.disconnect" and not arrived:
                raise HTTPException(400, "the connection was closed before the request was complete")
            n_bytes += len(message.get("body", b""))
            arrived = not message.get("more_body")
            if n_bytes > self._max_body:
                raise HTTPException(413, f"the body has more than {self._max_body} bytes: send less")
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                closing = [(b"connection", b"close")] if self._engine.stopping else []
                message["headers"] = [*message["headers"], *HEADERS, *closing]
            await send(message)

        app = self._app
        if int(dict(scope["headers"]).get(b"content-length", 0)) > self._max_body:
            app = refusal(413, f"the body has more than {self._max_body} bytes: send less")
        elif self._rate and scope["path"] not in PROBES:
            seconds = math.ceil(self._rate.wait(scope["client"][0], time.monotonic()))
            said = f"too many requests: ask again in {seconds} s"
            app = refusal(429, said, {"retry-after": str(seconds)}) if seconds else app
        sent = ExitStack()
        # HEAD is GET; the server leaves the body out.
        inner = {**scope, "method": "GET" if method == "HEAD" else scope["method"], "state": {"sent": sent}}
        try:
            with sent, self._in_progress.track_inprogress(), self._seconds.labels(path).time():
                async with asyncio.timeout(self._timeout):
                    await app(inner, limited_receive, noting_send)
        except TimeoutError:
            late = f"within {self._timeout:g} s"
            if arrived:
                app = refusal(504, f"the images could not be drawn and sent {late}: ask for fewer, or later")
            else:
                app = refusal(408, f"the request did not arrive {late}: send it again", {"connection": "close"})
            if not status:
                await app(scope, receive, noting_send)
        except Exception:
            log.exception("a request could not be answered")
        finally:
            self._requests.labels(path, method, status).inc()


class Origins(CORSMiddleware):
    """Starlette's rules for requests from pages of other sites (CORS), with a sentence for those that are refused.

    It stands around the guard: pages can read refusals, and what browsers ask first counts against no rate.
    """

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization"],  # and Content-Type, which always is
            expose_headers=["Content-Disposition", "Retry-After"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin = request_headers["origin"][:100]
        if not self.is_allowed_origin(request_headers["origin"]):
            return refusal(400, f"pages of {origin} may not ask: start the service with origins=[{origin}] if they may")
        return refusal(400, "a page may send GET, HEAD, POST with Authorization and Content-Type: leave out the rest")
