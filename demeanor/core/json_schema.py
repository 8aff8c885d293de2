"""Whether JSON values fit a JSON Schema (draft 2020-12): every mistake as a sentence that a model or a person can act on.

In: a value and a schema, both from people who may be hostile. Out: sentences. Nothing is fetched, and patterns are
matched by RE2, in time linear in the text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import re2
from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry

MAX_REFS = 10_000  # references that one check of arguments follows
MAX_REMEMBERED_CHARS = 20_000  # of a schema's text; longer ones are checked each time
_QUIET = re2.Options()
_QUIET.log_errors = False


def mistakes(value: Any, schema: Mapping[str, Any], where: str = "arguments") -> list[str]:
    """List what is wrong with a value by a JSON Schema (draft 2020-12), or why the schema is unusable.

    `where` names the value. Nothing is fetched, and patterns are matched by RE2, in time linear in the text.
    """
    whole = {keyword: wanted for keyword, wanted in schema.items() if keyword != "$schema"}
    try:
        _check(whole)
        _REFS.set(itertools.count(1))
        errors = _Checker(whole, registry=Registry()).iter_errors(value)
        return list(dict.fromkeys(sentence for error in errors for sentence in _sentences(error, where)))
    except SchemaError as error:
        why = f"{error.json_path}: {error.message}"
    except Exception as error:  # in the schema: a dangling or circular reference, an invalid pattern
        why = f"{type(error).__name__}: {error}"
    return [f"{where} cannot be checked, the tool's schema cannot be used: {shortened(why, 200)}"]


def _check(schema: Mapping[str, Any]) -> None:
    """Raise SchemaError if a schema is unusable; one that was found usable is not checked again, which takes milliseconds."""
    try:
        text = json.dumps(schema)
        known = len(text) <= MAX_REMEMBERED_CHARS and json.loads(text) == schema
    except (TypeError, ValueError, RecursionError):
        known = False
    if known:
        _check_text(text)
    else:
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))  # RE2 judges patterns


@lru_cache(maxsize=256)
def _check_text(text: str) -> None:
    Draft202012Validator.check_schema(json.loads(text), format_checker=FormatChecker(()))


def given(arguments: Any, schema: Mapping[str, Any]) -> Any:
    """Return arguments without those that are null where they may be left out and null is no value: models write both."""
    if not isinstance(arguments, dict):
        return arguments
    properties, required = schema.get("properties", {}), schema.get("required", ())

    def left_out(name: str, value: Any) -> bool:
        if value is not None or name in required or not isinstance(properties, Mapping):
            return False
        return isinstance(properties.get(name), Mapping) and bool(mistakes(None, properties[name]))

    return {name: value for name, value in arguments.items() if not left_out(name, value)}


def _ref(checker: Any, target: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if next(_REFS.get()) > MAX_REFS:
        raise RecursionError(f"more than {MAX_REFS} references")
    yield from Draft202012Validator.VALIDATORS["$ref"](checker, target, value, schema)


def _pattern(checker: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re2.search(pattern, value, _QUIET):
        yield ValidationError("no match")


_REFS: ContextVar[Iterator[int]] = ContextVar("references followed by the check that runs")
_CHANGED = {"$ref": _ref, "$dynamicRef": _ref, "pattern": _pattern}
_Checker = extend(Draft202012Validator, _CHANGED)  # type: ignore[no-untyped-call]


def _sentences(error: ValidationError, where: str) -> list[str]:
    """Return the place, what was wanted and what was got."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    place = where + "".join(steps)
    wanted: Any = error.validator_value
    value: Any = error.instance
    schema: Any = error.schema
    if error.validator == "required":
        return [f"{place}.{name} is missing" for name in wanted if name not in value]
    if error.validator == "additionalProperties" and "patternProperties" not in schema:
        known = schema.get("properties", {})
        names = ", ".join(known) or "none"
        return [f"{place}.{name} is unknown; known: {names}" for name in value if name not in known]
    if error.validator in ("minLength", "maxLength"):
        place, value = f"{place} in characters", len(value)
    match error.validator:
        case "type":
            should = wanted if isinstance(wanted, str) else " or ".join(wanted)
        case "enum":
            should = f"one of {', '.join(map(_shown, wanted))}"
        case "minimum" | "minLength":
            should = f"at least {wanted}"
        case "maximum" | "maxLength":
            should = f"at most {wanted}"
        case None:  # the schema is `false`; the library does not name the member
            return [f"{place} holds {_shown(value)} where the schema allows nothing"]
        case keyword:
            should = f"valid by {_shown({keyword: wanted})}"
    return [f"{place} should be {should}, got {_shown(value)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def shortened(text: str, max_chars: int) -> str:
    """Return the text, or the allowed part of it with the number of missing characters."""
    return text if len(text) <= max_chars else f"{text[:max_chars]} [{len(text) - max_chars} more characters]"
