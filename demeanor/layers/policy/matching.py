"""Text as rules see it: compatibility forms unified (NFKC, one character at a time) and invisible characters left out.

In: text, piece by piece. Out: folded text, and for every folded character the place of the original it came from, so that a
match can be cut out of the original. Folding never looks at neighbours, so the pieces do not matter.
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
    """A rule that matched: which, and the span of the original text."""

    rule: Rule
    span: Span


def hits(rules: Sequence[Rule], text: str) -> list[Hit]:
    """Every match of every rule in a whole text, rule by rule."""
    folded = Folded(text)
    found = []
    for rule in rules:
        at = 0
        while (span := rule.find(folded.text, at)) is not None:
            found.append(Hit(rule, folded.span(*span)))
            at = span[1]
    return found


def redacted(text: str, found: Sequence[Hit]) -> str:
    """The text with the replies of the rules in place of their matches; overlapping matches are one, replaced by the first's."""
    kept, at = [], 0
    for hit in sorted(found, key=lambda h: h.span[0]):
        start, end = hit.span
        if start >= at:
            kept += [text[at:start], hit.rule.reply]
        at = max(at, end)
    return "".join([*kept, text[at:]])


class OutputFilter:
    """The output rules at work on one answer."""

    def __init__(self, rules: Sequence[Rule], by: str) -> None:
        self._rules, self._by = rules, by
        self._folded = Folded()
        self._searched = [0] * len(rules)  # folded; where each rule goes on searching
        self._hits: list[Hit] = []  # redactions that have not left yet
        self._left = 0  # original characters that have left or were replaced
        self._makers: list[tuple[int, str]] = []
        self.altered = False

    def add(self, text: Text) -> tuple[list[Text], Rule | None]:
        """Take a piece: what may leave now, and the rule that refuses the answer, if one does."""
        self._folded.add(text.text)
        self._makers.append((len(self._folded.original), text.by))
        return self._settle(final=False)

    def finish(self) -> tuple[list[Text], Rule | None]:
        """The answer has ended: the rest of it, or the rule that refuses it."""
        return self._settle(final=True)

    def _settle(self, *, final: bool) -> tuple[list[Text], Rule | None]:
        settled = len(self._folded.text)
        for i, rule in enumerate(self._rules):
            here = len(self._folded.text) if final else self._horizon(rule)
            refused = self._search(i, here, final)
            if refused:
                return [], rule
            if rule.hold != "stream":
                settled = min(settled, here)
        return self._release(len(self._folded.original) if final else self._folded.before(settled)), None

    def _horizon(self, rule: Rule) -> int:
        """Up to where matches of this rule begin that show in full; a streamed answer is judged as far as it goes."""
        length = len(self._folded.text)
        return {"buffer": 0, "window": max(0, length - rule.window), "stream": length}[rule.hold]

    def _search(self, i: int, horizon: int, final: bool) -> bool:
        """Note the matches that begin before the horizon; true if one refuses the answer."""
        rule, text = self._rules[i], self._folded.text
        while self._searched[i] < horizon:
            span = rule.find(text, self._searched[i])
            if span is not None and rule.hold == "stream" and span[1] == len(text) and not final:
                return False  # whether it is a match may depend on what comes next
            if span is None or span[0] >= horizon:
                self._searched[i] = self._searched[i] if rule.hold == "stream" else horizon
                return False
            if rule.refuses:
                return True
            self._hits.append(Hit(rule, self._folded.span(*span)))
            self._searched[i] = span[1]
        return False

    def _release(self, limit: int) -> list[Text]:
        """Let the original leave up to `limit`, redactions that begin before it in place."""
        leaving: list[Text] = []
        for hit in sorted(
            (h for h in self._hits if h.span[0] < limit), key=lambda h: (h.span[0], self._rules.index(h.rule))
        ):
            self._hits.remove(hit)
            start, end = hit.span
            if start >= self._left:
                leaving += [*self._pieces(start), Text(hit.rule.reply, by=self._by)]
                self.altered = True
            self._left = max(self._left, end)
        return [*leaving, *self._pieces(limit)]

    def _pieces(self, limit: int) -> list[Text]:
        """What has not left of the original up to `limit`, by its makers."""
        found = []
        while self._makers and self._left < limit:
            end, by = self._makers[0]
            stop = min(end, limit)
            if stop > self._left:
                found.append(Text(self._folded.original[self._left : stop], by=by))
                self._left = stop
            if end <= limit:
                self._makers.pop(0)
        return found


def judge_turn(turn: Turn, rules: Sequence[Rule]) -> Turn | Rule:
    """The turn with redactions made, or the first rule that refuses it; a rule reads what has its `trust` or less."""
    messages = []
    for message in turn.messages:
        mine = [r for r in rules if message.authority <= r.trust]
        outcome = _message(message, mine) if mine else message
        if isinstance(outcome, Rule):
            return outcome
        messages.append(outcome)
    return replace(turn, messages=tuple(messages))


def _message(message: Message, rules: Sequence[Rule]) -> Message | Rule:
    """A message of the request, redacted, or the rule that refuses it."""
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
    """A tool call, redacted, or the rule that refuses it; what JSON escapes hide is refused, whatever the rule's action."""
    arguments = _text(call.arguments, rules)
    if isinstance(arguments, Rule):
        return arguments
    hidden = hits(rules, "\n".join(_strings(arguments)))
    return hidden[0].rule if hidden else replace(call, arguments=arguments)


def _strings(arguments: str) -> list[str]:
    """Every string and number in JSON text, keys included."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return []
    found, left = [], [value]
    while left:
        one: Any = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif one is not None and not isinstance(one, bool):
            found.append(str(one))
    return found


def masked(event: Event, rules: Sequence[Rule]) -> Event:
    """An event that tells what happened on the way, without what no answer may say."""
    if isinstance(event, Passage):
        return replace(event, text=redacted(event.text, hits(rules, event.text)))
    if isinstance(event, ToolResult):
        return replace(event, content=redacted(event.content, hits(rules, event.content)))
    if isinstance(event, Prompted):
        return replace(
            event,
            messages=tuple(
                replace(m, content=redacted(m.content, hits(rules, m.content))) for m in event.messages
            ),
        )
    return event
