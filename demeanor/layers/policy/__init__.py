"""Rules from a file stop or redact requests and answers: patterns, and personal data that proves itself by its check digits.

In: a turn. Out: its events with nothing in them that a rule forbids: the answer and tool calls are refused or redacted, what is
told about the way (passages, tool results, prompts) is masked. A refused request never reaches the inner layers. Log-probabilities
spell the answer, so they leave at the end or, if something was redacted, not at all. It knows patterns, not meanings.
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
    """Which rules."""

    rules: registry.File = Field("policy.yaml", description="YAML file of rules, beside the stack file")


def check(spec: Spec, root: Path) -> list[Problem]:
    """Every mistake in the rules file."""
    return problems_of(root / spec.rules, PolicySpec)


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Judge what goes in and what comes out."""
    rules = load(kit.root / spec.rules)
    asked = [r for r in rules if r.on != "output"]
    answered = [r for r in rules if r.on != "input"]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        outcome = judge_turn(turn, asked)
        if isinstance(outcome, Rule):
            for event in refusal(outcome, "input"):
                yield event
            return
        async for event in _answer(inner(outcome), answered) if answered else inner(outcome):
            yield event

    return timed(BY, body, inner, kit.clock)


def refusal(rule: Rule, stage: Literal["input", "output"]) -> tuple[Event, ...]:
    """How a refused turn ends."""
    return Refusal(BY, rule.name, rule.reason, rule.reply, stage), Done("content_filter", by=BY)


async def _answer(events: AsyncIterator[Event], rules: Sequence[Rule]) -> AsyncIterator[Event]:
    """Pass an answer on as far as it is judged; a refusal ends it."""
    judge, late, logprobs = OutputFilter(rules, BY), list[Event](), list[TokenLogprob]()
    async for event in events:
        leaving: Sequence[Event] = ()
        refused: Rule | None = None
        if isinstance(event, Text):
            logprobs += event.logprobs
            leaving, refused = judge.add(event)
        elif isinstance(event, ToolCalled):
            call = judge_call(event.call, rules)
            leaving, refused = ((), call) if isinstance(call, Rule) else ((replace(event, call=call),), None)
        elif isinstance(event, Citation):
            late.append(event)
        elif isinstance(event, Done):
            leaving, refused = judge.finish()
            rest = (
                [] if judge.altered else [*late, *([Text("", logprobs=tuple(logprobs))] if logprobs else [])]
            )
            leaving = [*leaving, *rest, event]
        else:
            leaving = [masked(event, rules)]
        for each in refusal(refused, "output") if refused else leaving:
            yield each
        if refused:
            return
