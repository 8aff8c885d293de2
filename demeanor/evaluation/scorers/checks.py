"""`checks`: verifiable statements about an answer, of content and of form; 1 if all hold.

In: checks by kind (`_checks.py`), `strict` or `loose`. Out: 1 if every check holds; the explanation tells each. Strict reads the answer
as it stands; `loose` is content if one of IFEval's eight readings (without its first line, its last, both; each also without `*`) or
the inside of its only code block holds. An empty answer satisfies nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._checks import CHECKS, JSON_TYPES, of_type
from demeanor.evaluation.scorers._words import says, tokens
from demeanor.evaluation.scorers.ifeval import readings

VACUOUS = frozenset(
    {
        "mentions",
        "word_count",
        "sentence_count",
        "paragraph_count",
        "line_count",
        "character_count",
        "list",
        "each_words",
        "line_characters",
        "bold",
        "placeholders",
        "emoji",
        "code",
        "separated",
    }
)
"""Kinds that would ask nothing without `low` or `high`."""
OF_WORDS = frozenset({"says", "says_any", "omits", "in_order", "number", "label"})
"""Kinds that ask about words and numbers alone, so what `equals` allows decides them."""
LISTS = frozenset({"words", "any", "labels", "keys", "columns", "names", "languages"})
WHOLE = frozenset({"low", "high"})
TEXTS = frozenset({"answer", "word", "text", "by", "characters", "language"})
FLAGS = frozenset({"alone", "reverse"})
CHOICES = {"case": ("upper", "lower", "title"), "style": ("bullets", "numbers", "any")}
_ONE_BLOCK = re.compile(r"\A[^`]*```[\w+-]*[ \t]*\n(.*?)```[^`]*\Z", re.DOTALL)


class Check(registry.Spec):
    """One check: its kind, and exactly the settings that its kind reads."""

    kind: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, given: Any) -> Any:
        """Settings may stand beside `kind`, as they do in a suite file."""
        if isinstance(given, dict) and "settings" not in given:
            return {"kind": given.get("kind"), "settings": {k: v for k, v in given.items() if k != "kind"}}
        return given

    @model_validator(mode="after")
    def _known(self) -> Check:
        if self.kind not in CHECKS:
            near = difflib.get_close_matches(self.kind, CHECKS, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"unknown check '{self.kind}'.{hint} Known: {', '.join(CHECKS)}.")
        _, must, may = CHECKS[self.kind]
        if not must <= set(self.settings) <= must | may:
            raise ValueError(
                f"{self.kind}: got settings {sorted(self.settings)}, wanted {sorted(must)} and perhaps {sorted(may)}"
            )
        if self.kind in VACUOUS and not WHOLE & set(self.settings):
            raise ValueError(f"{self.kind}: wants low, high or both")
        for name, value in self.settings.items():
            if wrong := _wrong(self.kind, name, value):
                raise ValueError(f"{self.kind}: {name}: got {value!r}, wanted {wrong}")
        if self.kind == "in_order" and (empty := [x for x in self.settings["words"] if not tokens(str(x))]):  # type: ignore[union-attr]
            raise ValueError(f"in_order: words: got {empty[0]!r}, wanted words or numbers")
        low, high = self.settings.get("low"), self.settings.get("high")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            raise ValueError(f"{self.kind}: low {low} is above high {high}")
        return self


def _wrong(kind: str, name: str, value: Any) -> str:
    """What was wanted instead of a value; empty where it is right."""
    if name in LISTS:
        return (
            ""
            if isinstance(value, list) and value and all(isinstance(x, str) and x.strip() for x in value)
            else "a list of text, not empty"
        )
    if name in WHOLE:
        return (
            ""
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0
            else "a whole number from 0"
        )
    if name in TEXTS:
        return "" if isinstance(value, str) and value else "text, not empty"
    if name in FLAGS:
        return "" if isinstance(value, bool) else "true or false"
    if name in CHOICES:
        return "" if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    if name in ("value", "tolerance"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return (
            ""
            if is_number and (name == "value" or value >= 0)
            else "a number" + " from 0" * (name == "tolerance")
        )
    if name == "types":
        known = isinstance(value, dict) and all(x in JSON_TYPES for x in value.values())
        return "" if known else f"key: one of {', '.join(JSON_TYPES)}"
    if kind == "json_list":
        return "" if isinstance(value, list) else "a list"
    return "" if isinstance(value, dict) else "keys and values"


class Spec(registry.Spec):
    """What must hold."""

    checks: tuple[Check, ...] = Field(min_length=1, description="kinds with their settings")
    mode: Literal["strict", "loose"] = Field("strict", description="loose: one of several readings must hold")

    @model_validator(mode="after")
    def _can_hold(self) -> Spec:
        if never := _never(self):
            raise ValueError(f"no answer satisfies this: {never}")
        return self


def _never(target: Spec) -> str:
    """Why no answer can satisfy all checks, where that is plain; empty where it is not. Loose checks may hold in different readings."""
    ranges: dict[str, tuple[float, float]] = {}
    said, omitted = list[str](), list[str]()
    for check in target.checks:
        k: Any = check.settings
        same = repr((check.kind, sorted((x, v) for x, v in k.items() if x not in WHOLE)))
        low, high = ranges.get(same, (0, math.inf))
        ranges[same] = low, high = max(low, k.get("low", 0)), min(high, k.get("high", math.inf))
        if low > high and target.mode == "strict":
            return f"{check.kind}: at least {low} and at most {high}"
        said += k["words"] if check.kind in ("says", "in_order") else ()
        omitted += k["words"] if check.kind == "omits" else ()
        if check.kind == "label" and not CHECKS["label"][0](k["answer"], k):
            return f"label: {k['answer']!r} itself does not name exactly {k['answer']!r} of {k['labels']}"
        if check.kind == "json":
            types, values = k.get("types", {}), k.get("values", {})
            outside = sorted({*types, *values} - {*k.get("keys", (*types, *values))})
            wrong = [name for name in types if name in values and not of_type(values[name], types[name])]
            if outside or wrong:
                return (
                    f"json: {outside[0]} is not among keys"
                    if outside
                    else f"json: {wrong[0]}: the value is no {types[wrong[0]]}"
                )
        if check.kind in ("equals", "value"):
            answers = k["any"] if check.kind == "equals" else [_written(k["value"])]
            failing = [list(_fails(target, answer)) for answer in answers]
            if all(failing):
                return f"{check.kind}: {answers[0]!r} itself fails {', '.join(failing[0])}"
    both = next(((s, o) for s in said for o in omitted if says(s, o)), None)
    return f"{both[0]!r} must be said and {both[1]!r} must not" if both and target.mode == "strict" else ""


def _fails(target: Spec, text: str) -> Iterator[str]:
    """The checks of words that a text fails."""
    for check, ok in zip(target.checks, held(target, text), strict=True):
        if not ok and check.kind in OF_WORDS:
            yield check.kind


def _written(value: float) -> str:
    return format(Decimal(str(value)), "f")


def texts(target: Spec, text: str) -> list[str]:
    """The readings of an answer of which one must hold, the answer itself first; none is empty."""
    found = [text.strip()]
    if target.mode == "loose":
        block = _ONE_BLOCK.match(text)
        found += [x.strip() for x in (*readings(text.strip()), *([block.group(1)] if block else ()))]
    return [x for x in dict.fromkeys(found) if x]


def held(target: Spec, text: str) -> list[bool]:
    """Whether each check holds, in some reading; an empty text satisfies none."""
    readings_ = texts(target, text)
    return [any(CHECKS[c.kind][0](t, c.settings) for t in readings_) for c in target.checks]


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if every check holds; a refusal by a layer satisfies nothing, whatever its words are."""
    if completion.refusal:
        return Score(0.0, completion.text[:80], f"refused by {completion.refusal.by}")
    found = held(target, completion.text)
    told = ", ".join(
        f"{c.kind} {'holds' if ok else 'FAILS'}" for c, ok in zip(target.checks, found, strict=True)
    )
    return Score(float(all(found)), completion.text.strip()[:80], told)
