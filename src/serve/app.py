"""The service: what can be asked for, what is answered, and what is said about it."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from src.models.request import Request as Images
from src.sampling.labels import are_numbers, resolve
from src.sampling.sampler import Noise, Sampler
from src.serve.encode import FORMATS, encode
from src.serve.engine import Engine, Order, QueueFullError
from src.serve.limits import RefusedError

PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
Responses = dict[int | str, dict[str, Any]]
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="one sentence: what is wrong, and what to send instead")


def request_model(class_names: Sequence[str], max_images: int) -> type[BaseModel]:
    """What `POST /generate` takes: each field's description completes the sentence `FIELD must be`."""
    named = {"type": "string", "enum": list(dict.fromkeys(class_names))}
    # Where all names are numbers, a number is a name.
    numbers = sorted({int(name) for name in class_names}) if are_numbers(class_names) else range(len(class_names))
    numbered = {"type": "integer", "enum": list(numbers)}
    always = {"type": "string", "pattern": r"^#\d+$", "description": "a class's number, even if others are names"}
    label = Annotated[int | str, WithJsonSchema({"anyOf": [named, numbered, always]})]
    some = label | Annotated[list[label], Field(min_length=1)] | None
    classes = f"a class, by its name or its number from {numbers[0]} to {numbers[-1]}, or a list of them"

    class Generate(BaseModel):
        """Which images to draw."""

        model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

        labels: some = Field(None, description=f"{classes}; null: every class", examples=[class_names[-1:]])
        n: int = Field(
            16, ge=1, le=max_images, description=f"a number of images for each label, from 1 to {max_images}"
        )
        seed: int = Field(0, ge=0, lt=2**63, description="a whole number from 0 to 2^63 - 1; it decides the images")
        truncation: float = Field(
            1.0, ge=0, le=1, description="a number from 0 (all alike, most typical) to 1 (as it was trained)"
        )
        others: some = Field(None, description=f"{classes}, to go to; null: nowhere")
        weight: float | None = Field(
            None, ge=0, le=1, description="a number from 0 (the labels) to 1 (the others); null: midway"
        )
        format: Literal["png", "zip", "npz"] = Field(
            "png", description="png (one picture, a row a label), zip (a PNG an image) or npz (arrays)"
        )

    return Generate


def make_app(
    sampler: Sampler,
    engine: Engine,
    max_images: int,
    registry: CollectorRegistry,
    is_ready: Callable[[], bool],
    key: bool,
) -> FastAPI:
    """The application, without what guards it.

    Args:
        sampler: says what it draws.
        engine: draws.
        max_images: that one request may ask for.
        registry: of the metrics.
        is_ready: whether requests should be sent here.
        key: whether clients must show a key.
    """
    about = sampler.about
    known = asdict(about) | {"can_interpolate": sampler.can_interpolate, "max_images": max_images}
    # No page for developers: FastAPI's would be loaded from elsewhere.
    app = FastAPI(
        title=f"Images of {about.data}",
        description=f"Drawn by the generator of the run {about.run}, from the checkpoint {about.checkpoint}.",
        version=about.checkpoint_sha256[:12],
        docs_url=None,
        redoc_url=None,
    )
    model = request_model(about.class_names, max_images)
    problems = {
        400: "the body is no JSON",
        401: "the key is missing or wrong",
        408: "the request took too long to arrive",
        413: "more images or bytes than one request may have",
        415: "the body is not called JSON",
        422: "a field cannot be meant",
        429: "too many requests of one client",
        503: "too many images wait already, or the service is stopping",
        504: "the images took too long",
    }
    answers: Responses = {status: {"model": Problem, "description": meaning} for status, meaning in problems.items()}
    images: Responses = {
        200: {
            "description": "the images, as a file of the format asked for",
            "content": {media: {"schema": {"type": "string", "format": "binary"}} for _, media in FORMATS.values()},
        }
    }
    schema = model.model_json_schema()
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @app.post(
        "/generate", response_class=Response, responses=images | answers, openapi_extra=body, summary="Draw images"
    )
    async def generate(request: Request) -> Response:
        order, form = read_order(
            model, sampler, max_images, request.headers.get("content-type", ""), await request.body()
        )
        try:
            engine.submit(order)
        except QueueFullError:
            raise RefusedError(503, "too many images wait already: ask again in 1 s", retry_after="1") from None
        request.state.images = len(order.request)
        content = await order.answer
        name, media = FORMATS[form]
        headers = {"cache-control": "no-store"}
        if form != "png":
            headers["content-disposition"] = f'attachment; filename="{name}"'
        return Response(content, media_type=media, headers=headers)

    probe: Responses = {400: answers[400], 408: answers[408], 413: answers[413]}
    guarded: Responses = probe | {401: answers[401], 429: answers[429]}

    @app.get("/about", responses=guarded, summary="What draws here")
    async def tell() -> dict[str, Any]:
        return known

    @app.get("/health", responses=probe, summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", responses=probe | {503: answers[503]}, summary="Whether to send requests here")
    async def ready() -> dict[str, str]:
        if not is_ready():
            raise RefusedError(503, "the service is stopping or does not draw: ask another one", retry_after="5")
        return {"status": "ready"}

    text: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=PlainTextResponse, responses=text | guarded, summary="For Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    for path, name in PAGE.items():
        add_file(app, path, Path(__file__).parent / name)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return error.response()

    async def nowhere(request: Request, error: Any) -> Response:
        return RefusedError(404, f"there is no {request.url.path[:60]!r}: see /openapi.json").response()

    async def other_method(request: Request, error: Any) -> Response:
        allowed = {"OPTIONS", *error.headers["Allow"].split(", ")}
        allow = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allow})
        said = f"{request.url.path} takes {allow}, not {request.method[:20]}: see /openapi.json"
        return RefusedError(405, said, allow=allow).response()

    app.add_exception_handler(404, nowhere)
    app.add_exception_handler(405, other_method)

    described = app.openapi()
    if key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in ("/generate", "/about", "/metrics"):
            for operation in described["paths"][path].values():
                operation["security"] = [{"key": []}]
    return app


