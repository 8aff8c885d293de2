"""`bfcl`: whether the calls are the ones wanted, by the Berkeley leaderboard's AST match (Patil et al. 2025), from OpenAI tool calls.

In: function descriptions, possible answers (per parameter a list of accepted values, "" where it may be left out). Out: 1 or 0 and why.
Written from bfcl_eval/eval_checker/ast_eval/ast_checker.py (Python categories; revision b640d30), quirks included: a list's inner types
must match one accepted list, strings are compared without space , . / - _ * ^ and case. `irrelevance` wants no call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score, ToolCalled

TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
    "number": float,  # these two are JSON Schema's names
    "object": dict,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


READS_EVENTS = True
"""It looks at what happened on the way, which a row does not keep: kept answers are not scored again."""


class Spec(registry.Spec):
    """The functions offered and what may be called."""

    category: Literal["simple", "multiple", "parallel", "irrelevance"]
    functions: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="BFCL's descriptions: name and parameters"
    )
    answers: tuple[dict[str, dict[str, list[Any]]], ...] = Field(
        (), description="per wanted call {function: {parameter: accepted values}}"
    )

    @model_validator(mode="after")
    def _answered(self) -> Spec:
        for n, function in enumerate(self.functions):
            if told := _misnamed(function):
                raise ValueError(f"functions.{n}: {told}")
        names = {f.get("name") for f in self.functions if isinstance(f.get("parameters"), dict)}
        if bool(self.answers) == (self.category == "irrelevance"):
            raise ValueError(
                f"answers: got {len(self.answers)}, wanted {'none' if self.answers else 'at least one'} for {self.category}"
            )
        odd = [
            a
            for a in self.answers
            if len(a) != 1 or (self.category != "simple" and next(iter(a)) not in names)
        ]
        if odd or len(names) != len(self.functions):
            raise ValueError(
                f"answers: {odd}: wanted one function of {sorted(map(str, names))} each, described by name and parameters"
            )
        for answer in self.answers:
            function = self.function(next(iter(answer)))
            for mistake in _misdescribed(function):
                raise ValueError(f"functions: {mistake}")
            if unfit := _unfit(function, answer[next(iter(answer))]):
                raise ValueError(f"answers: {function['name']}: {unfit}; no call can be right")
        return self

    def function(self, name: str) -> dict[str, Any]:
        """The description of a function that an answer names."""
        if self.category == "simple":
            return self.functions[0]
        return next(f for f in self.functions if f["name"] == name)


def _misnamed(function: Mapping[str, Any]) -> str:
    """What a function's description lacks to be called at all; empty if nothing."""
    if not isinstance(function.get("name"), str) or not isinstance(function.get("parameters"), dict):
        return f"got {sorted(function)}, wanted name (text) and parameters (a mapping)"
    needed = function["parameters"].get("required", [])
    if not isinstance(needed, list) or not all(isinstance(p, str) for p in needed):
        return f"{function['name']}: required: got {needed!r}, wanted a list of names"
    return ""


def _misdescribed(function: Mapping[str, Any]) -> Iterator[str]:
    """Parameters whose values this match cannot judge."""
    for name, described in _properties(function).items():
        inner = described.get("items") if isinstance(described, dict) else None
        for place, one in ((name, described), *([(f"{name}.items", inner)] if inner is not None else [])):
            kind = one.get("type") if isinstance(one, dict) else None
            if not isinstance(kind, str) or kind not in TYPES:
                yield f"{function.get('name')}: {place}: type: got {kind!r}, wanted one of {', '.join(TYPES)}"


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    found = function["parameters"].get("properties", {})
    return found if isinstance(found, dict) else {}


def _unfit(function: Mapping[str, Any], accepted: Mapping[str, list[Any]]) -> str:
    """Why no call can be the wanted one; empty where one can."""
    known = _properties(function)
    needed = function["parameters"].get("required", ())
    outside = [p for p, values in accepted.items() if p not in known and "" not in values]
    missing = [p for p in needed if p not in accepted or p not in known]
    empty = [p for p, values in accepted.items() if not values]
    if outside or missing or empty:
        told = "is no parameter" if outside else "is required and has no accepted value"
        return f"{(outside or missing or empty)[0]} {told}"
    return ""


