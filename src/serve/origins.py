"""Which pages of other sites may ask the service, by the rules of browsers (CORS)."""

from collections.abc import Sequence

from fastapi.datastructures import Headers
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response

from src.serve.limits import App, RefusedError

METHODS = ("GET", "HEAD", "POST")


class Origins(CORSMiddleware):
    """An ASGI application around the guard, as a page must read refusals, too.

    What a browser asks before a request of a page is answered here: it shows no key, and counts against no rate. No
    answer depends on cookies.

    Args:
        app: the one inside.
        origins: `scheme://host[:port]` of each site; `*`: every one.
    """

    def __init__(self, app: App, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["Authorization"],  # and Content-Type, which always is
            expose_headers=["Content-Disposition", "Retry-After"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Says what a page may send; one sentence where it may not."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin = request_headers["origin"]
        if self.is_allowed_origin(origin):
            said = f"a page may send {', '.join(METHODS)} with Authorization and Content-Type: leave out what is more"
        else:
            said = f"pages of {origin[:100]} may not ask: start the service with origins=[{origin[:100]}] if they may"
        refused = RefusedError(400, said).response()
        refused.headers.update({k: v for k, v in response.headers.items() if not k.startswith("content-")})
        return refused
