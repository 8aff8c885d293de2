"""Compiled rules: what finds a match in a folded text, how sure it is, and what stands instead of the match.

In: declared rules (`rules.py`) and the kit. Out: `Rule`s. A detector that asks a model is asked before the rules are
applied (`bound`); from then on its rule is one like any other. Knows nothing of turns or events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from demeanor.core import registry
from demeanor.core.errors import DemeanorError
from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS, Find
from demeanor.core.phone_numbers import Span
from demeanor.core.types import Message, Stage, Trust
from demeanor.layers import Kit
from demeanor.layers.policy.detectors import Ask, detector
from demeanor.layers.policy.rules import (
    PLACE,
    REPLACES,
    STOPS,
    Action,
    PolicySpec,
    RuleSpec,
    compiled,
    read_yaml,
)

ROUNDING = 1e-9  # tolerance when a sum of weights is compared with a threshold
Weigh: TypeAlias = Callable[[str], float]


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule: `matches` yields the matches that begin at or after a position of a folded text, in order.

    `allow` are matches, in lower case, that are let through. `longest` is the length of the longest match, None if there is no bound. `ask` gives the score of a rule that asks a
    model, and `failures` says of which texts it gave none, once `bound` has asked.
    """

    name: str
    on: str
    stages: frozenset[Stage]
    action: Action
    reason: str
    reply: str
    template: str | None
    hold: Literal["buffer", "window", "stream"]
    window: int
    longest: int | None
    trust: Trust
    matches: Find
    weigh: Weigh | None = None  # score of a folded text: the sum of cues, or a probability
    ask: Ask | None = None
    threshold: float = 0.5
    fails_open: bool = False
    compares: str = ""  # a detector of calls: what makes a call suspect
    has_probability: bool = False
    roles: frozenset[str] | None = None
    failures: Mapping[str, str] | None = None
    allow: frozenset[str] = frozenset()

    def find(self, text: str, start: int) -> Iterator[Span]:
        """Yield the matches that are not let through."""
        return (span for span in self.matches(text, start) if not self.allows(text[slice(*span)]))

    def allows(self, match: str) -> bool:
        """Whether a match is let through."""
        return bool(self.allow) and match.lower() in self.allow

    @property
    def refuses(self) -> bool:
        """Whether a match ends the turn."""
        return self.action in STOPS

    @property
    def replaces(self) -> bool:
        """Whether a match is replaced and the text goes on."""
        return self.action in REPLACES

    @property
    def enforces(self) -> bool:
        """Whether a match changes what happens; else it is noted only, or a person is asked."""
        return self.refuses or self.replaces

    def reads(self, message: Message) -> bool:
        """Whether the rule judges a message of a request: its authority and its role."""
        return message.authority <= self.trust and (self.roles is None or message.role in self.roles)

    def replacement(self, match: str) -> str:
        """Return what stands instead of a match."""
        if self.template is None:
            return self.reply

        def put(found: re.Match[str]) -> str:
            side, count, name = found.groups()
            if name:
                return self.name if name == "rule" else str(len(match))
            shown = min(int(count), max(0, len(match) - 1))  # never the whole match
            return match[:shown] if side == "first" else match[len(match) - shown :]

        return PLACE.sub(put, self.template)

    def failed(self, folded: str) -> str:
        """Return why the rule has no score for a folded text; empty if it has one."""
        return (self.failures or {}).get(folded, "")


def declared(path: Path) -> tuple[RuleSpec, ...]:
    """Read the declared rules of a file, the files that they name as whole paths; raises SpecError."""
    return tuple(anchored(spec, path.parent) for spec in read_yaml(path, PolicySpec).rules)


def anchored(spec: RuleSpec, folder: Path) -> RuleSpec:
    """Return the rule with whole paths, so that it means the same in another folder."""
    changes: dict[str, object] = {
        name: str(registry.file_path(folder, value).resolve())
        for name in ("classifier", "probe")
        if (value := getattr(spec, name)) is not None
    }
    if spec.score is not None:
        parts = tuple(
            part.model_copy(
                update={
                    name: str(registry.file_path(folder, value).resolve())
                    for name in ("classifier", "probe")
                    if (value := getattr(part, name)) is not None
                }
            )
            for part in spec.score.all
        )
        changes["score"] = spec.score.model_copy(update={"all": parts})
    return spec.model_copy(update=changes) if changes else spec


def load(path: Path, kit: Kit | None = None) -> tuple[Rule, ...]:
    """Read the rules of a file; raises SpecError with every mistake in it. Without a kit no model is asked."""
    return tuple(rule(spec, kit) for spec in declared(path))


def rule(spec: RuleSpec, kit: Kit | None = None) -> Rule:
    """Compile a checked rule; files that it names are whole paths."""
    weigh: Weigh | None = None
    ask: Ask | None = None
    threshold = spec.threshold or 0.5
    if spec.cues:
        find, weigh = _scored(spec.cues, spec.threshold or 0.0)
    elif spec.reads_calls:
        find = _nothing
    elif spec.scored:
        found = detector(spec, kit)
        threshold = spec.threshold or found.threshold
        find, weigh, ask = found.find_at(threshold), found.weigh, found.ask
    else:
        find = DETECTORS[spec.detector].find if spec.detector else _pattern(spec.pattern or "", spec.longest)
    return Rule(
        spec.name,
        spec.on if isinstance(spec.on, str) else ", ".join(spec.on),
        spec.stages,
        spec.action,
        spec.reason,
        spec.reply or f"[{spec.name}]",
        spec.template,
        spec.holds,
        spec.window or spec.longest or 0,
        spec.longest,
        Trust[(spec.trust or "user").upper()],
        find,
        weigh,
        ask,
        threshold,
        spec.fail == "open",
        spec.detector or "" if spec.reads_calls else "",
        spec.scored and spec.cues is None and not spec.reads_calls,
        None if spec.roles is None else frozenset(spec.roles),
        allow=frozenset(Folded(text).text.lower() for text in spec.allow or ()),
    )


def _nothing(text: str, start: int) -> Iterator[Span]:
    yield from ()


async def bound(rules: Sequence[Rule], texts_of: Callable[[Rule], Sequence[str]]) -> list[Rule]:
    """Return rules that know the scores of their texts: models are asked now, once for each text.

    A text without a score counts as a match, or as none if the rule fails open; either way `failures` says so.
    """
    return [one if one.ask is None else await _bound(one, one.ask, texts_of(one)) for one in rules]


async def _bound(one: Rule, ask: Ask, texts: Sequence[str]) -> Rule:
    known, failures = dict[str, float](), dict[str, str]()
    for folded in dict.fromkeys(Folded(text).text for text in texts if text):
        try:
            known[folded] = await ask(folded)
        except (DemeanorError, TimeoutError, OSError) as error:
            failures[folded] = str(error) or type(error).__name__

    def find(text: str, start: int) -> Iterator[Span]:
        failed = text in failures and not one.fails_open
        if not start and text and (failed or known.get(text, -1.0) >= one.threshold - ROUNDING):
            yield 0, len(text)

    return replace(one, matches=find, weigh=lambda text: known.get(text, 0.0), ask=None, failures=failures)


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
