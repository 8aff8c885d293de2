"""Validation of declared settings: pydantic's errors as Problems with their path and the known names.

In: a schema and raw values of YAML. Out: the parsed schema, or every mistake in the values. Reads no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from demeanor.core.errors import Problem, unknown

M = TypeVar("M", bound=BaseModel)
KINDS = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}


def parse(schema: type[M], raw: Any, where: str) -> tuple[M | None, list[Problem]]:
    """Validate raw values of YAML: the parsed schema, or every mistake in them."""
    if not isinstance(raw, dict):
        keys = ", ".join(schema.model_fields)
        return None, [Problem(where, f"got {_shown(raw)}, wanted a mapping with the keys {keys}")]
    try:
        return schema.model_validate(raw), []
    except ValidationError as error:
        found = error.errors(include_url=False)
    locations = [e["loc"] for e in found]
    # An error of a union repeats those inside of its members.
    inner = [e for e in found if not any(a != e["loc"] and a[: len(e["loc"])] == e["loc"] for a in locations)]
    return None, [_problem(schema, e, where) for e in inner]


def _problem(schema: type[BaseModel], error: Any, where: str) -> Problem:
    kind, loc, got = error["type"], error["loc"], error.get("input")
    path, models = _walk(schema, loc)
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    place = f"{where}: {place}" if place else where
    message = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        _, parents = _walk(schema, loc[:-1])
        names = parents[0].model_fields if parents else ()
        return Problem(place, unknown(str(loc[-1]), names, noun="setting"))
    if kind == "missing":
        return Problem(place, "missing; it has no default")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        noun = next(step for step in reversed(path) if isinstance(step, str)).rstrip("s")
        known = [str(model.model_fields["kind"].default) for model in models]
        return Problem(f"{place}.kind", unknown(str((got or {}).get("kind")), known, noun=f"kind of {noun}"))
    if kind == "literal_error":
        values = [value for value in _literals(_annotation(schema, loc)) if isinstance(value, str)]
        if values:
            return Problem(place, unknown(str(got), values, noun="value"))
    if kind == "value_error":
        return Problem(place, message)
    return Problem(place, f"got {_shown(got)}, wanted: {message[:1].lower()}{message[1:]}")


def _walk(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str | int], list[type[BaseModel]]]:
    """Return `loc` without pydantic's union tags, and the models that may stand there."""
    path: list[str | int] = []
    models = [schema]
    for step in loc:
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == step]
        if tagged and len(models) > 1:
            models = tagged
            continue
        path.append(step)
        if isinstance(step, str):
            field = models[0].model_fields.get(step) if models else None
            models = _models_in(field.annotation) if field else []
    return path, models


def _annotation(schema: type[BaseModel], loc: Sequence[str | int]) -> Any:
    _, models = _walk(schema, loc[:-1])
    field = models[0].model_fields.get(str(loc[-1])) if models else None
    return field.annotation if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _literals(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [x for a in arguments for x in ([a] if isinstance(a, str) else _literals(a))]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, int | float):
        return repr(value)
    return KINDS.get(type(value), type(value).__name__)
