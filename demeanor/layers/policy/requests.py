"""Rules on a request: the turn that goes on, or the rule that stops it.

A rule reads text of its `trust` or less. The current turn begins with the last user message; an earlier one with a
message that a rule stops is not read by the model, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from demeanor.core.types import LeftOut, Message, ToolCall, ToolSpec, Trust, Turn
from demeanor.layers.policy.hit_log import HitLog
from demeanor.layers.policy.matching import Rule
from demeanor.layers.policy.texts import (
    NOWHERE,
    TextPlace,
    judge_call,
    judge_text,
    judge_whole,
    leaves,
    opaque,
    strings,
)


def size(turn: Turn) -> int:
    """Return the characters of a turn that rules may read; schemas are counted when they are read."""
    texts = [
        len(m.content) + sum(len(c.name) + len(c.arguments) for c in m.tool_calls) for m in turn.messages
    ]
    form = turn.decoding.form
    return sum(texts) + sum(len(t.description) for t in turn.tools) + (len(form.text) if form else 0)


def read_by(rule: Rule, turn: Turn) -> list[str]:
    """Return the texts of a request that a rule reads."""
    texts = [
        text
        for m in turn.messages
        if rule.reads(m)
        for text in (m.content, m.name or "", *(t for c in m.tool_calls for t in texts_of_call(c)))
    ]
    if rule.trust >= Trust.DEVELOPER:
        texts += [t for tool in turn.tools for t in texts_of_tool(tool)]
        if turn.decoding.form is not None:
            texts += [turn.decoding.form.text, "\n".join(strings(turn.decoding.form.text))]
    return texts


def texts_of_call(call: ToolCall) -> tuple[str, str, str]:
    """Return what rules read of a call: its name, its arguments, and their strings without escapes."""
    return call.name, call.arguments, "\n".join(strings(call.arguments))


def texts_of_tool(tool: ToolSpec) -> tuple[str, str, str]:
    """Return what rules read of an offered tool: name, description, and the strings of its schema."""
    return tool.name, tool.description, "\n".join(leaves(tool.parameters))


def judge_turn(
    turn: Turn, rules: Sequence[Rule], log: HitLog | None = None
) -> tuple[Turn | Rule, tuple[LeftOut, ...]]:
    """Return the redacted turn or the first rule that stops it, and the earlier turns that were left out."""
    place = TextPlace("input", log=log)
    stopped = _offered(turn, rules, place)
    if isinstance(stopped, Rule):
        return stopped, ()
    turn, left_out = stopped, list[LeftOut]()
    users = [i for i, m in enumerate(turn.messages) if m.role == "user"]
    bounds = sorted({0, *users, len(turn.messages)})
    kept: list[Message] = []
    for begin, end in pairwise(bounds):
        is_earlier = begin < (users[-1] if users else 0)
        outcomes = [
            _message(
                m,
                [r for r in rules if r.reads(m)],
                # what an earlier turn is stopped for was logged when it was the current one
                place.of(f"messages[{begin + i}]") if not is_earlier or m.role in OPERATORS else NOWHERE,
            )
            for i, m in enumerate(turn.messages[begin:end])
        ]
        refusing = [(m, o) for m, o in zip(turn.messages[begin:end], outcomes) if isinstance(o, Rule)]
        lasting = next((rule for m, rule in refusing if not is_earlier or m.role in OPERATORS), None)
        if lasting is not None:
            return lasting, ()
        if refusing:
            spared = [o for o in outcomes if isinstance(o, Message) and o.role in OPERATORS]
            rule = refusing[0][1]
            left_out.append(LeftOut(rule.name, rule.reason, end - begin - len(spared)))
            kept += spared
        else:
            kept += [o for o in outcomes if isinstance(o, Message)]
    return replace(turn, messages=tuple(kept)), tuple(left_out)


OPERATORS = frozenset({"system", "developer"})  # their messages belong to no turn


def note_turn(turn: Turn, rules: Sequence[Rule], log: HitLog) -> None:
    """Log the matches of rules that only flag, in the current turn."""
    users = [i for i, m in enumerate(turn.messages) if m.role == "user"]
    for i, message in enumerate(turn.messages):
        if users and i < users[-1] and message.role not in OPERATORS:
            continue
        for rule in rules:
            if rule.reads(message):
                called = (text for call in message.tool_calls for text in texts_of_call(call))
                for text in (message.content, message.name or "", *called):
                    log.noted(rule, "input", text, f"messages[{i}]")


def _offered(turn: Turn, rules: Sequence[Rule], place: TextPlace) -> Turn | Rule:
    """Return the turn with redacted tool descriptions, or the rule that stops its tools or format.

    A caller's tools and output format have a developer's authority; a match in a name or schema always
    refuses, because a redacted one would mean something else.
    """
    rules = [rule for rule in rules if rule.trust >= Trust.DEVELOPER]
    if not rules or not (turn.tools or turn.decoding.form):
        return turn
    tools = list[ToolSpec]()
    for i, tool in enumerate(turn.tools):
        here = place.of(f"tools[{i}]")
        description = judge_text(tool.description, rules, here)
        if isinstance(description, Rule):
            return description
        stopped = judge_whole(rules, here, tool.name, "\n".join(leaves(tool.parameters)))
        if stopped is not None:
            return stopped
        tools.append(replace(tool, description=description))
    form = turn.decoding.form
    texts = [] if form is None else [form.text, "\n".join(strings(form.text))]
    return judge_whole(rules, place.of("response_format"), *texts) or replace(turn, tools=tuple(tools))


def _message(message: Message, rules: Sequence[Rule], place: TextPlace) -> Message | Rule:
    """Return a redacted message of the request, or the rule that stops it."""
    if not rules:
        return message
    content = judge_text(message.content, rules, place)
    if isinstance(content, Rule):
        return content
    name = judge_text(message.name or "", rules, place)
    if isinstance(name, Rule):
        return name
    calls = list[ToolCall]()
    for call in message.tool_calls:
        judged = judge_call(call, rules, place)
        if isinstance(judged, Rule):
            return judged
        calls.append(judged)
    return replace(
        message,
        content=content,
        name=message.name and name,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id and opaque(message.tool_call_id, rules),
    )
