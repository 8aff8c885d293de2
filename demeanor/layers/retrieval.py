"""Puts passages that fit the last question before the model, and says which numbers and names of the answer they support.

In: a turn with a user message. Out: the same turn with `data` messages (no authority, named after the passage) right before it;
a Passage event for each, and Citations at the end. Nothing found, nothing inserted. It knows no index.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from pydantic import Field

from demeanor import registry
from demeanor.layers._cite import citations
from demeanor.layers._kit import Kit
from demeanor.layers._timed import timed
from demeanor.types import Citation, Done, Event, Message, Messages, Passage, Respond, Text, Trust, Turn

BEHAVIOUR = True


class Spec(registry.Spec):
    """Where to search and how much to insert."""

    index: registry.File = Field(description="folder of .md and .txt files, beside the stack file")
    top_k: int = Field(3, ge=1, le=50, description="most passages per question")
    min_score: float | None = Field(
        None, ge=0, description="BM25 score a passage needs; null: any word in common is enough"
    )


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Answer with the best passages of an index at hand."""
    search = kit.open_index(kit.root / spec.index)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        asked = last_question(turn.messages)
        found = [] if asked is None else search(turn.messages[asked].content, spec.top_k)
        found = [p for p in found if p.score >= (spec.min_score or 0)]
        if asked is not None and found:
            turn = replace(turn, messages=inserted(turn.messages, asked, found))
        for passage in found:
            yield passage
        said: list[str] = []
        async for event in inner(turn):
            if isinstance(event, Text):
                said.append(event.text)
            elif isinstance(event, Done):
                for start, end, passage_id in citations("".join(said), found):
                    yield Citation(start, end, passage_id)
            yield event

    return timed("retrieval", body, inner, kit.clock)


def last_question(messages: Messages) -> int | None:
    """Where the last user message stands."""
    return next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)


def inserted(messages: Messages, at: int, passages: Sequence[Passage]) -> Messages:
    """The conversation with passages as data before message `at`."""
    data = tuple(Message("data", p.text, name=p.id, trust=Trust.NONE) for p in passages)
    return (*messages[:at], *data, *messages[at:])
