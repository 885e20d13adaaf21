"""What stands between the network and the service: who may ask, how often, how much and for how long."""

import asyncio
import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

# Open to whoever can reach the port: they say whether the service is well, and what it would ask of you.
PROBES = ("/health", "/ready")
OPEN = (*PROBES, "/", "/page.css", "/page.js", "/icon.svg", "/openapi.json")
KNOWN = (*OPEN, "/about", "/generate", "/metrics")
METHODS = ("GET", "HEAD", "OPTIONS", "POST")
HEADERS = [
    # Nothing from anywhere else, not even inline.
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
MAX_CLIENTS = 10_000  # that are remembered
MAX_UNREAD = 2**20  # bytes by which a body may be too large, and still be read


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: of the response.
        sentence: why, and what to do.
        headers: of the response.
    """

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """What the client is told."""
        return JSONResponse({"error": str(self)}, self.status, self.headers)


class RateLimit:
    """A token bucket a client: `rate` requests a second, and twice as many after a pause.

    Args:
        rate: requests a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(2 * rate, 1.0)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when that was

    def wait(self, client: str, now: float) -> float:
        """Seconds until the client may ask again; 0: it may now, and has."""
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
    """An ASGI application around another: refuses what may not pass, and counts what does.

    Args:
        app: the one inside. It finds the whole body in its first message, and leaves in `scope["state"]["images"]` how
            many images it holds.
        release: called with that number when the response has been sent.
        key: what clients must show as `Authorization: Bearer KEY`; None: nothing.
        rate: requests a second of one client; None: any number.
        max_body: bytes of a request's body.
        timeout: seconds until a request must be received, and until it must be answered and sent.
        registry: where its metrics go.
    """

    def __init__(
        self,
        app: App,
        release: Callable[[int], None],
        key: str | None,
        rate: float | None,
        max_body: int,
        timeout: float,
        registry: CollectorRegistry,
    ) -> None:
        self.stopping = False  # from then on, nothing new is begun
        self.in_progress = 0
        self.answered = 0
        self._app = app
        self._release = release
        self._key = key.encode() if key else None
        self._rate = RateLimit(rate) if rate else None
        self._max_body = max_body
        self._timeout = timeout
        labels = ("path", "method", "status")
        self._requests = Counter("serve_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram("serve_request_seconds", "From headers to sent", ("path",), registry=registry)
        gauge = Gauge("serve_requests_in_progress", "Requests being answered", registry=registry)
        gauge.set_function(lambda: self.in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        status = 0

        async def guarded_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS]
                if self.stopping:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self.in_progress += 1
        refusal: RefusedError | None = None
        body: bytes | None = None
        try:
            async with asyncio.timeout(self._timeout):
                self._admit(scope)
                body = await self._body(scope, receive)
                # HEAD is GET; the server leaves the body out.
                inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(inner, once(body, receive), guarded_send)
        except RefusedError as error:
            refusal = error
        except TimeoutError:
            late = f"within {self._timeout:g} s"
            if body is None:
                refusal = RefusedError(408, f"the request did not arrive {late}: send it again", connection="close")
            else:
                refusal = RefusedError(504, f"the images could not be drawn and sent {late}: ask for fewer, or later")
        except Exception:
            log.exception("a request could not be answered")
            refusal = RefusedError(
                500, "the service failed, and has written why to its log: try again, or tell whom it belongs to"
            )
        finally:
            self._release(scope.get("state", {}).get("images", 0))
            try:
                if refusal and not status:
                    await refusal.response()(scope, receive, guarded_send)
            finally:
                self.in_progress -= 1
                self.answered += 1
                path = scope["path"] if scope["path"] in KNOWN else "other"
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._requests.labels(path, method, status).inc()
                self._seconds.labels(path).observe(time.perf_counter() - started)

    def _admit(self, scope: Scope) -> None:
        path = scope["path"]
        if path in PROBES:
            return
        if self._rate and (seconds := self._rate.wait(scope["client"][0], time.monotonic())):
            after = str(math.ceil(seconds))
            raise RefusedError(429, f"too many requests: ask again in {after} s", retry_after=after)
        if self._key and path not in OPEN and scope["method"] != "OPTIONS":
            shown = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = shown.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                raise RefusedError(
                    401, "the service asks for its key: send it as Authorization: Bearer KEY", www_authenticate="Bearer"
                )
        if self.stopping and path == "/generate":
            raise RefusedError(503, "the service is stopping: ask another one, or later", retry_after="5")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = RefusedError(413, f"the body has more than {self._max_body} bytes: send less", connection="close")
        for name, value in scope["headers"]:
            # A parser has seen to it that this is a number; it may be a long one.
            if name == b"content-length" and (len(value) > 15 or int(value) > self._max_body + MAX_UNREAD):
                raise too_large
        body, n = b"", 0
        while n <= self._max_body + MAX_UNREAD:
            message = await receive()
            if message["type"] != "http.request":
                raise RefusedError(400, "the connection was closed before the request was complete")
            part = message.get("body", b"")
            n += len(part)
            # What is too much is read, but not kept: a connection that is closed before may take the answer with it.
            body = body + part if n <= self._max_body else b""
            if not message.get("more_body"):
                if n <= self._max_body:
                    return body
                break
        raise too_large


def once(body: bytes, receive: Receive) -> Receive:
    """Hands out a body that has been read, and then what follows."""
    sent = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
