"""Rules applied to text: whole messages and tool calls, and answers that arrive in pieces.

In: rules, and text, a turn or events. Out: the same redacted or masked, or the rule that refuses it. Matching
works on folded text; spans are mapped back to the original.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from demeanor.core.folding import Folded
from demeanor.core.personal_data import Span
from demeanor.core.types import Event, Message, Passage, Prompted, Text, ToolCall, ToolResult, Turn
from demeanor.layers.policy.rules import Rule


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched, and the span in the original text."""

    rule: Rule
    span: Span


def hits(rules: Sequence[Rule], text: str) -> list[Hit]:
    """Return every match of every rule in a whole text, rule by rule."""
    folded = Folded(text)
    found = []
    for rule in rules:
        at = 0
        while (span := rule.find(folded.text, at)) is not None:
            found.append(Hit(rule, folded.span(*span)))
            at = span[1]
    return found


def redacted(text: str, found: Sequence[Hit]) -> str:
    """Replace matches by the rules' replies; overlapping matches are merged and get the first rule's
    reply."""
    kept, at = [], 0
    for hit in sorted(found, key=lambda h: h.span[0]):
        start, end = hit.span
        if start >= at:
            kept += [text[at:start], hit.rule.reply]
        at = max(at, end)
    return "".join([*kept, text[at:]])


class OutputFilter:
    """The output rules applied to one answer in pieces."""

    def __init__(self, rules: Sequence[Rule], by: str) -> None:
        self._rules, self._by = rules, by
        self._folded = Folded()
        self._searched = [0] * len(rules)  # folded position from which each rule searches on
        self._hits: list[Hit] = []  # redactions that are not released yet
        self._released = 0  # original characters that were released or replaced
        self._makers: list[tuple[int, str]] = []  # end of a piece, and the layer that made it
        self.altered = False

    def add(self, text: Text) -> tuple[list[Text], Rule | None]:
        """Add a piece; returns what may be released now, and the rule that refuses the answer, if any."""
        self._folded.add(text.text)
        self._makers.append((len(self._folded.original), text.by))
        return self._judge(final=False)

    def finish(self) -> tuple[list[Text], Rule | None]:
        """End the answer; returns the rest of it, or the rule that refuses it."""
        return self._judge(final=True)

    def _judge(self, *, final: bool) -> tuple[list[Text], Rule | None]:
        judged = len(self._folded.text)
        for i, rule in enumerate(self._rules):
            horizon = len(self._folded.text) if final else self._horizon(rule)
            if self._search(i, horizon, final):
                return [], rule
            if rule.hold != "stream":
                judged = min(judged, horizon)
        return self._release(len(self._folded.original) if final else self._folded.before(judged)), None

    def _horizon(self, rule: Rule) -> int:
        """Return the position before which all matches of a rule that begin there are complete."""
        length = len(self._folded.text)
        return {"buffer": 0, "window": max(0, length - rule.window), "stream": length}[rule.hold]

    def _search(self, i: int, horizon: int, final: bool) -> bool:
        """Store the matches that begin before the horizon; True if one refuses the answer."""
        rule, text = self._rules[i], self._folded.text
        while self._searched[i] < horizon:
            span = rule.find(text, self._searched[i])
            if span is not None and rule.hold == "stream" and span[1] == len(text) and not final:
                return False  # it may still become longer
            if span is None or span[0] >= horizon:
                self._searched[i] = self._searched[i] if rule.hold == "stream" else horizon
                return False
            if rule.refuses:
                return True
            self._hits.append(Hit(rule, self._folded.span(*span)))
            self._searched[i] = span[1]
        return False

    def _release(self, limit: int) -> list[Text]:
        """Release the original up to `limit`, with redactions that begin before it applied."""
        released: list[Text] = []
        due = [hit for hit in self._hits if hit.span[0] < limit]
        for hit in sorted(due, key=lambda h: (h.span[0], self._rules.index(h.rule))):
            self._hits.remove(hit)
            start, end = hit.span
            if start >= self._released:
                released += [*self._pieces(start), Text(hit.rule.reply, by=self._by)]
                self.altered = True
            self._released = max(self._released, end)
        return [*released, *self._pieces(limit)]

    def _pieces(self, limit: int) -> list[Text]:
        """Return the unreleased original up to `limit`, by the layers that made it."""
        found = []
        while self._makers and self._released < limit:
            end, by = self._makers[0]
            stop = min(end, limit)
            if stop > self._released:
                found.append(Text(self._folded.original[self._released : stop], by=by))
                self._released = stop
            if end <= limit:
                self._makers.pop(0)
        return found


def judge_turn(turn: Turn, rules: Sequence[Rule]) -> Turn | Rule:
    """Return the redacted turn, or the first rule that refuses it; a rule reads text of its `trust` or
    less."""
    messages = []
    for message in turn.messages:
        matching = [r for r in rules if message.authority <= r.trust]
        outcome = _message(message, matching) if matching else message
        if isinstance(outcome, Rule):
            return outcome
        messages.append(outcome)
    return replace(turn, messages=tuple(messages))


def _message(message: Message, rules: Sequence[Rule]) -> Message | Rule:
    """Return a redacted message of the request, or the rule that refuses it."""
    content = _text(message.content, rules)
    if isinstance(content, Rule):
        return content
    calls = [judge_call(call, rules) for call in message.tool_calls]
    refused = next((c for c in calls if isinstance(c, Rule)), None)
    return refused or replace(
        message, content=content, tool_calls=tuple(c for c in calls if isinstance(c, ToolCall))
    )


def _text(text: str, rules: Sequence[Rule]) -> str | Rule:
    found = hits(rules, text)
    refusing = next((hit.rule for hit in found if hit.rule.refuses), None)
    return refusing or redacted(text, found)


def judge_call(call: ToolCall, rules: Sequence[Rule]) -> ToolCall | Rule:
    """Return a redacted tool call, or the rule that refuses it; hits hidden by JSON escapes always refuse."""
    arguments = _text(call.arguments, rules)
    if isinstance(arguments, Rule):
        return arguments
    hidden = hits(rules, "\n".join(_strings(arguments)))
    return hidden[0].rule if hidden else replace(call, arguments=arguments)


def _strings(arguments: str) -> list[str]:
    """Return every string and number in JSON text, keys included."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return []
    found, left = [], [value]
    while left:
        item: Any = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item
        elif item is not None and not isinstance(item, bool):
            found.append(str(item))
    return found


def masked(event: Event, rules: Sequence[Rule]) -> Event:
    """Mask an event about the way to the answer: passages, tool results and prompts."""

    def mask(text: str) -> str:
        return redacted(text, hits(rules, text))

    if isinstance(event, Passage):
        return replace(event, text=mask(event.text))
    if isinstance(event, ToolResult):
        return replace(event, content=mask(event.content))
    if isinstance(event, Prompted):
        messages = tuple(replace(m, content=mask(m.content)) for m in event.messages)
        return replace(event, messages=messages)
    return event
