"""The rules of policy.yaml as they are declared: settings, checks, and strict YAML for files of layers.

In: a path. Out: declared rules, or a SpecError with every mistake. Knows nothing of turns or events; `matching.py`
compiles what is declared here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import re2
import yaml
from pydantic import BaseModel, Field, FiniteFloat, field_validator, model_validator

from demeanor.core import files, registry
from demeanor.core.errors import Problem, SpecError, unknown
from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS
from demeanor.core.registry import parse
from demeanor.core.types import Stage

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
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_PARSER = importlib.import_module("re._parser")  # Python's regex parser, which knows how long a match can be
_RE2_ONLY = re.compile(r"\\\\|\\[pP](?:\{[^}]*\}|\w)|\\x\{[0-9A-Fa-f]+\}|\[:\^?\w+:\]|\\z")

STAGES: tuple[Stage, ...] = get_args(Stage)
Action: TypeAlias = Literal["refuse", "redact", "rewrite", "redirect", "flag", "ask"]
STOPS, REPLACES = frozenset({"refuse", "redirect"}), frozenset({"redact", "rewrite"})
Personal: TypeAlias = Literal["card", "email", "iban", "ip", "phone", "ssn"]
Calls: TypeAlias = Literal["untrusted_arguments", "untrusted_context"]
DetectorName: TypeAlias = Literal[
    "card", "email", "iban", "ip", "phone", "ssn", "injection", "untrusted_arguments", "untrusted_context"
]
CALLS: frozenset[str] = frozenset(get_args(Calls))  # they read a call and where its words come from
PERSONAL: frozenset[str] = frozenset(get_args(Personal))
PLACE = re.compile(r"\{(?:(first|last):(\d{1,3})|(rule|length))\}")


class JudgeEndpoint(registry.Spec):
    """A model on an OpenAI-compatible server that answers one question about a text with yes or no."""

    url: str = Field(
        pattern=r"^https?://[^@]+$",
        description="the part before /chat/completions, such as http://127.0.0.1:8000/v1",
    )
    model: str = Field(min_length=1, description="model id there")
    question: str = Field(min_length=1, description="what the judge decides about the text; yes is a match")
    key_env: str | None = Field(
        None, description="environment variable that holds the API key; null: none is sent"
    )
    timeout_s: float = Field(5.0, gt=0, le=600, description="longest time for one verdict, in seconds")
    max_chars: int = Field(
        8000, ge=100, description="characters of a text that the judge reads: its beginning and its end"
    )


class Signal(registry.Spec):
    """One part of a combined score: a detector and its weight."""

    weight: FiniteFloat = Field(
        description="of the part's log-odds (probabilities) or of 1 (a pattern that matches)"
    )
    pattern: str | None = Field(None, min_length=1, description="RE2 pattern")
    detector: Literal["card", "email", "iban", "ip", "phone", "ssn", "injection"] | None = Field(
        None, description="personal data, or instructions in the text"
    )
    classifier: str | None = Field(None, min_length=1, description="file of `demeanor policy train`")
    label: str | None = Field(
        None, min_length=1, description="classifier: which of its labels; null: its only one"
    )
    probe: str | None = Field(None, min_length=1, description="file of `demeanor policy train --probe`")
    judge: JudgeEndpoint | None = Field(None, description="a model that answers yes or no")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return checked_pattern(pattern)

    @model_validator(mode="after")
    def _one(self) -> Signal:
        _one_of(self, ("pattern", "detector", "classifier", "probe", "judge"))
        if self.label is not None and self.classifier is None:
            raise ValueError("label is read with a classifier only")
        return self


class Combination(registry.Spec):
    """A logistic combination: probability = sigmoid(bias + sum of weight x log-odds)."""

    all: tuple[Signal, ...] = Field(min_length=1, description="the parts")
    bias: FiniteFloat = Field(0.0, description="log-odds where no part says anything")


class RuleTest(registry.Spec):
    """A text that the rule is tried on by `demeanor policy test`, and what should happen."""

    text: str = Field(min_length=1, description="the text")
    want: Literal["pass", "refuse", "redact", "rewrite", "redirect", "flag", "ask"] = Field(
        description="the rule's action, or pass"
    )
    stage: Stage | None = Field(None, description="where the text stands; null: the rule's first stage")
    leaves: str | None = Field(None, description="redact, rewrite: the text that goes on; null: not compared")


class RuleSpec(registry.Spec):
    """One rule: what it matches, where, and what happens then."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="stands in every refusal and trace")
    on: str | tuple[str, ...] = Field(
        description="input, output, both, another stage (retrieved, tool_definition, tool_call, tool_result), "
        "or a list of stages"
    )
    pattern: str | None = Field(
        None, min_length=1, description="RE2 pattern; case counts unless it begins with (?i)"
    )
    detector: DetectorName | None = Field(
        None,
        description="personal data, check digits included; instructions in data; calls that data decides",
    )
    cues: dict[str, FiniteFloat] | None = Field(
        None,
        min_length=1,
        description="RE2 patterns, each with a weight: the score is the sum over those that match",
    )
    classifier: str | None = Field(
        None,
        min_length=1,
        description="file of `demeanor policy train`, beside the policy file, or builtin:NAME",
    )
    label: str | None = Field(
        None, min_length=1, description="classifier: which of its labels; null: its only one"
    )
    probe: str | None = Field(
        None, min_length=1, description="file of `demeanor policy train --probe`, beside the policy file"
    )
    judge: JudgeEndpoint | None = Field(None, description="a model that answers yes or no")
    score: Combination | None = Field(None, description="several detectors as one probability")
    threshold: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cues: matches from this sum on; probabilities: from this one on (null: the file's own, else 0.5)",
    )
    action: Action = Field("refuse", description="what happens to a match")
    reason: str = Field(min_length=1, description="why; appears in the trace")
    reply: str | None = Field(
        None,
        min_length=1,
        description="what the user reads instead: of everything (refuse, redirect), of the match "
        "(redact; null: the rule's name in brackets)",
    )
    template: str | None = Field(
        None,
        min_length=1,
        description="rewrite: what stands instead of the match; {rule}, {length}, {first:N}, {last:N} of its characters",
    )
    fail: Literal["open", "closed"] | None = Field(
        None,
        description="a judge or probe that gives no score: the text passes, or counts as a match; null: closed",
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
    roles: tuple[Literal["system", "developer", "user", "assistant", "tool"], ...] | None = Field(
        None,
        min_length=1,
        description="input: judge messages of these roles only; null: of all that `trust` allows",
    )
    allow: tuple[str, ...] | None = Field(
        None, min_length=1, description="texts that are no match: a whole match that is one of them passes"
    )
    tests: tuple[RuleTest, ...] | None = Field(
        None, min_length=1, description="texts for `demeanor policy test`"
    )

    @field_validator("cues")
    @classmethod
    def _cues_compile(cls, cues: dict[str, float] | None) -> dict[str, float] | None:
        for pattern in cues or ():
            checked_pattern(pattern)
        return cues

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return checked_pattern(pattern)

    @field_validator("on", mode="before")
    @classmethod
    def _stages_exist(cls, on: Any) -> Any:
        for stage in on if isinstance(on, list | tuple) else ():
            if stage not in STAGES:
                raise ValueError(unknown(str(stage), STAGES, noun="value"))
        if isinstance(on, list | tuple) and on and len(set(on)) == len(on):
            return tuple(on)
        if not isinstance(on, str):
            raise ValueError(
                f"wanted input, output, both, or a list of stages, each once: {', '.join(STAGES)}"
            )
        if on != "both" and on not in STAGES:
            raise ValueError(unknown(on, (*STAGES, "both"), noun="value"))
        return on

    @model_validator(mode="after")
    def _makes_sense(self) -> RuleSpec:
        checks = (_detectors, _allowed, _actions, _holding, _tests)
        for problem in (found for check in checks for found in check(self)):
            raise ValueError(problem)
        return self

    @property
    def stages(self) -> frozenset[Stage]:
        """Where the rule reads."""
        named = (
            ("input", "output")
            if self.on == "both"
            else self.on
            if isinstance(self.on, tuple)
            else (self.on,)
        )
        return frozenset(stage for stage in STAGES if stage in named)

    @property
    def scored(self) -> bool:
        """Whether the rule has a score for a whole text, and no longest match."""
        whole = (self.cues, self.classifier, self.probe, self.judge, self.score)
        return any(x is not None for x in whole) or self.detector == "injection" or self.reads_calls

    @property
    def reads_calls(self) -> bool:
        """Whether the detector compares a call with the texts before it."""
        return self.detector in CALLS

    @property
    def can_fail(self) -> bool:
        """Whether a detector of the rule asks a model."""
        parts = self.score.all if self.score else ()
        asked = (self.probe, self.judge, *(x for part in parts for x in (part.probe, part.judge)))
        return any(x is not None for x in asked)

    @property
    def holds(self) -> Literal["buffer", "window", "stream"]:
        """`hold`, or what null stands for."""
        if self.action == "redirect":
            return self.hold or "buffer"
        return self.hold or ("buffer" if self.longest is None else "window")

    @property
    def longest(self) -> int | None:
        """Characters of the longest match; None if there is no bound."""
        if self.scored:
            return None
        return DETECTORS[self.detector].width if self.detector else _widths(self.pattern or "")[1]

    @property
    def files(self) -> list[str]:
        """Files of weights that the rule names."""
        parts = self.score.all if self.score else ()
        named = (self.classifier, self.probe, *(x for part in parts for x in (part.classifier, part.probe)))
        return [name for name in named if name is not None]


def _one_of(spec: BaseModel, names: tuple[str, ...]) -> None:
    if sum(getattr(spec, name) is not None for name in names) != 1:
        first = ", ".join(f"a {name}" for name in names[:-1])
        raise ValueError(f"wanted {first} or {names[-1]}, and one of them only")


def _detectors(rule: RuleSpec) -> Iterator[str]:
    """What is wrong with what a rule matches."""
    kinds = (rule.pattern, rule.detector, rule.cues, rule.classifier, rule.probe, rule.judge, rule.score)
    if sum(x is not None for x in kinds) != 1:
        yield (
            "wanted a pattern, a detector or cues, and one of them only (or a classifier, probe, judge or score)"
        )
    probable = rule.scored and rule.cues is None and not rule.reads_calls
    if rule.cues is not None and rule.threshold is None:
        yield "cues and threshold go together: from which score on is it refused?"
    if rule.threshold is not None and rule.cues is None and (not probable or rule.judge is not None):
        yield "cues and threshold go together, or a detector that gives a probability; this one gives none"
    if probable and rule.threshold is not None and rule.threshold >= 1:
        yield f"threshold is a probability here; got {rule.threshold:g}, wanted a number between 0 and 1"
    if rule.label is not None and rule.classifier is None:
        yield "label is read with a classifier only"
    if rule.fail is not None and not rule.can_fail:
        yield "fail is about a detector that asks a model (probe, judge); the other ones cannot fail"
    if rule.reads_calls and rule.stages != {"tool_call"}:
        yield f"detector {rule.detector} compares a call with the texts before it. Wanted on: tool_call"


def _allowed(rule: RuleSpec) -> Iterator[str]:
    """What is wrong with the texts that are no match."""
    if rule.allow is not None and rule.scored:
        yield "allow names matches of a pattern or of personal data; this rule scores a whole text"
        return
    for text in rule.allow or ():
        folded = Folded(text).text
        spans = (
            DETECTORS[rule.detector].find(folded, 0) if rule.detector else _spans(rule.pattern or "", folded)
        )
        if (0, len(folded)) not in spans:
            yield f"allow: {text!r} is no whole match of the rule, so it would change nothing"


def _spans(pattern: str, folded: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in compiled(pattern).finditer(folded))


def _actions(rule: RuleSpec) -> Iterator[str]:
    """What is wrong with what a rule does."""
    if rule.cues is not None and rule.action in REPLACES:
        yield "cues score a whole text. Wanted action: refuse and hold: buffer"
    if rule.action in STOPS and rule.reply is None:
        yield "reply is missing: what the user reads instead of a refused answer"
    if rule.action not in (*STOPS, "redact") and rule.reply is not None:
        yield f"reply is not read with action: {rule.action}"
    if (rule.action == "rewrite") != (rule.template is not None):
        yield "template goes with action: rewrite, and rewrite with a template: what stands instead of the match?"
    if rule.template is not None and re.search(r"[{}]", PLACE.sub("", rule.template)):
        yield "template: wanted {rule}, {length}, {first:N} or {last:N} in braces, and no others"
    if rule.action == "rewrite" and rule.scored:
        yield "rewrite needs a match with a begin and an end. Wanted a pattern or personal data, or action: redact"
    if rule.action == "ask" and rule.stages != {"tool_call"}:
        yield "ask lets a person approve a call of a tool; nobody can approve other texts. Wanted on: tool_call"
    if rule.reads_calls and rule.action in REPLACES:
        yield f"detector {rule.detector} has no match to replace. Wanted action: refuse, redirect, ask or flag"


def _holding(rule: RuleSpec) -> Iterator[str]:
    """What is wrong with trust, hold and window."""
    if rule.trust is not None and "input" not in rule.stages:
        yield (
            "trust is about the author of a request; an answer is the model's. Wanted on: input, or no trust"
        )
    if rule.roles is not None and "input" not in rule.stages:
        yield "roles are those of messages of a request. Wanted on: input, or no roles"
    if "output" not in rule.stages and (rule.hold not in (None, "buffer") or rule.window is not None):
        yield "hold and window are about answers; a request is always judged whole. Wanted on: output or both"
        return
    if rule.action == "flag":
        if rule.hold is not None or rule.window is not None:
            yield "a flagged answer is never held back. Wanted no hold and no window"
        return
    if rule.cues is not None and rule.holds != "buffer":
        yield "cues score a whole text. Wanted action: refuse and hold: buffer"
    if rule.scored and rule.holds != "buffer":
        yield "the detector scores a whole text. Wanted hold: buffer, or null"
    if rule.action == "redirect" and rule.holds != "buffer":
        yield "a safe answer stands instead of the whole one. Wanted hold: buffer, or null"
    if rule.window is not None and rule.holds != "window":
        yield f"window is read with hold: window only, and hold is {rule.holds}"
    if rule.hold == "stream" and rule.action in REPLACES:
        yield "text that has left cannot be redacted. Wanted hold: window, or buffer"
    if rule.holds == "window":
        yield from _window_holds_a_match(rule)


def _window_holds_a_match(rule: RuleSpec) -> Iterator[str]:
    if rule.longest is None:
        yield (
            "the pattern has no longest match, so no window is sure to hold it. Bound its repetitions "
            "(\\d{1,9} for \\d+), or hold: buffer"
        )
    elif rule.window is not None and rule.window < rule.longest:
        yield (
            f"window is {rule.window} characters and a match can have {rule.longest}: its beginning would "
            f"leave. Wanted at least {rule.longest}, or null"
        )


def _tests(rule: RuleSpec) -> Iterator[str]:
    """What is wrong with a rule's own tests."""
    for i, test in enumerate(rule.tests or ()):
        if test.want not in ("pass", rule.action):
            yield f"tests[{i}].want: got {test.want}, wanted pass or the rule's action, {rule.action}"
        if test.stage is not None and test.stage not in rule.stages:
            yield f"tests[{i}].stage: got {test.stage}, wanted one of {', '.join(s for s in STAGES if s in rule.stages)}"
        if test.leaves is not None and (test.want not in REPLACES):
            yield f"tests[{i}].leaves: wanted with want: redact or rewrite only"
        if rule.reads_calls:
            yield f"tests: detector {rule.detector} needs a whole turn; test it with `demeanor chat` or in Python"


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


def compiled(pattern: str) -> re2._Regexp:
    """Compile an RE2 pattern; raises re2.error."""
    return re2.compile(pattern, _OPTIONS)


def checked_pattern(pattern: str | None) -> str | None:
    """Return a pattern that compiles and does not match the empty text; raises ValueError for another one."""
    if pattern is not None:
        try:
            matches_nothing = compiled(pattern).search("") is not None or _widths(pattern)[0] == 0
        except re2.error as error:
            raise ValueError(f"not an RE2 pattern: {_words(error)}; got {pattern!r}") from None
        if matches_nothing:
            raise ValueError(f"matches the empty text, so every text; got {pattern!r}")
    return pattern


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
