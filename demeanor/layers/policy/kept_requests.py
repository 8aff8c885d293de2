"""What of a request may be kept: the turn as the caller sent it, without what rules take out before the model reads it.

In: the turn before any layer, and rules. Out: a turn for the database, with replacements where `redact` and `rewrite` match,
in messages, passages, results, calls, tools, the format and metadata. A rule that ends a turn takes nothing out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from demeanor.core.long_text import off_loop
from demeanor.core.types import Message, Stage, ToolCall, ToolSpec, Trust, Turn
from demeanor.layers.policy.matching import Rule, bound
from demeanor.layers.policy.requests import size, texts_of_call, texts_of_tool
from demeanor.layers.policy.texts import first, leaves, opaque, redacted, strings

ANOTHER: Mapping[str, frozenset[Stage]] = {
    "data": frozenset[Stage]({"retrieved"}),
    "tool": frozenset[Stage]({"tool_result"}),
    "assistant": frozenset[Stage]({"output", "tool_call"}),
}
"""The stages besides `input` at which a message of a role is judged, or was when it was made."""
NOT_KEPT = '"[not kept]"'


async def kept_turn(turn: Turn, rules: Sequence[Rule]) -> Turn:
    """Return a turn without anything that the rules hide from the model; the same turn if they hide nothing."""
    hiding = [rule for rule in rules if rule.replaces]
    if not hiding:
        return turn
    ready = await bound(hiding, lambda rule: _read_by(rule, turn))
    long = sum(map(len, turn.metadata.values()))
    return await off_loop(size(turn) + long, _kept, turn, ready)


async def kept_json(value: Any, rules: Sequence[Rule]) -> Any:
    """Return a JSON value without the matches of rules that need no model, in its strings; keys stay."""
    hiding = [
        rule for rule in rules if rule.replaces and rule.ask is None and rule.stages & {"input", "output"}
    ]
    return await off_loop(sum(map(len, leaves(value))), _json_without, value, hiding) if hiding else value


def _hides_in(rule: Rule, message: Message) -> bool:
    """Whether the rule judges such a message in a request, or judged it when it was made."""
    return bool(rule.stages & ANOTHER.get(message.role, frozenset())) or (
        "input" in rule.stages and rule.reads(message)
    )


def _hides_in_tools(rule: Rule) -> bool:
    return "tool_definition" in rule.stages or _hides_in_form(rule)


def _hides_in_form(rule: Rule) -> bool:
    """Whether the rule judges what has a developer's authority in a request: its tools and the format of its answer."""
    return "input" in rule.stages and rule.trust >= Trust.DEVELOPER


def _read_by(rule: Rule, turn: Turn) -> list[str]:
    """Return the texts of a turn that a rule reads, if a model has to be asked about them."""
    told = (*turn.messages, *(turn.approvals.tail if turn.approvals else ()))
    found = [text for m in told if _hides_in(rule, m) for text in _texts_of(m)]
    if _hides_in_tools(rule):
        found += [text for tool in turn.tools for text in texts_of_tool(tool)]
    if _hides_in_form(rule) and turn.decoding.form is not None:
        found.append(turn.decoding.form.text)
    return found


def _texts_of(message: Message) -> list[str]:
    called = [text for call in message.tool_calls for text in texts_of_call(call)]
    return [message.content, message.name or "", message.reasoning or "", *called]


def _kept(turn: Turn, rules: Sequence[Rule]) -> Turn:
    messages = tuple(_message(message, rules) for message in turn.messages)
    of_users = [rule for rule in rules if _hides_in(rule, Message("user", ""))]
    form = turn.decoding.form
    if form is not None:  # a request with a match in its format was refused
        form = replace(form, text=_arguments(form.text, [rule for rule in rules if _hides_in_form(rule)]))
    approvals = turn.approvals
    if approvals is not None:
        approvals = replace(approvals, tail=tuple(_message(m, rules) for m in approvals.tail))
    return replace(
        turn,
        messages=messages,
        tools=tuple(_tool(tool, [rule for rule in rules if _hides_in_tools(rule)]) for tool in turn.tools),
        decoding=replace(turn.decoding, form=form),
        metadata={key: _arguments(value, of_users) for key, value in turn.metadata.items()},
        raw=() if turn.raw is not None and messages != turn.messages else turn.raw,
        approvals=approvals,
    )


def _message(message: Message, rules: Sequence[Rule]) -> Message:
    mine = [rule for rule in rules if _hides_in(rule, message)]
    if not mine:
        return message
    return replace(
        message,
        content=redacted(message.content, mine),
        name=message.name and redacted(message.name, mine),
        reasoning=message.reasoning and redacted(message.reasoning, mine),
        tool_calls=tuple(_call(call, mine) for call in message.tool_calls),
        tool_call_id=message.tool_call_id and opaque(message.tool_call_id, mine),
    )


def _call(call: ToolCall, rules: Sequence[Rule]) -> ToolCall:
    return replace(
        call,
        id=opaque(call.id, rules),
        name=redacted(call.name, rules),
        arguments=_arguments(call.arguments, rules),
    )


def _tool(tool: ToolSpec, rules: Sequence[Rule]) -> ToolSpec:
    if not rules:
        return tool
    try:
        parameters = _json_without(tool.parameters, rules, keys=True)
    except RecursionError:
        parameters = {}
    name, description = redacted(tool.name, rules), redacted(tool.description, rules)
    return replace(tool, name=name, description=description, parameters=parameters)


def _arguments(text: str, rules: Sequence[Rule]) -> str:
    """Return a text that may be JSON without any match, also where escapes of JSON hide one."""
    if not rules or first(rules, text, "\n".join(strings(text))) is None:
        return text
    try:
        return json.dumps(_json_without(json.loads(text), rules, keys=True), ensure_ascii=False)
    except (ValueError, RecursionError):
        kept = redacted(text, rules)
        return kept if first(rules, "\n".join(strings(kept))) is None else NOT_KEPT


def _json_without(value: Any, rules: Sequence[Rule], *, keys: bool = False) -> Any:
    """Return a JSON value in which no string or number has a match."""

    def key(name: Any) -> Any:
        return redacted(name, rules) if keys and isinstance(name, str) else name

    if isinstance(value, str):
        return redacted(value, rules)
    if isinstance(value, Mapping):
        return {key(name): _json_without(item, rules, keys=keys) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_without(item, rules, keys=keys) for item in value]
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and first(rules, str(value)) is not None
    ):
        return redacted(str(value), rules)
    return value
