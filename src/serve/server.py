"""The web server: uvicorn, which answers what it has accepted before it stops."""

import math
import signal
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from src.serve.engine import Engine

MAX_HEADERS = 64 * 1024  # bytes


class Protocol(HttpToolsProtocol):
    """One connection. Its parser takes half the time of uvicorn's other one, h11, but does not bound headers."""

    header_bytes: int | None = 0  # of the request that arrives; None: its headers are complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.header_bytes = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.header_bytes = None

    def data_received(self, data: bytes) -> None:
        begun = self.header_bytes is not None
        super().data_received(data)
        if begun and self.header_bytes is not None and not self.transport.is_closing():
            self.header_bytes += len(data)
            if self.header_bytes > MAX_HEADERS:
                self.send_400_response(f"the headers have more than {MAX_HEADERS} bytes")


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, and then until every accepted request is answered, or a second signal comes.

    Uvicorn's own shutdown closes the socket first: /ready could not say that the service is stopping.
    `timeout`, `grace` and `proxies` are those of configs/serve.yaml.
    """

    def __init__(self, app: ASGIApp, engine: Engine, timeout: float, grace: float, proxies: list[str] | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                limit_concurrency=2048,  # connections
                timeout_graceful_shutdown=math.ceil(grace),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # clients' mistakes fill no log
                access_log=False,  # /metrics counts
                server_header=False,
                proxy_headers=proxies is not None,
                forwarded_allow_ips=proxies,
            )
        )
        self.stopped_by = ""  # a signal's name
        self.cut = 0  # requests that were not answered at the end
        self._engine = engine
        self._timeout = timeout
        self._grace = grace
        self._end = 0.0
        self._idle: dict[tuple[Any, Any], float] = {}  # connections after their last request, and since when

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = bool(self.stopped_by)  # a second signal waits for nobody
        self._end = 0.0 if self.force_exit else time.monotonic() + self._grace
        self.stopped_by = signal.Signals(sig).name
        self._engine.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to end now."""
        now = time.monotonic()
        if counter % 10 == 0:
            # Uvicorn waits for a connection's first request, and for half a one, for ever.
            open_: set[Any] = self.server_state.connections
            idle = [(each, each.cycle) for each in open_ if each.cycle is None or each.cycle.response_complete]
            self._idle = {key: self._idle.get(key, now) for key in idle}
            for (connection, _), since in self._idle.items():
                if now - since > self._timeout:
                    connection.transport.close()
        if self.stopped_by and (not self._engine.held or now > self._end):
            self.cut = len(self.server_state.tasks) if self._engine.held else 0
            self.force_exit |= self.cut > 0
            return True  # uvicorn sends what is left of the answers
        return await super().on_tick(counter)
