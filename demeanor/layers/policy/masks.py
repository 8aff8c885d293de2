"""What leaves beside the answer: passages, citations, tool results, prompts, refusals and alternatives of tokens, masked.

In: an event and rules. Out: the event without anything that a rule matches; the answer goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from demeanor.core.long_text import Folded
from demeanor.core.types import (
    Citation,
    Event,
    Message,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    TokenLogprob,
    ToolDecision,
    ToolResult,
    Unsupported,
)
from demeanor.layers.policy.matching import Rule
from demeanor.layers.policy.texts import NOWHERE, TextPlace, opaque, redacted


def masked(event: Event, rules: Sequence[Rule], place: TextPlace = NOWHERE) -> Event:
    """Mask an event about the way to the answer: passages, citations, tool results, prompts and
    refusals by inner layers."""

    def mask(text: str) -> str:
        return redacted(text, rules, place) if text else text

    if isinstance(event, Passage):
        heading = mask(event.heading)
        return replace(
            event, id=mask(event.id), text=mask(event.text), source=mask(event.source), heading=heading
        )
    if isinstance(event, Refusal):
        return replace(event, text=mask(event.text), reason=mask(event.reason))
    if isinstance(event, Citation):
        return replace(event, passage_id=mask(event.passage_id), cited_text=mask(event.cited_text))
    if isinstance(event, Unsupported):
        return replace(event, passage_id=mask(event.passage_id))
    if isinstance(event, ToolResult):
        call_id = opaque(event.call_id, rules)
        return replace(event, call_id=call_id, name=mask(event.name), content=mask(event.content))
    if isinstance(event, ToolDecision):
        call_id = event.call_id and opaque(event.call_id, rules)
        names = tuple(mask(name) for name in event.tools)
        return replace(event, tools=names, call_id=call_id, detail=mask(event.detail))
    if isinstance(event, Prompted):
        return replace(event, messages=tuple(_masked(m, mask) for m in event.messages))
    if isinstance(event, PromptRead):
        kept = alternatives(list(zip(event.tokens, event.top)), rules)
        return replace(event, top=tuple(kept))
    return event


def _masked(message: Message, mask: Callable[[str], str]) -> Message:
    calls = tuple(replace(c, name=mask(c.name), arguments=mask(c.arguments)) for c in message.tool_calls)
    return replace(
        message, content=mask(message.content), name=message.name and mask(message.name), tool_calls=calls
    )


Alternatives = tuple[tuple[str, float], ...]
CONTEXT = 64  # characters of the answer before a token that its alternatives are read with


def allowed(logprobs: Sequence[TokenLogprob], rules: Sequence[Rule]) -> tuple[TokenLogprob, ...]:
    """Return log-probabilities without the alternatives that a rule forbids."""
    kept = alternatives([(t.token, t.top) for t in logprobs], rules)
    return tuple(replace(token, top=top) for token, top in zip(logprobs, kept))


def alternatives(tokens: Sequence[tuple[str, Alternatives]], rules: Sequence[Rule]) -> list[Alternatives]:
    """Return each token's alternatives without those that a rule matches.

    An alternative is read behind the text before its token, and in a row with those of the same rank.
    """
    places = [(i, k) for i, (_, top) in enumerate(tokens) for k in range(len(top))]
    if not places:
        return [top for _, top in tokens]
    before, text = list[str](), ""
    for token, _ in tokens:
        before.append(text)
        text = (text + token)[-CONTEXT:]
    one = ((i, k, before[i], tokens[i][1][k][0]) for i, k in places if tokens[i][1][k][0] != tokens[i][0])
    rows = ((i, k, "", tokens[i][1][k][0]) for k, i in sorted((k, i) for i, k in places))
    wrong = _forbidden(one, "\n\n", rules) | _forbidden(rows, "", rules)
    return [tuple(a for k, a in enumerate(top) if (i, k) not in wrong) for i, (_, top) in enumerate(tokens)]


def _forbidden(
    pieces: Iterator[tuple[int, int, str, str]], between: str, rules: Sequence[Rule]
) -> set[tuple[int, int]]:
    """Return the places (token, rank) of pieces that a match touches, in all pieces joined."""
    folded, owners, texts, at = Folded(), list[tuple[int, int, int, int]](), list[str](), 0
    for i, k, context, piece in pieces:
        at += len(context)
        owners.append((at, at + len(piece), i, k))
        at += len(piece) + len(between)
        texts += [context, piece, between]
    folded.add("".join(texts))
    whole, local = folded.text, [rule for rule in rules if rule.weigh is None]
    found = sorted(folded.span(*span) for rule in local for span in rule.find(whole, 0))
    wrong, first_owner = set[tuple[int, int]](), 0
    for begin, end in found:
        while first_owner < len(owners) and owners[first_owner][1] <= begin:
            first_owner += 1
        at = first_owner
        while at < len(owners) and owners[at][0] < end:
            wrong.add(owners[at][2:])
            at += 1
    return wrong
