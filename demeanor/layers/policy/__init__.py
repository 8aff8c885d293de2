"""The policy layer: rules from a file refuse or redact requests and answers by patterns and check digits.

In: a turn. Out: its events without anything that a rule forbids: answer and tool calls are refused or
redacted; passages, tool results and prompts are masked. A refused request never reaches the inner layers.
Log-probabilities reveal the answer, so they come at the end, or not at all after a redaction. Knows patterns,
not meanings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from demeanor.core import registry
from demeanor.core.errors import Problem
from demeanor.core.types import Citation, Done, Event, Refusal, Respond, Text, TokenLogprob, ToolCalled, Turn
from demeanor.layers import Kit, timed
from demeanor.layers.policy.matching import OutputFilter, judge_call, judge_turn, masked
from demeanor.layers.policy.rules import PolicySpec, Rule, load, problems_of

BEHAVIOUR = True
BY = "policy"


class Spec(registry.Spec):
    """The rules file."""

    rules: registry.File = Field("policy.yaml", description="YAML file of rules, beside the stack file")


def check(spec: Spec, root: Path) -> list[Problem]:
    """Return every mistake in the rules file."""
    return problems_of(root / spec.rules, PolicySpec)


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Apply the rules to requests and answers."""
    rules = load(kit.root / spec.rules)
    input_rules = [r for r in rules if r.on != "output"]
    output_rules = [r for r in rules if r.on != "input"]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        outcome = judge_turn(turn, input_rules)
        if isinstance(outcome, Rule):
            for event in refusal(outcome, "input"):
                yield event
            return
        events = inner(outcome)
        async for event in _answer(events, output_rules) if output_rules else events:
            yield event

    return timed(BY, body, inner, kit.clock)


def refusal(rule: Rule, stage: Literal["input", "output"]) -> tuple[Event, ...]:
    """Return the events that end a refused turn."""
    return Refusal(BY, rule.name, rule.reason, rule.reply, stage), Done("content_filter", by=BY)


async def _answer(events: AsyncIterator[Event], rules: Sequence[Rule]) -> AsyncIterator[Event]:
    """Yield an answer as far as it is judged; a refusal ends it."""
    output, late, logprobs = OutputFilter(rules, BY), list[Event](), list[TokenLogprob]()
    async for event in events:
        released: Sequence[Event] = ()
        refused: Rule | None = None
        if isinstance(event, Text):
            logprobs += event.logprobs
            released, refused = output.add(event)
        elif isinstance(event, ToolCalled):
            call = judge_call(event.call, rules)
            if isinstance(call, Rule):
                refused = call
            else:
                released = [replace(event, call=call)]
        elif isinstance(event, Citation):
            late.append(event)
        elif isinstance(event, Done):
            rest, refused = output.finish()
            if logprobs:
                late.append(Text("", logprobs=tuple(logprobs)))
            released = [*rest, *([] if output.altered else late), event]
        else:
            released = [masked(event, rules)]
        for each in refusal(refused, "output") if refused else released:
            yield each
        if refused:
            return
