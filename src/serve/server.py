"""The web server: uvicorn, with a bound on what comes before a request's body, and an end without cut answers."""

import asyncio
import logging
import signal
import time
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from src.serve.limits import App, Guard

MAX_HEADERS = 64 * 1024  # bytes
HEADERS_TIMEOUT = 10.0  # seconds until a request's headers are complete
MAX_CONNECTIONS = 2048


class Protocol(HttpToolsProtocol):
    """One connection. Uvicorn waits for headers for ever, and reads any number of them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._received = 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_TIMEOUT, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None:  # headers are incomplete
            self._received += len(data)
            if self._received > MAX_HEADERS and not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, and then until what it had accepted is answered; a second signal ends it at once.

    Args:
        app: what it serves.
        guard: the part of it that counts requests, and is told to begin nothing new.
        grace: seconds for which accepted requests are waited for.
        proxies: addresses of reverse proxies, whose word on who the client is is believed; None: nobody's.
    """

    def __init__(self, app: App, guard: Guard, grace: float, proxies: list[str] | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # /metrics counts
                server_header=False,
                proxy_headers=proxies is not None,
                forwarded_allow_ips=proxies,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what clients do wrong fills no log
        self.stopped_by: str | None = None
        self.cut = 0  # requests that were not answered at the end
        self._guard = guard
        self._grace = grace
        self._until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signals come here."""
        if self.stopped_by is not None:
            self.should_exit = self.force_exit = True
            return
        self.stopped_by = signal.Signals(sig).name
        self._until = time.monotonic() + self._grace
        self._guard.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to go."""
        if self.stopped_by is not None and (not self._guard.in_progress or time.monotonic() > self._until):
            self.cut = self._guard.in_progress
            self.force_exit = self.cut > 0
            return True
        return await super().on_tick(counter)