def read_order(
    model: type[BaseModel], sampler: Sampler, max_images: int, content_type: str, body: bytes
) -> tuple[Order, str]:
    """What a request's body asks for, and the format of the answer.

    Raises:
        RefusedError: it cannot be meant, or is too much.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "the body must be JSON, and be called so: send Content-Type: application/json")
    try:
        asked: Any = model.model_validate_json(body)
    except ValidationError as error:
        raise explain(error, model) from None
    names = sampler.about.class_names
    n_labels = count(asked.labels) or len(names)
    if (total := n_labels * asked.n) > max_images:
        raise RefusedError(
            413, f"{n_labels} labels of {asked.n} images are {total}, and one request may ask for {max_images}"
        )
    classes = list(range(len(names))) if asked.labels is None else meant(asked, "labels", names)
    labels = np.repeat(np.array(classes, np.int64), asked.n)
    finish = functools.partial(encode, asked.format, labels=labels, n=asked.n, class_names=names)
    noise = Noise(sampler.about.noise_shape, asked.seed, asked.truncation)(len(labels))
    others = weight = None
    if asked.others is not None:
        if not sampler.can_interpolate:
            raise RefusedError(422, "others must be left out: this model does not draw between classes")
        n_others = count(asked.others)
        if n_others not in (1, n_labels):
            raise RefusedError(422, f"others must be one class, or as many as labels: {n_labels}, not {n_others}")
        goals = meant(asked, "others", names) * (n_labels // n_others)
        others = np.repeat(np.array(goals, np.int64), asked.n)
        weight = np.full(len(labels), 0.5 if asked.weight is None else asked.weight, np.float32)
    elif asked.weight is not None:
        raise RefusedError(422, "weight must be left out without others: it says how far to go to them")
    return Order(Images(noise, labels, others, weight), finish), asked.format


def count(given: int | str | list[int | str] | None) -> int:
    """How many labels a field has."""
    return 0 if given is None else len(given) if isinstance(given, list) else 1


def meant(asked: Any, field: str, class_names: Sequence[str]) -> list[int]:
    """The classes that a field names or numbers: one or several.

    Raises:
        RefusedError: one is no class, or could be two.
    """
    given = getattr(asked, field)
    try:
        return [resolve(label, class_names) for label in (given if isinstance(given, list) else [given])]
    except ValueError as error:
        raise RefusedError(422, f"{field}: {error}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> RefusedError:
    """One sentence about the first thing that is wrong with a body."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        if first["type"] == "json_invalid":
            return RefusedError(
                400, f'the body is no JSON ({first["ctx"]["error"]}): send an object such as {{"n": 4}}'
            )
        return RefusedError(422, 'the body must be an object such as {"n": 4}')
    name = str(first["loc"][0])
    if name not in model.model_fields:
        return RefusedError(422, f"there is no field {name[:40]!r}: the fields are {', '.join(model.model_fields)}")
    given = json.dumps(first["input"], ensure_ascii=False)
    given = given if len(given) <= 40 else f"{given[:40]}..."
    return RefusedError(422, f"{name} must be {model.model_fields[name].description}, not {given}")


def add_file(app: FastAPI, path: str, file: Path) -> None:
    """Serves a file of the page, which the browser asks for again only when it has changed."""
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"cache-control": "no-cache", "etag": tag}

    async def serve_file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=MEDIA[file.suffix], headers=headers)

    app.add_route(path, serve_file, methods=["GET"], include_in_schema=False)
