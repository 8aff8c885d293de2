"""Texts, calls and JSON values under rules: the first rule that stops one, or what is left of it.

In: original text and rules that can be applied (`matching.bound`). Out: text or the rule that stops it. Matching works on
folded text; spans are mapped back to the original. Time is linear in the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any

from demeanor.core.long_text import Folded
from demeanor.core.types import Stage, ToolCall
from demeanor.layers.policy.hit_log import HitLog
from demeanor.layers.policy.matching import Rule


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Where a text stands: its stage and its name there, the log of the turn, and whether only a trace shows it."""

    stage: Stage
    part: str = ""
    log: HitLog | None = None
    masked: bool = False

    def of(self, part: str) -> TextPlace:
        return replace(self, part=part)


NOWHERE = TextPlace("input")


def hits(rules: Sequence[Rule], text: str) -> Iterator[tuple[int, int, int]]:
    """Yield begin, number of the rule and end of every match in a whole text, in order; overlaps included."""
    folded = Folded(text)
    whole = folded.text

    def of(i: int, rule: Rule) -> Iterator[tuple[int, int, int]]:
        for span in rule.find(whole, 0):
            begin, end = folded.span(*span)
            yield begin, i, end

    return merge(*(of(i, rule) for i, rule in enumerate(rules)))


def first(rules: Sequence[Rule], *texts: str) -> Rule | None:
    """Return the first rule that matches in one of the texts."""
    for text in texts:
        folded = Folded(text).text
        for rule in rules:
            if any(True for _ in rule.find(folded, 0)):
                return rule
    return None


def redacted(text: str, rules: Sequence[Rule], place: TextPlace = NOWHERE) -> str:
    """Replace matches as the rules say; overlapping matches are merged and get the first rule's replacement."""
    kept, at, length = list[str](), 0, 0
    for start, i, end in hits(rules, text):
        if start >= at:
            put = rules[i].replacement(text[start:end])
            length += start - at
            if place.log is not None:
                span = length, length + len(put)
                place.log.replaced(rules[i], place.stage, place.part, span, text, masked=place.masked)
            kept += [text[at:start], put]
            length += len(put)
        at = max(at, end)
    return "".join([*kept, text[at:]])


def judge_text(text: str, rules: Sequence[Rule], place: TextPlace = NOWHERE) -> str | Rule:
    """Return a redacted text, or the first rule that stops it."""
    if not text:
        return text
    stopping = first([rule for rule in rules if rule.refuses], text)
    if stopping is not None:
        if place.log is not None:
            place.log.ended(stopping, place.stage, text, place.part)
        return stopping
    return redacted(text, [rule for rule in rules if rule.replaces], place)


def judge_whole(rules: Sequence[Rule], place: TextPlace, *texts: str) -> Rule | None:
    """Return the first rule that matches in texts that cannot be redacted (names, schemas), and log that the turn ends."""
    for text in texts:
        found = first(rules, text)
        if found is not None:
            if place.log is not None:
                place.log.ended(
                    found if found.refuses else replace(found, action="refuse"), place.stage, text, place.part
                )
            return found
    return None


def judge_call(call: ToolCall, rules: Sequence[Rule], place: TextPlace = NOWHERE) -> ToolCall | Rule:
    """Return a redacted tool call, or the rule that refuses it.

    A match in the name, or one that JSON escapes hide, always refuses; an id that matches is replaced.
    """
    arguments = judge_text(call.arguments, rules, place)
    if isinstance(arguments, Rule):
        return arguments
    refused = judge_whole(rules, place, call.name, "\n".join(strings(arguments)))
    return refused or replace(call, id=opaque(call.id, rules), arguments=arguments)


def opaque(id_: str, rules: Sequence[Rule]) -> str:
    """Return an id without any match: itself, or letters that depend on it."""
    if first(rules, id_) is None:
        return id_
    return "call_" + "".join(chr(ord("a") + byte % 26) for byte in hashlib.sha256(id_.encode()).digest()[:16])


def strings(text: str) -> list[str]:
    """Return every string and number in JSON text, keys included."""
    try:
        return leaves(json.loads(text))
    except (ValueError, RecursionError):
        return []


def leaves(value: Any) -> list[str]:
    """Return every string and number of a JSON value, keys included."""
    found, left = [], [value]
    while left:
        item: Any = left.pop()
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
        elif item is not None and not isinstance(item, bool):
            found.append(str(item))
    return found
