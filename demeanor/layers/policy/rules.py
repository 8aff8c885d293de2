"""The rules of policy.yaml: their settings, checks, and compiled form; strict YAML for files of layers.

In: a path. Out: rules ready to match, or a SpecError with every mistake. Knows nothing of turns or events.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import re2
import yaml
from pydantic import BaseModel, Field, FiniteFloat, field_validator, model_validator

from demeanor.core import files, registry
from demeanor.core.errors import Problem, SpecError
from demeanor.core.personal_data import DETECTORS, Find
from demeanor.core.phone_numbers import Span
from demeanor.core.registry import parse
from demeanor.core.types import Trust

M = TypeVar("M", bound=BaseModel)


class Loader(files.UniqueKeys):
    """Strict YAML in which `on`, `off`, `yes` and `no` are words, as in YAML 1.2."""


BOOL = "tag:yaml.org,2002:bool"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(path: Path, schema: type[M]) -> M:
    """Read a YAML file as `schema`; raises SpecError with every mistake in it."""
    found, problems = parse(schema, files.read_yaml(path, Loader), str(path))
    if found is None:
        raise SpecError(problems)
    return found


def problems_of(path: Path, schema: type[BaseModel]) -> list[Problem]:
    """Return the mistakes in a YAML file."""
    try:
        read_yaml(path, schema)
    except SpecError as error:
        return list(error.problems)
    return []


MAX_WIDTH = 10_000
ROUNDING = 1e-9  # tolerance when a sum of weights is compared with a threshold
Weigh: TypeAlias = Callable[[str], float]
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_PARSER = importlib.import_module("re._parser")  # Python's regex parser, which knows how long a match can be
_RE2_ONLY = re.compile(r"\\\\|\\[pP](?:\{[^}]*\}|\w)|\\x\{[0-9A-Fa-f]+\}|\[:\^?\w+:\]|\\z")


class RuleSpec(registry.Spec):
    """One rule: what it matches, where, and what happens then."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="stands in every refusal and trace")
    on: Literal["input", "output", "both"] = Field(description="the request, the answer, or both")
    pattern: str | None = Field(
        None, min_length=1, description="RE2 pattern; case counts unless it begins with (?i)"
    )
    detector: Literal["card", "email", "iban", "ip", "phone", "ssn"] | None = Field(
        None, description="personal data, check digits included"
    )
    cues: dict[str, FiniteFloat] | None = Field(
        None,
        min_length=1,
        description="RE2 patterns, each with a weight: the score is the sum over those that match",
    )
    threshold: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="cues: refused from this score on"
    )
    action: Literal["refuse", "redact"] = "refuse"
    reason: str = Field(min_length=1, description="why; appears in the trace")
    reply: str | None = Field(
        None,
        min_length=1,
        description="what the user reads instead: of everything (refuse), of the match "
        "(redact; null: the rule's name in brackets)",
    )
    hold: Literal["buffer", "window", "stream"] | None = Field(
        None,
        description="unjudged text: buffer holds all, window as much as one match needs, stream none; "
        "null: window if a longest match exists, else buffer",
    )
    window: int | None = Field(
        None, gt=0, description="characters that wait (hold: window); null: as many as the longest match"
    )
    trust: Literal["none", "user", "developer", "system"] | None = Field(
        None, description="input: judge text of this authority or below; null: user"
    )

    @field_validator("cues")
    @classmethod
    def _cues_compile(cls, cues: dict[str, float] | None) -> dict[str, float] | None:
        for pattern in cues or ():
            cls._compiles(pattern)
        return cues

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                matches_nothing = compiled(pattern).search("") is not None or _widths(pattern)[0] == 0
            except re2.error as error:
                raise ValueError(f"not an RE2 pattern: {_words(error)}; got {pattern!r}") from None
            if matches_nothing:
                raise ValueError(f"matches the empty text, so every text; got {pattern!r}")
        return pattern

    @model_validator(mode="after")
    def _makes_sense(self) -> RuleSpec:
        if sum(x is not None for x in (self.pattern, self.detector, self.cues)) != 1:
            raise ValueError("wanted a pattern, a detector or cues, and one of them only")
        if (self.cues is None) != (self.threshold is None):
            raise ValueError("cues and threshold go together: from which score on is it refused?")
        if self.cues is not None and (self.action == "redact" or self.holds != "buffer"):
            raise ValueError("cues score a whole text. Wanted action: refuse and hold: buffer")
        if self.action == "refuse" and self.reply is None:
            raise ValueError("reply is missing: what the user reads instead of a refused answer")
        if self.trust is not None and self.on == "output":
            raise ValueError(
                "trust is about the author of a request; an answer is the model's. "
                "Wanted on: input, or no trust"
            )
        if self.on == "input" and (self.hold not in (None, "buffer") or self.window is not None):
            raise ValueError(
                "hold and window are about answers; a request is always judged whole. "
                "Wanted on: output or both"
            )
        if self.window is not None and self.holds != "window":
            raise ValueError(f"window is read with hold: window only, and hold is {self.holds}")
        if self.hold == "stream" and self.action == "redact":
            raise ValueError("text that has left cannot be redacted. Wanted hold: window, or buffer")
        if self.holds == "window":
            self._window_holds_a_match()
        return self

    def _window_holds_a_match(self) -> None:
        longest = self.longest
        if longest is None:
            raise ValueError(
                "the pattern has no longest match, so no window is sure to hold it. Bound its repetitions "
                "(\\d{1,9} for \\d+), or hold: buffer"
            )
        if self.window is not None and self.window < longest:
            raise ValueError(
                f"window is {self.window} characters and a match can have {longest}: its beginning would "
                f"leave. Wanted at least {longest}, or null"
            )

    @property
    def holds(self) -> Literal["buffer", "window", "stream"]:
        """`hold`, or what null stands for."""
        return self.hold or ("buffer" if self.longest is None else "window")

    @property
    def longest(self) -> int | None:
        """Characters of the longest match; None if there is no bound."""
        if self.cues:
            return None
        return DETECTORS[self.detector].width if self.detector else _widths(self.pattern or "")[1]


