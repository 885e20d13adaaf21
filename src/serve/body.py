"""The body of `POST /generate`: its fields, the images that they ask for, and a sentence for each mistake."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from src.models.request import Request
from src.sampling.labels import are_numbers, resolve
from src.sampling.sampler import Noise, Sampler


def request_model(class_names: Sequence[str], max_images: int) -> type[BaseModel]:
    """The fields of `POST /generate`; the description of each completes the sentence `FIELD must be ...`."""
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
        others: some = Field(None, description=f"{classes}, to move towards; null: draw the labels themselves")
        weight: float | None = Field(
            None, ge=0, le=1, description="a number from 0 (the labels) to 1 (the others); null: midway"
        )
        format: Literal["png", "zip", "npz"] = Field(
            "png", description="png (one picture, a row a label), zip (a PNG an image) or npz (arrays)"
        )

    return Generate


def read_body(
    model: type[BaseModel], sampler: Sampler, max_images: int, content_type: str, body: bytes
) -> tuple[Request[np.ndarray], Any]:
    """The images that a request asks for, and its fields.

    Raises:
        HTTPException: a field is wrong, or asks for too much.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, and be called so: send Content-Type: application/json")
    try:
        asked: Any = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            said = f'the body is not JSON ({first["ctx"]["error"]}): send an object such as {{"n": 4}}'
            raise HTTPException(400, said) from None
        name = str(first["loc"][0]) if first["loc"] else None
        if name is None:
            said = 'the body must be an object such as {"n": 4}'
        elif name not in model.model_fields:
            said = f"there is no field {name[:40]!r}: the fields are {', '.join(model.model_fields)}"
        else:
            given = json.dumps(first["input"], ensure_ascii=False)
            given = given if len(given) <= 40 else f"{given[:40]}..."
            said = f"{name} must be {model.model_fields[name].description}, not {given}"
        raise HTTPException(422, said) from None
    names = sampler.about.class_names
    classes = class_numbers("labels", asked.labels, names)
    total = len(classes) * asked.n
    if total > max_images:
        said = f"{len(classes)} labels of {asked.n} images are {total}, and one request may ask for {max_images}"
        raise HTTPException(413, said)
    labels = np.repeat(np.array(classes, np.int64), asked.n)
    noise = Noise(sampler.about.noise_shape, asked.seed, asked.truncation)(total)
    if asked.others is None:
        if asked.weight is not None:
            raise HTTPException(422, "weight must be left out without others: it says how far to move towards them")
        return Request(noise, labels), asked
    if not sampler.can_interpolate:
        raise HTTPException(422, "others must be left out: this model does not draw between classes")
    goals = class_numbers("others", asked.others, names)
    if len(goals) not in (1, len(classes)):
        raise HTTPException(422, f"others must be one class, or as many as labels: {len(classes)}, not {len(goals)}")
    others = np.repeat(np.array(goals, np.int64), total // len(goals))
    weight = np.full(total, 0.5 if asked.weight is None else asked.weight, np.float32)
    return Request(noise, labels, others, weight), asked


def class_numbers(field: str, given: int | str | list[int | str] | None, class_names: Sequence[str]) -> list[int]:
    """The numbers of the classes in a field, one or several; None: all."""
    if given is None:
        return list(range(len(class_names)))
    try:
        return [resolve(label, class_names) for label in (given if isinstance(given, list) else [given])]
    except ValueError as error:
        raise HTTPException(422, f"{field}: {error}") from None
