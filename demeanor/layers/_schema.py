"""A value against the part of JSON Schema that tools use: type, properties, required, additionalProperties, items, enum, bounds.

In: a value and a schema. Out: sentences that say what is wrong; none if nothing is. Other keywords are not checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def mistakes(value: Any, schema: Mapping[str, Any], where: str = "arguments") -> list[str]:
    """Everything wrong with a value; `where` names it."""
    wanted = schema.get("type")
    if wanted is not None and not any(
        _is(value, t) for t in ([wanted] if isinstance(wanted, str) else wanted)
    ):
        return [
            f"{where} should be {wanted if isinstance(wanted, str) else ' or '.join(wanted)}, got {_shown(value)}"
        ]
    if "enum" in schema and not any(_same(value, allowed) for allowed in schema["enum"]):
        return [f"{where} should be one of {', '.join(map(_shown, schema['enum']))}, got {_shown(value)}"]
    found = []
    if isinstance(value, dict):
        found += _members(value, schema, where)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        found += [m for i, v in enumerate(value) for m in mistakes(v, schema["items"], f"{where}[{i}]")]
    elif isinstance(value, str):
        found += _bounds(len(value), schema, "minLength", "maxLength", f"{where} in characters")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found += _bounds(value, schema, "minimum", "maximum", where)
    return found


def _members(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> list[str]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    found = [f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, member in value.items():
        if name in properties:
            found += mistakes(member, properties[name], f"{where}.{name}")
        elif schema.get("additionalProperties") is False:
            found.append(f"{where}.{name} is unknown; known: {', '.join(properties) or 'none'}")
    return found


def _bounds(size: float, schema: Mapping[str, Any], least: str, most: str, where: str) -> list[str]:
    low, high = schema.get(least, size), schema.get(most, size)
    return (
        []
        if low <= size <= high
        else [f"{where} should be {f'at least {low}' if size < low else f'at most {high}'}, got {size}"]
    )


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return name in TYPES and isinstance(value, TYPES[name])


def _same(value: Any, allowed: Any) -> bool:
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
