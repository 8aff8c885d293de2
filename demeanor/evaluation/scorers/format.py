"""`format`: the answer has the form that was asked for, and the right content in it.

In: a kind (capitals, list, json, sentence, words) and what must be said. Out: 1 if form and content are right, else 0 with which
of them is wrong.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._words import contains, words

_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(.*\S)\s*$")


class Spec(registry.Spec):
    """The form, and what must be said in it."""

    kind: Literal["capitals", "list", "json", "sentence", "words"]
    words: tuple[str, ...] = Field(
        (), description="what must be named; in a list: the items in any order, no others"
    )
    object: dict[str, JsonValue] | None = Field(None, description="json: the object wanted, keys and values")
    max_words: int = Field(30, gt=0, description="longest answer in words")

    @model_validator(mode="after")
    def _complete(self) -> Spec:
        if (self.kind == "json") != (self.object is not None):
            raise ValueError("`object` belongs to kind json, and to no other")
        return self


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if the form and the content are right."""
    text = completion.text.strip()
    if target.kind == "json":
        return _json(target.object or {}, text)
    said = words(text)
    if len(said) > target.max_words:
        return Score(0.0, text[:80], f"{len(said)} words, at most {target.max_words} wanted")
    shaped = {
        "capitals": text == text.upper() and any(c.isalpha() or c.isdigit() for c in text),
        "list": _items(text) is not None,
        "sentence": bool(re.match(r"[A-Z].*[.!]$", text, re.S)) and len(said) > len(target.words) + 2,
        "words": bool(said),
    }
    if not shaped[target.kind]:
        return Score(0.0, text[:80], f"not {target.kind}")
    missing = [w for w in target.words if not contains(said, words(w))]
    if target.kind == "list" and not missing and len(_items(text) or ()) != len(target.words):
        return Score(0.0, text[:80], f"{len(_items(text) or ())} items, {len(target.words)} wanted")
    return Score(float(not missing), text[:80], f"does not say {', '.join(missing)}" if missing else "")


def _items(text: str) -> list[str] | None:
    """The items of a list, None if a line is none."""
    found = [_ITEM.match(line) for line in text.splitlines() if line.strip()]
    return [m.group(1) for m in found if m] if found and all(found) else None


def _json(wanted: dict[str, Any], text: str) -> Score:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return Score(0.0, text[:80], "not JSON")
    if not isinstance(found, dict) or set(found) != set(wanted):
        return Score(0.0, text[:80], f"not the keys {', '.join(wanted)}")
    wrong = [k for k in wanted if words(str(found[k])) != words(str(wanted[k]))]
    return Score(float(not wrong), text[:80], f"wrong: {', '.join(wrong)}" if wrong else "")
