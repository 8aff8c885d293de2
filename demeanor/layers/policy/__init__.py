"""The policy layer: rules from a file refuse or redact requests and answers by patterns and check digits.

In: a turn. Out: its events without anything that a rule forbids: answer, refusals from inside and tool calls
are refused or redacted; passages, citations, tool results, prompts and alternatives are masked. A refused
request never reaches the inner layers; an earlier turn that a rule refuses is left out. Log-probabilities
reveal the answer, so they come at the end, or not at all after a redaction. Knows patterns, not meanings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from demeanor.core import registry
from demeanor.core.errors import Problem, RequestError
from demeanor.core.long_text import off_loop
from demeanor.core.types import Citation, Done, Event, Refusal, Respond, Text, TokenLogprob, ToolCalled, Turn
from demeanor.layers import Kit, timed
from demeanor.layers.policy.matching import (
    OutputFilter,
    allowed,
    first,
    judge_call,
    judge_turn,
    masked,
    size,
)
from demeanor.layers.policy.rules import PolicySpec, Rule, load, problems_of

BEHAVIOUR = True
BY = "policy"
MAX_CHARS = 2**20  # of one request that rules read; 1 MiB takes them a second or two


class Spec(registry.Spec):
    """The rules file."""

    rules: registry.File = Field("policy.yaml", description="YAML file of rules, beside the stack file")


def check(spec: Spec, root: Path) -> list[Problem]:
    """Return every mistake in the rules file."""
    return problems_of(root / spec.rules, PolicySpec)


def notes(spec: Spec, root: Path) -> list[str]:
    """Return a sentence about the rules for which an answer waits for its end, if there are any."""
    waiting = [rule.name for rule in load(root / spec.rules) if rule.on != "input" and rule.hold == "buffer"]
    if not waiting:
        return []
    return [
        f"policy: a streamed answer is sent when it has ended, for the rules {', '.join(waiting)} (hold: buffer, cues, or a "
        "pattern without a longest match); until then the stream sends keep-alive comments"
    ]


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Apply the rules to requests and answers."""
    rules = load(kit.root / spec.rules)
    input_rules = [r for r in rules if r.on != "output"]
    output_rules = [r for r in rules if r.on != "input"]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        chars = size(turn) if input_rules else 0
        if chars > MAX_CHARS:
            raise RequestError(
                f"messages: {chars} characters are more than the policy's rules read; wanted at most {MAX_CHARS}. "
                "Shorten the conversation or send it in parts.",
                param="messages",
                code="string_above_max_length",
            )
        outcome, left_out = await off_loop(chars, judge_turn, turn, input_rules)
        if isinstance(outcome, Rule):
            for event in refusal(outcome, "input"):
                yield event
            return
        for event in left_out:
            yield event
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
            released, refused = await off_loop(len(event.text), output.add, event)
        elif isinstance(event, ToolCalled):
            call = await off_loop(len(event.call.arguments), judge_call, event.call, rules)
            if isinstance(call, Rule):
                refused = call
            else:
                released = [replace(event, call=call)]
        elif isinstance(event, Refusal):
            refused = first([rule for rule in rules if rule.refuses], event.text, event.reason)
            released = [masked(event, rules)]
        elif isinstance(event, Citation):
            late.append(masked(event, rules))
        elif isinstance(event, Done):
            rest, refused = await off_loop(output.waiting, output.finish)
            if logprobs and not output.altered and refused is None:
                kept = await off_loop(len(logprobs) * MANY, allowed, logprobs, rules)
                late.append(Text("", logprobs=kept))
            released = [*rest, *([] if output.altered else late), event]
        else:
            released = [await off_loop(_length(event), masked, event, rules)]
        for each in refusal(refused, "output") if refused else released:
            yield each
        if refused:
            return


MANY = 64  # characters that are read for a token with its alternatives, about


def _length(event: Event) -> int:
    return len(getattr(event, "content", "") or getattr(event, "text", ""))
