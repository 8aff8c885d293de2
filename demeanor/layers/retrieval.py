"""The retrieval layer: adds the best passages of an index to a turn, and citations to its answer.

In: a turn. Out: its events with passages and citations. A citation is a longest run of words found in the
same order in one passage, if it has a number or a name, or at least four words; the better passage wins a
tie. It shows overlap and does not prove the sentence around it.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from pydantic import Field, field_validator

from demeanor.core import registry
from demeanor.core.types import Citation, Done, Event, Message, Messages, Passage, Respond, Text, Trust, Turn
from demeanor.layers import Kit, timed

WORD = re.compile(r"\w+(?:[.,:'\u2019]\w+)*")
MIN_WORDS = 4
MAX_WORDS = 400


def citations(answer: str, passages: Sequence[Passage]) -> list[tuple[int, int, str]]:
    """Return supported spans (start, end, passage id) in the order of the answer; they never overlap."""
    words = [w for w, _ in zip(WORD.finditer(answer), range(MAX_WORDS))]
    said = [w.group().casefold() for w in words]
    texts = [[w.group().casefold() for w in WORD.finditer(p.text)] for p in passages]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, text in enumerate(texts):
        for start, word in enumerate(text):
            places[word].append((source, start))
    found, at = [], 0
    while at < len(words):
        length, source = longest(said[at : at + MAX_WORDS], texts, places)
        run = words[at : at + length]
        if run and (length >= MIN_WORDS or any(telling(answer, w) for w in run)):
            found.append((run[0].start(), run[-1].end(), passages[source].id))
        at += max(length, 1)
    return found


def longest(
    words: Sequence[str], texts: Sequence[Sequence[str]], places: Mapping[str, Sequence[tuple[int, int]]]
) -> tuple[int, int]:
    """Return how many of the first words stand together in a text, and in which; the first text wins a tie.

    `places`: where each word stands, as (text, position).
    """
    best, best_text = 0, 0
    for text, start in places.get(words[0], ()):
        pairs = zip(words, texts[text][start : start + len(words)])
        length = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        length = min(len(words), len(texts[text]) - start) if length is None else length
        if length > best:
            best, best_text = length, text
    return best, best_text


def telling(answer: str, word: re.Match[str]) -> bool:
    """True if a word is a number, or capitalised and not just the first of a sentence of several words."""
    text = word.group()
    if any(c.isdigit() for c in text):
        return True
    before = answer[: word.start()].rstrip(" \"'(*")
    end = before.rstrip()
    begins = not before or end.endswith((".", "!", "?", ":")) or "\n" in before[len(end) :]
    alone = not WORD.search(answer, word.end()) and not answer[: word.start()].strip()
    return text[:1].isupper() and (not begins or alone)


BEHAVIOUR = True


class Spec(registry.Spec):
    """The index, and how much of it is added."""

    index: registry.File = Field(description="folder of .md, .txt and .jsonl files, beside the stack file")
    top_k: int = Field(3, ge=1, le=50, description="most passages per question")
    min_score: float | None = Field(
        None, ge=0, description="BM25 score a passage needs; null: any word in common is enough"
    )
    min_coverage: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the question's words, weighted by rarity, that must stand in a passage; null: any",
    )
    wording: str | None = Field(
        None,
        description="what the model reads of a passage, with {text} and, if wanted, {number} and {name}; null: "
        "`[number] name` and the text, but the bare text in the templates `turns` and `transcript`",
    )

    @field_validator("wording")
    @classmethod
    def _has_text(cls, wording: str | None) -> str | None:
        found = PLACE.findall("{text}" if wording is None else wording)
        if "{text}" not in found or not set(found) <= set(PLACES):
            raise ValueError(f"wanted {{text}} in it, and no other names in braces than {', '.join(PLACES)}")
        return wording


PLACE, PLACES = re.compile(r"(\{\w*\})"), ("{number}", "{name}", "{text}")


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Answer with the best passages of an index in the conversation."""
    search = kit.open_index(kit.root / spec.index)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        question = last_question(turn.messages)
        found: list[Passage] = []
        if question is not None:  # in a thread: a long text or a large index takes a while
            found = await asyncio.to_thread(search, turn.messages[question].content, spec.top_k)
            least, share = spec.min_score or 0, spec.min_coverage or 0
            found = [p for p in found if p.score >= least and p.coverage >= share]
        if question is not None and found:
            turn = replace(turn, messages=inserted(turn.messages, question, found, spec.wording))
        for passage in found:
            yield passage
        answer: list[str] = []
        async for event in inner(turn):
            if isinstance(event, Text):
                answer.append(event.text)
            elif isinstance(event, Done) and found:
                for start, end, passage_id in await asyncio.to_thread(citations, "".join(answer), found):
                    yield Citation(start, end, passage_id)
            yield event

    return timed("retrieval", body, inner, kit.clock)


def last_question(messages: Messages) -> int | None:
    """Return the index of the last user message."""
    return next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)


def inserted(messages: Messages, at: int, passages: Sequence[Passage], wording: str | None) -> Messages:
    """Return the conversation with passages as data before message `at`; a wording holds their names."""
    data = []
    for number, p in enumerate(passages, start=1):
        values = {"{number}": str(number), "{name}": p.id, "{text}": p.text}
        parts = PLACE.split("{text}" if wording is None else wording)
        text = "".join(values.get(part, part) for part in parts)
        data.append(Message("data", text, name=p.id if wording is None else None, trust=Trust.NONE))
    return (*messages[:at], *data, *messages[at:])
