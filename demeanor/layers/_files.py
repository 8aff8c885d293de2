"""YAML files that layers read: parsed and checked against a schema, every mistake at once with its path in the file.

In: a path and a pydantic type. Out: the value, or Problems. It is what `check.py` is to stack.yaml, which layers may not import.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from demeanor.errors import Problem, SpecError, unknown

M = TypeVar("M", bound=BaseModel)


class Loader(yaml.SafeLoader):
    """Safe YAML in which `on`, `off`, `yes` and `no` are words, as in YAML 1.2, and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


BOOL = "tag:yaml.org,2002:bool"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_text(path: Path) -> str:
    """A UTF-8 text file; raises SpecError that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(str(path), f"not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise SpecError([Problem(str(path), f"cannot be read: {error.strerror}")]) from None


def read_yaml(path: Path, schema: type[M]) -> M:
    """A YAML file as `schema`; raises SpecError with every mistake in it."""
    try:
        raw = yaml.load(read_text(path), Loader=Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SpecError([Problem(where, f"not valid YAML: {getattr(error, 'problem', error)}")]) from None
    if not isinstance(raw, dict):
        raise SpecError(
            [Problem(str(path), f"wanted a mapping with the keys {', '.join(schema.model_fields)}")]
        )
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        inner = [
            e
            for e in found
            if not any(len(o["loc"]) > len(e["loc"]) and o["loc"][: len(e["loc"])] == e["loc"] for o in found)
        ]
        raise SpecError(_problem(schema, e, path) for e in inner) from None


def problems_of(path: Path, schema: type[BaseModel]) -> list[Problem]:
    """The mistakes in a YAML file, none if it is right."""
    try:
        read_yaml(path, schema)
    except SpecError as error:
        return list(error.problems)
    return []


def _problem(schema: type[BaseModel], error: ErrorDetails, path: Path) -> Problem:
    loc = error["loc"]
    where = f"{path}: {_place(loc)}" if loc else str(path)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return Problem(where, unknown(str(loc[-1]), _fields_at(schema, loc[:-1]), noun="setting"))
    if error["type"] == "missing":
        return Problem(where, "missing; it has no default")
    if error["type"] == "literal_error":
        known = [str(x) for x in _known_at(schema, loc)]
        return Problem(where, unknown(str(error["input"]), known, noun="value") if known else message)
    if error["type"] == "value_error":
        return Problem(where, message)
    return Problem(where, f"got {str(error['input'])[:60]!r}, wanted: {message[:1].lower()}{message[1:]}")


def _place(loc: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")


def _schema_at(schema: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model that stands at `loc`, found by walking fields and the first model inside their types."""
    here: type[BaseModel] | None = schema
    for step in loc:
        if here is not None and isinstance(step, str):
            field = here.model_fields.get(step)
            here = _model_in(field.annotation) if field else None
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)


def _fields_at(schema: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    here = _schema_at(schema, loc)
    return list(here.model_fields) if here else []


def _known_at(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[Any, ...]:
    """The values that a Literal field at `loc` may have."""
    here = _schema_at(schema, loc[:-1])
    field = here.model_fields.get(str(loc[-1])) if here else None
    return tuple(x for x in _literals(field.annotation if field else None))


def _literals(annotation: Any) -> list[Any]:
    args = get_args(annotation)
    return [x for a in args for x in ([a] if isinstance(a, str) else _literals(a))]