class PolicySpec(registry.Spec):
    """The whole of policy.yaml."""

    rules: tuple[RuleSpec, ...] = Field(min_length=1)

    @field_validator("rules")
    @classmethod
    def _named_once(cls, rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"every rule needs a name of its own; twice: {', '.join(twice)}")
        return rules


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule: `find` yields the matches that begin at or after a position of a folded text, in order.

    `longest` is the length of the longest match, None if there is no bound.
    """

    name: str
    on: Literal["input", "output", "both"]
    refuses: bool
    reason: str
    reply: str
    hold: Literal["buffer", "window", "stream"]
    window: int
    longest: int | None
    trust: Trust
    find: Find
    weigh: Weigh | None = None  # score of a folded text, for rules of cues


def load(path: Path) -> tuple[Rule, ...]:
    """Read the rules of a file; raises SpecError with every mistake in it."""
    return tuple(rule(spec) for spec in read_yaml(path, PolicySpec).rules)


def rule(spec: RuleSpec) -> Rule:
    """Compile a checked rule."""
    weigh: Weigh | None = None
    if spec.cues:
        find, weigh = _scored(spec.cues, spec.threshold or 0.0)
    else:
        find = DETECTORS[spec.detector].find if spec.detector else _pattern(spec.pattern or "", spec.longest)
    return Rule(
        spec.name,
        spec.on,
        spec.action == "refuse",
        spec.reason,
        spec.reply or f"[{spec.name}]",
        spec.holds,
        spec.window or spec.longest or 0,
        spec.longest,
        Trust[(spec.trust or "user").upper()],
        find,
        weigh,
    )


def compiled(pattern: str) -> re2._Regexp:
    """Compile an RE2 pattern; raises re2.error."""
    return re2.compile(pattern, _OPTIONS)


MAX_SCANS, MAX_SCAN = 100, 2_000


def _pattern(pattern: str, longest: int | None) -> Find:
    """Return a `find` that takes time linear in the text.

    A search for a match without a bound may read to the end of the text and be shortened to a few characters,
    so after the first 100 matches such a rule reads 2,000 characters ahead at most.
    """
    regexp = compiled(pattern)

    def find(text: str, start: int) -> Iterator[Span]:
        found = (m.span() for m in regexp.finditer(text, start) if m.end() > m.start())
        if longest is not None:
            yield from found
            return
        at, scans = start, 0
        for span in islice(found, MAX_SCANS):
            at, scans = span[1], scans + 1
            yield span
        while scans == MAX_SCANS and at < len(text):
            base = max(0, at - 1)
            match = regexp.search(text[base : at + 2 * MAX_SCAN], at - base)
            if match is None or match.start() + base >= at + MAX_SCAN or match.end() == match.start():
                at += MAX_SCAN
                continue
            at = match.end() + base
            yield match.start() + base, at

    return find


def _scored(cues: Mapping[str, float], threshold: float) -> tuple[Find, Weigh]:
    """Return a `find` that matches all cues at once if their weights reach `threshold`, and the sum of
    weights."""
    known = [(compiled(pattern), weight) for pattern, weight in cues.items()]

    def weigh(text: str) -> float:
        return math.fsum(weight for regexp, weight in known if regexp.search(text) is not None)

    def find(text: str, start: int) -> Iterator[Span]:
        if start or (score := weigh(text)) <= 0 or score < threshold - ROUNDING:
            return
        seen = [match for regexp, _ in known if (match := regexp.search(text)) is not None]
        yield min(match.start() for match in seen), max(match.end() for match in seen)

    return find, weigh


def _widths(pattern: str) -> tuple[int | None, int | None]:
    """Return the lengths of the shortest and longest match; None for both where RE2 and Python may differ."""
    if "{," in pattern:
        return None, None  # a repetition for Python, plain text for RE2
    try:
        shortest, longest = _PARSER.parse(_RE2_ONLY.sub(_as_python, pattern)).getwidth()
    except (re.error, OverflowError, RecursionError):
        return None, None
    return shortest, longest if longest <= MAX_WIDTH else None


def _as_python(match: re.Match[str]) -> str:
    """Return RE2-only syntax in Python's syntax of equal width."""
    text = match.group()
    return text if text == r"\\" else r"\Z" if text == r"\z" else r"\w"


def _words(error: re2.error) -> str:
    text = error.args[0] if error.args else ""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
