"""The web application: what clients may ask for, what they get, and its description in OpenAPI."""

import functools
import hmac
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field

from src.models.prompts import LENGTH
from src.sampling.sampler import Sampler
from src.serve.body import read_body, request_model
from src.serve.encode import FORMATS, encode
from src.serve.engine import Engine
from src.serve.limits import refusal

PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
Responses = dict[int | str, dict[str, Any]]


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one sentence: what is wrong, and what to send instead")


PROBLEMS = {
    400: "the body is not JSON",
    401: "the key is missing or wrong",
    408: "the request took too long to arrive",
    413: "more images or bytes than one request may have",
    415: "the content type is not JSON",
    422: "a field has a value that it cannot have",
    429: "too many requests from one client",
    503: "too many images wait already, or the service is stopping",
    504: "the images took too long",
}


def refusals(*statuses: int) -> Responses:
    return {status: {"model": Problem, "description": PROBLEMS[status]} for status in statuses}


def make_app(
    sampler: Sampler, engine: Engine, max_images: int, registry: CollectorRegistry, key: str | None
) -> FastAPI:
    """Makes the application.

    `key` is what clients must send as `Authorization: Bearer KEY`; None: nothing. `registry` holds the metrics.
    """
    about = sampler.about
    model = request_model(about, max_images)
    app = FastAPI(
        title=f"Images of {about.data}" if about.data else "Images",
        description=f"Drawn by the generator of the run {about.run}, from the checkpoint {about.checkpoint}.",
        version=about.checkpoint_sha256[:12],
        docs_url=None,  # FastAPI's pages load scripts from another server
        redoc_url=None,
    )

    async def check_key(
        shown: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(scheme_name="key", auto_error=False))],
    ) -> None:
        if shown is None or not hmac.compare_digest(shown.credentials.encode(), str(key).encode()):
            said = "the service asks for its key: send it as Authorization: Bearer KEY"
            raise HTTPException(401, said, {"WWW-Authenticate": "Bearer"})

    keyed = [Depends(check_key)] if key else []
    guarded = refusals(401, 429)
    asks = {"content": {"application/json": {"schema": model.model_json_schema()}}, "required": True}
    files = {media: {"schema": {"type": "string", "format": "binary"}} for _, media in FORMATS.values()}
    drawn: Responses = {200: {"description": "the images, as a file of the format asked for", "content": files}}

    @app.post(
        "/generate",
        dependencies=keyed,
        response_class=Response,
        responses=drawn | refusals(*PROBLEMS),
        openapi_extra={"requestBody": asks},
        summary="Draw images",
    )
    async def generate(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        images, prompts, asked = read_body(model, sampler, max_images, kind, await request.body())
        if engine.stopping:
            raise HTTPException(503, "the service is stopping: ask another one, or later", {"Retry-After": "5"})
        if engine.held + len(images) > engine.limit:
            raise HTTPException(503, "too many images wait already: ask again in 1 s", {"Retry-After": "1"})
        engine.hold(len(images))
        request.state.sent.callback(engine.hold, -len(images))  # called by the guard when the answer is sent
        finish = functools.partial(
            encode, asked.format, labels=images.condition, n=asked.n, class_names=about.class_names, prompts=prompts
        )
        content = await engine.draw(images, finish)
        name, media = FORMATS[asked.format]
        headers = {"cache-control": "no-store"}
        if asked.format != "png":
            headers["content-disposition"] = f'attachment; filename="{name}"'
        return Response(content, media_type=media, headers=headers)

    @app.get("/about", dependencies=keyed, responses=guarded, summary="The model")
    async def describe() -> dict[str, Any]:
        limits = {"max_images": max_images} | ({"max_prompt_length": LENGTH} if about.reads_text else {})
        return asdict(about) | {"can_interpolate": sampler.can_interpolate} | limits

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", responses=refusals(503), summary="Whether to send requests here")
    async def ready() -> dict[str, str]:
        if engine.stopping:
            raise HTTPException(503, "the service is stopping: ask another one", {"Retry-After": "5"})
        return {"status": "ready"}

    text: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics",
        dependencies=keyed,
        response_class=PlainTextResponse,
        responses=text | guarded,
        summary="For Prometheus",
    )
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    folder = StaticFiles(directory=Path(__file__).parent)

    async def page(request: Request) -> Response:
        response = await folder.get_response(PAGE[request.scope["path"]], request.scope)
        response.headers["cache-control"] = "no-cache"  # browsers ask each time whether it has changed
        return response

    for path in PAGE:
        app.add_route(path, page, include_in_schema=False)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, error.detail, error.headers)

    @app.exception_handler(404)
    async def unknown_path(request: Request, error: Any) -> Response:
        return refusal(404, f"there is no {request.url.path[:60]!r}: see /openapi.json")

    @app.exception_handler(405)
    async def other_method(request: Request, error: Any) -> Response:
        allowed = {"OPTIONS", *error.headers["Allow"].split(", ")}
        allow = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allow})
        said = f"{request.url.path} takes {allow}, not {request.method[:20]}: see /openapi.json"
        return refusal(405, said, {"allow": allow})

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal(500, "the service failed, and its log says why: try again, or tell its owner")

    return app
