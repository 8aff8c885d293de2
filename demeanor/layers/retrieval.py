"""The retrieval layer: adds the best passages of an index to a turn, and citations to its answer.

In: a turn. Out: its events with passages and citations. A citation is a longest run of words found in the
same order in one passage, if it has a number or a name, or at least four words; the better passage wins a
tie. It shows overlap and does not prove the sentence around it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from pydantic import Field

from demeanor.core import registry
from demeanor.core.types import Citation, Done, Event, Message, Messages, Passage, Respond, Text, Trust, Turn
from demeanor.layers import Kit, timed

WORD = re.compile(r"\w+(?:[.,:'\u2019]\w+)*")
MIN_WORDS = 4
MAX_WORDS = 400


def citations(answer: str, passages: Sequence[Passage]) -> list[tuple[int, int, str]]:
    """Return supported spans (start, end, passage id) in the order of the answer; they never overlap."""
    words = list(WORD.finditer(answer))[:MAX_WORDS]
    sources = [(p.id, [w.group().casefold() for w in WORD.finditer(p.text)]) for p in passages]
    found, at = [], 0
    while at < len(words):
        length, source = longest([w.group().casefold() for w in words[at:]], sources)
        run = words[at : at + length]
        if run and (length >= MIN_WORDS or any(telling(answer, w) for w in run)):
            found.append((run[0].start(), run[-1].end(), source))
        at += max(length, 1)
    return found


def longest(words: Sequence[str], sources: Sequence[tuple[str, Sequence[str]]]) -> tuple[int, str]:
    """Return how many of the first words stand together in a source, and in which; the first source wins a
    tie."""
    best, best_id = 0, ""
    for id_, source in sources:
        for start in range(len(source)):
            length = 0
            while (
                length < len(words)
                and start + length < len(source)
                and source[start + length] == words[length]
            ):
                length += 1
            if length > best:
                best, best_id = length, id_
    return best, best_id


def telling(answer: str, word: re.Match[str]) -> bool:
    """True if a word is a number, or capitalised and not just the first of a sentence of several words."""
    text = word.group()
    if any(c.isdigit() for c in text):
        return True
    alone = not WORD.search(answer, word.end()) and not answer[: word.start()].strip()
    begins = re.search(r"(?:^|[.!?:\n]\s*)$", answer[: word.start()].rstrip(" \"'(*")) is not None
    return text[:1].isupper() and (not begins or alone)


BEHAVIOUR = True


class Spec(registry.Spec):
    """The index, and how much of it is added."""

    index: registry.File = Field(description="folder of .md and .txt files, beside the stack file")
    top_k: int = Field(3, ge=1, le=50, description="most passages per question")
    min_score: float | None = Field(
        None, ge=0, description="BM25 score a passage needs; null: any word in common is enough"
    )


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Answer with the best passages of an index in the conversation."""
    search = kit.open_index(kit.root / spec.index)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        question = last_question(turn.messages)
        found = [] if question is None else search(turn.messages[question].content, spec.top_k)
        found = [p for p in found if p.score >= (spec.min_score or 0)]
        if question is not None and found:
            turn = replace(turn, messages=inserted(turn.messages, question, found))
        for passage in found:
            yield passage
        answer: list[str] = []
        async for event in inner(turn):
            if isinstance(event, Text):
                answer.append(event.text)
            elif isinstance(event, Done):
                for start, end, passage_id in citations("".join(answer), found):
                    yield Citation(start, end, passage_id)
            yield event

    return timed("retrieval", body, inner, kit.clock)


def last_question(messages: Messages) -> int | None:
    """Return the index of the last user message."""
    return next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)


def inserted(messages: Messages, at: int, passages: Sequence[Passage]) -> Messages:
    """Return the conversation with passages as data before message `at`."""
    data = tuple(Message("data", p.text, name=p.id, trust=Trust.NONE) for p in passages)
    return (*messages[:at], *data, *messages[at:])
