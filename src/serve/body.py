"""The body of `POST /generate`: its fields, the images that they ask for, and a sentence for each mistake."""

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model

from src.models.prompts import LENGTH, MOST, check_prompts, to_codes
from src.models.request import Request
from src.sampling.labels import are_numbers, resolve
from src.sampling.options import stronger_guidance
from src.sampling.sampler import About, Noise, Sampler


def request_model(about: About, max_images: int) -> type[BaseModel]:
    """The fields of `POST /generate`; the description of each completes the sentence `FIELD must be ...`.

    A model that reads text has `prompts`; `labels` are left out where it has no prompts for classes. A model that is
    guided has no `truncation`.
    """
    fields: dict[str, Any] = {}
    others: Any = None
    kinds, goals = [], []
    if about.reads_text:
        text = Annotated[str, Field(min_length=1, max_length=MOST)]
        others = texts = text | Annotated[list[text], Field(min_length=1)]
        said = f"a text of up to {LENGTH} letters, digits and spaces that says what to draw, or a list of texts"
        if about.prompts:
            example = [f"a {about.prompts[-1]}"]
            fields["prompts"] = texts | None, Field(None, description=f"{said}; null: labels", examples=[example])
        else:
            fields["prompts"] = texts, Field(description=said, examples=[["what to draw"]])
        kinds, goals = ["prompt"], ["a text, or a list of texts"]
    if about.prompts or not about.reads_text:
        names = about.class_names
        named = {"type": "string", "enum": list(dict.fromkeys(names))}
        # Where all names are numbers, a number is a name.
        numbers = sorted({int(name) for name in names}) if are_numbers(names) else range(len(names))
        numbered = {"type": "integer", "enum": list(numbers)}
        always = {"type": "string", "pattern": r"^#\d+$", "description": "a class's number, even if others are names"}
        longest = Field(max_length=4 * max(LENGTH, *map(len, names)))
        label = Annotated[int | Annotated[str, longest], WithJsonSchema({"anyOf": [named, numbered, always]})]
        some = label | Annotated[list[label], Field(min_length=1)]
        classes = f"a class, by its name or its number from {numbers[0]} to {numbers[-1]}, or a list of them"
        every = "null: every class, unless there are prompts" if about.reads_text else "null: every class"
        fields["labels"] = some | None, Field(None, description=f"{classes}; {every}", examples=[names[-1:]])
        others = some if others is None else others | some
        kinds, goals = [*kinds, "label"], [*goals, classes]
    kind, those = " or ".join(kinds), " or ".join(f"{kind}s" for kind in kinds)
    said = f"a number of images for each {kind}, from 1 to {max_images}"
    fields["n"] = int, Field(16, ge=1, le=max_images, description=said)
    said = "a whole number from 0 to 2^63 - 1; it decides the images"
    fields["seed"] = int, Field(0, ge=0, lt=2**63, description=said)
    if "guidance" not in about.drawing:
        said = "a number from 0 (all alike, most typical) to 1 (as it was trained)"
        fields["truncation"] = float, Field(1.0, ge=0, le=1, description=said)
    said = f"{'; or '.join(goals)}, to move towards; null: draw the {those} themselves"
    fields["others"] = others | None, Field(None, description=said)
    said = f"a number from 0 (the {those}) to 1 (the others); null: midway"
    fields["weight"] = float | None, Field(None, ge=0, le=1, description=said)
    said = f"png (one picture, a row a {kind}), zip (a PNG an image) or npz (arrays)"
    fields["format"] = Literal["png", "zip", "npz"], Field("png", description=said)
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("Generate", __config__=strict, __doc__="Which images to draw.", **fields)


def read_body(
    model: type[BaseModel], sampler: Sampler, max_images: int, content_type: str, body: bytes
) -> tuple[Request[np.ndarray], list[str] | None, Any]:
    """The images that a request asks for, its prompts as they were typed, if it has some, and its fields.

    Raises:
        HTTPException: a field is wrong, or asks for too much.
    """
    about = sampler.about
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, and be called so: send Content-Type: application/json")
    try:
        asked: Any = model.model_validate_json(body)
    except ValidationError as error:
        # A field of another name may have been meant for the one that is missing.
        first = min(error.errors(include_url=False), key=lambda each: each["type"] == "missing")
        if first["type"] == "json_invalid":
            said = f'the body is not JSON ({first["ctx"]["error"]}): send an object such as {{"n": 4}}'
            raise HTTPException(400, said) from None
        name = str(first["loc"][0]) if first["loc"] else None
        if name is None:
            said = 'the body must be an object such as {"n": 4}'
        elif name == "truncation" and name not in model.model_fields:
            said = (
                "there is no field 'truncation', which suits GANs alone: start the service with task=serve"
                f" guidance={stronger_guidance(about):g} for images that are more typical and vary less"
            )
        elif name not in model.model_fields:
            said = f"there is no field {name[:40]!r}: the fields are {', '.join(model.model_fields)}"
        elif first["type"] == "missing":
            said = f"{name} is missing: send {model.model_fields[name].description}"
        else:
            given = json.dumps(first["input"], ensure_ascii=False)
            given = given if len(given) <= 40 else f"{given[:40]}..."
            said = f"{name} must be {model.model_fields[name].description}, not {given}"
        raise HTTPException(422, said) from None
    fields = dict(asked)
    kind = "labels" if fields.get("prompts") is None else "prompts"
    chosen = fields[kind]
    if kind == "prompts" and fields.get("labels") is not None:
        raise HTTPException(422, "prompts and labels are both set: leave out one of them")
    rows = about.n_classes if chosen is None else len(listed(chosen))
    total = rows * asked.n
    if total > max_images:
        said = f"{rows} {kind} of {asked.n} images are {total}, and one request may ask for {max_images}"
        raise HTTPException(413, said)
    condition = np.arange(rows) if chosen is None else conditions(kind, kind, chosen, about)
    noise = Noise(about.noise_shape, asked.seed, fields.get("truncation", 1.0))(total)
    request = Request(noise, condition.repeat(asked.n, axis=0))
    typed = listed(chosen) if kind == "prompts" else None
    if asked.others is None:
        if asked.weight is not None:
            raise HTTPException(422, "weight must be left out without others: it says how far to move towards them")
        return request, typed, asked
    if not sampler.can_interpolate:
        raise HTTPException(422, "others must be left out: this model does not draw between classes")
    n_goals = len(listed(asked.others))
    if n_goals not in (1, rows):
        one = "class" if kind == "labels" else "prompt"
        raise HTTPException(422, f"others must be one {one}, or as many as {kind}: {rows}, not {n_goals}")
    others = conditions("others", kind, asked.others, about).repeat(total // n_goals, axis=0)
    weight = np.full(total, 0.5 if asked.weight is None else asked.weight, np.float32)
    return replace(request, others=others, weight=weight), typed, asked


def listed(given: Any) -> list[Any]:
    """One value, or several, as a list."""
    return given if isinstance(given, list) else [given]


def conditions(field: str, kind: str, given: Any, about: About) -> np.ndarray:
    """The labels int64 [M] or prompts int64 [M, LENGTH] in a field, one or several."""
    try:
        if kind == "labels":
            return np.array([resolve(label, about.class_names) for label in listed(given)], np.int64)
        for each in listed(given):
            if not isinstance(each, str):
                raise ValueError(f"{each} is not a text, as the prompts are: write what to draw")
        check_prompts(listed(given))
        return to_codes(listed(given))
    except ValueError as error:
        raise HTTPException(422, f"{field}: {error}") from None