def api_name(name: str) -> str:
    """A function's name as OpenAI's API allows it."""
    return name.replace(".", "_")


def wrong_calls(target: Spec, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Why these calls (name, arguments) are not the ones wanted; empty if they are."""
    if target.category == "irrelevance":
        return f"called {calls[0][0]}, wanted no call" if calls else ""
    if len(calls) != len(target.answers):
        return f"{len(calls)} calls, wanted {len(target.answers)}"
    left = list(calls)
    for answer in target.answers:
        name = next(iter(answer))
        function = target.function(name)
        reasons = [wrong_call(function, answer[name], call) for call in left]
        if "" not in reasons:
            return reasons[0]
        left.pop(reasons.index(""))
    return ""


def wrong_call(
    function: Mapping[str, Any], accepted: Mapping[str, list[Any]], call: tuple[str, dict[str, Any]]
) -> str:
    """Why one call is not the wanted one; empty if it is."""
    name, given = call
    if api_name(name) != api_name(function["name"]):
        return f"called {name}, wanted {function['name']}"
    known, needed = _properties(function), function["parameters"].get("required", ())
    missing = [p for p in needed if p not in given]
    if missing:
        return f"{missing[0]}: missing, and required"
    for parameter, value in given.items():
        if parameter not in known or parameter not in accepted:
            return f"{parameter}: not a parameter"
        reason = _wrong_value(known[parameter], value, accepted[parameter])
        if reason:
            return f"{parameter}: {reason}"
    missing = [p for p, values in accepted.items() if p not in given and "" not in values]
    return f"{missing[0]}: missing" if missing else ""


def _wrong_value(described: Mapping[str, Any], value: Any, accepted: list[Any]) -> str:
    kind = described["type"]
    wanted = TYPES[kind]
    inner = TYPES[described["items"]["type"]] if kind in ("array", "tuple") and "items" in described else None
    if wanted is float and type(value) is int:
        value = float(value)
    got = type(value)
    if got is wanted and inner is not None and not _inner_fits(value, inner, accepted):
        return f"{value!r}, wanted {kind} of {described['items']['type']}"
    if got is not wanted and got is not _type_of(accepted):
        return f"{got.__name__} {value!r}, wanted {kind}"
    if got is not wanted or _type_of(accepted) not in (None, wanted):  # a name instead of a value
        right = value in accepted
    elif wanted is dict:
        right = any(_dict_fits(value, x) for x in accepted if x != "")
    elif wanted is list and inner is dict:
        right = any(
            len(value) == len(x) and all(_dict_fits(a, b) for a, b in zip(value, x, strict=True))
            for x in accepted
        )
    elif wanted is str:
        right = _plain(value) in [_plain(x) for x in accepted if isinstance(x, str)]
    elif wanted is list:
        right = [_plain(x) for x in value] in [[_plain(x) for x in one] for one in accepted]
    else:
        right = value in accepted
    return "" if right else f"{value!r}, accepted {accepted}"


def _type_of(accepted: list[Any]) -> type | None:
    return next((type(x) for x in accepted if x != ""), None)


def _inner_fits(value: list[Any], inner: type, accepted: list[Any]) -> bool:
    """Whether all of a list has the inner type, or the type of one accepted list's values."""
    return any(
        not isinstance(one, list) or all(type(x) in (inner, _type_of(one)) for x in value) for one in accepted
    )


def _dict_fits(value: Any, accepted: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(accepted, dict):
        return False
    known = all(k in accepted and _plain(v) in [_plain(x) for x in accepted[k]] for k, v in value.items())
    return known and all(k in value or "" in values for k, values in accepted.items())


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if exactly the wanted calls were made, answered ones included."""
    made = [e.call for e in completion.events if isinstance(e, ToolCalled)] or list(completion.tool_calls)
    shown = "; ".join(f"{c.name}({c.arguments})" for c in made)
    calls = []
    for call in made:
        try:
            given = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            return Score(0.0, shown, f"{call.name}: arguments are no JSON object")
        calls.append((call.name, given))
    reason = wrong_calls(target, calls)
    return Score(float(not reason), shown, reason or "as wanted")
