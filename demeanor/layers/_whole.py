"""Judges what is there as a whole: requests, tool calls, and events that tell what happened on the way.

In: a turn, a call or an event, and rules. Out: the same, redacted, or the rule that refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from demeanor.layers._judge import hits, redacted
from demeanor.layers._rules import Rule
from demeanor.types import Event, Message, Passage, Prompted, ToolCall, ToolResult, Turn


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
