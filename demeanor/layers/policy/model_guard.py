"""Rules right around the model: passages, tool results and offered tools before it reads them, its calls before they run.

In: the turn as the model would read it, after all layers. Out: the turn without what rules forbid, or the end of the turn;
calls that are allowed, changed, or marked for a person's approval. Text of others has no authority here: it is judged
wherever it came from, an index, a tool or the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from demeanor.core.long_text import off_loop
from demeanor.core.types import (
    Event,
    Message,
    Respond,
    Stage,
    ToolCall,
    ToolCalled,
    ToolSpec,
    Turn,
)
from demeanor.layers import Kit, timed
from demeanor.layers.policy import provenance
from demeanor.layers.policy.hit_log import HitLog
from demeanor.layers.policy.matching import Rule, bound
from demeanor.layers.policy.output import BY, ending
from demeanor.layers.policy.requests import texts_of_call, texts_of_tool
from demeanor.layers.policy.texts import TextPlace, first, judge_call, judge_text, judge_whole

ROLES: Mapping[str, Stage] = {"data": "retrieved", "tool": "tool_result"}
STAGES: frozenset[Stage] = frozenset({"retrieved", "tool_definition", "tool_call", "tool_result"})


def around_model(rules: Sequence[Rule], inner: Respond, kit: Kit) -> Respond:
    """Apply the rules of these stages around each call of the model."""
    rules = [rule for rule in rules if rule.stages & STAGES]
    if not rules:
        return inner

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        log = HitLog()
        judged = await _read(turn, rules, log)
        for hit in log.events():
            yield hit
        if isinstance(judged, Stopped):
            for event in ending(judged.rule, judged.stage):
                yield event
            return
        async for event in inner(judged):
            outcome = await _called(event, judged, rules, log) if isinstance(event, ToolCalled) else event
            for hit in log.events():
                yield hit
            if isinstance(outcome, Rule):
                for each in ending(outcome, "tool_call"):
                    yield each
                return
            yield outcome

    return timed(BY, body, inner, kit.clock)


class Stopped(NamedTuple):
    """The rule that ends a turn, and where it matched."""

    rule: Rule
    stage: Stage


async def _read(turn: Turn, rules: Sequence[Rule], log: HitLog) -> Turn | Stopped:
    """Return the turn as the model may read it, or the rule that ends it."""
    users = [i for i, m in enumerate(turn.messages) if m.role == "user"]
    messages = list[Message]()
    for i, message in enumerate(turn.messages):
        stage = ROLES.get(message.role)
        mine = [rule for rule in rules if stage in rule.stages]
        if stage is None or not mine:
            messages.append(message)
            continue
        is_earlier = bool(users) and message.role == "tool" and i < users[-1]
        place = TextPlace(stage, f"messages[{i}]", log)
        judged = await _message(message, mine, place, is_earlier=is_earlier)
        if isinstance(judged, Rule):
            return Stopped(judged, stage)
        messages.append(judged)
    tools = await _offered(turn, [rule for rule in rules if "tool_definition" in rule.stages], log)
    if isinstance(tools, Rule):
        return Stopped(tools, "tool_definition")
    return replace(turn, messages=tuple(messages), tools=tools)


async def _message(
    message: Message, rules: Sequence[Rule], place: TextPlace, *, is_earlier: bool
) -> Message | Rule:
    """Return a passage or result as the model may read it; one of an earlier turn is replaced and ends nothing."""
    texts = (message.content, message.name or "")
    rules = await bound(rules, lambda rule: texts)
    return await off_loop(len(message.content), _judged, message, rules, place, is_earlier)


def _judged(message: Message, rules: Sequence[Rule], place: TextPlace, is_earlier: bool) -> Message | Rule:
    log = place.log
    enforcing = [rule for rule in rules if rule.enforces]
    here = TextPlace(place.stage) if is_earlier else place
    content = judge_text(message.content, enforcing, here)
    name = judge_text(message.name or "", enforcing, here)
    stopping = next((x for x in (content, name) if isinstance(x, Rule)), None)
    if log is not None and not is_earlier:
        for rule in rules:
            if not rule.enforces:
                log.noted(rule, place.stage, message.content, place.part)
        log.went_on(rules, place.stage, place.part)
    if stopping is not None:
        return replace(message, content=f"[{stopping.name}]", name=None) if is_earlier else stopping
    assert isinstance(content, str)
    assert isinstance(name, str)
    return replace(message, content=content, name=message.name and name)


async def _offered(turn: Turn, rules: Sequence[Rule], log: HitLog) -> tuple[ToolSpec, ...] | Rule:
    """Return the tools that the model may see, or the rule that ends the turn.

    A description is redacted. A tool with a match in its name or schema, which cannot be redacted, is not offered.
    """
    if not rules or not turn.tools:
        return turn.tools
    kept = list[ToolSpec]()
    for i, tool in enumerate(turn.tools):
        texts = texts_of_tool(tool)
        mine = await bound(rules, lambda rule, texts=texts: texts)  # type: ignore[misc]
        place = TextPlace("tool_definition", f"tools[{i}]", log)
        judged = await off_loop(sum(map(len, texts)), _tool, tool, mine, place)
        if isinstance(judged, Rule):
            return judged
        if judged is not None:
            kept.append(judged)
        elif turn.tool_choice == tool.name:  # what the caller demands cannot be offered
            return next(rule for rule in mine if rule.enforces)
    return tuple(kept)


def _tool(tool: ToolSpec, rules: Sequence[Rule], place: TextPlace) -> ToolSpec | Rule | None:
    """Return a tool as the model may see it, the rule that ends the turn, or None: it is not offered."""
    enforcing, log = [rule for rule in rules if rule.enforces], place.log
    name, text, schema = texts_of_tool(tool)
    description = judge_text(text, enforcing, place)
    if isinstance(description, Rule):
        return description
    stopping = judge_whole([rule for rule in enforcing if rule.refuses], place, name, schema)
    if stopping is not None:
        return stopping
    if log is not None:
        for rule in rules:
            for each in (name, text, schema) if not rule.enforces else ():
                log.noted(rule, place.stage, each, place.part)
        log.went_on(rules, place.stage, place.part)
    for rule in enforcing:
        for each in (name, schema):
            if first([rule], each) is not None:
                if log is not None:
                    log.replaced(rule, place.stage, place.part, (0, 0), each, masked=False)
                return None
    return replace(tool, description=description)


async def _called(event: ToolCalled, turn: Turn, rules: Sequence[Rule], log: HitLog) -> ToolCalled | Rule:
    """Return a call as it may be made, the rule that ends the turn, or a call that a person has to approve."""
    rules = [rule for rule in rules if "tool_call" in rule.stages]
    if not rules:
        return event
    rules = await bound(rules, lambda rule: texts_of_call(event.call))
    return await off_loop(_length(turn, event.call), _judged_call, event, turn, rules, log)


def _length(turn: Turn, call: ToolCall) -> int:
    return len(call.arguments) + sum(len(m.content) for m in turn.messages if m.role in ROLES)


def _judged_call(event: ToolCalled, turn: Turn, rules: Sequence[Rule], log: HitLog) -> ToolCalled | Rule:
    place = TextPlace("tool_call", "call", log)
    log.went_on(rules, place.stage, place.part)
    comparing = {rule.compares for rule in rules if rule.compares}
    suspect = {name for name in comparing if provenance.DETECTORS[name](event.call, turn.messages)}
    for rule in rules:
        if rule.compares in suspect and rule.refuses:
            log.ended(rule, place.stage, "", place.part)
            return rule
    call = judge_call(event.call, [rule for rule in rules if rule.enforces], place)
    if isinstance(call, Rule):
        return call
    approval = event.approval
    for rule in rules:
        if rule.enforces:
            continue
        texts = texts_of_call(event.call)
        if rule.compares in suspect or first([rule], *texts) is not None:
            log.marked(rule, place.stage, place.part, event.call.arguments)
            approval = rule.reason if rule.action == "ask" and not approval else approval
    return replace(event, call=call, approval=approval)
