"""The responses of /v1/completions in OpenAI's legacy shape, whole and streamed.

In: the events of one continuation. Out: pydantic models. A token's `text_offset` counts the characters of the tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from demeanor.core.types import Event, PromptRead, Refusal, Text, fold
from demeanor.server.answers import Answer, UsageAnswer, finish_reason

Row = tuple[str, float | None, tuple[tuple[str, float], ...]]
"""A token: its text, its log-probability, its alternatives."""
SAME_NATS = 1e-4


class TextLogprobs(Answer):
    """One entry per token in each list; the first token of a prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(Answer):
    """The body of a plain response."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageAnswer
    demeanor: dict[str, Any]


class CompletionChunk(Answer):
    """One `data:` line of a streamed response."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageAnswer | None = None
    demeanor: dict[str, Any] | None = None


class Growing:
    """One continuation while it grows; `echo` is the prompt that stands before it ("": none)."""

    def __init__(self, index: int, echo: str, *, logprobs: bool) -> None:
        self.index, self.logprobs = index, logprobs
        self.events: list[Event] = []
        self._due, self._offset, self._refused, self._began = echo, 0, False, False

    def add(self, event: Event) -> TextChoice | None:
        """Take an event; return what the client is told of it now, if anything."""
        self.events.append(event)
        if self._refused:
            return None
        if isinstance(event, Refusal):
            self._refused = True
            return None if self._began else self._chunk(event.text, [], echo=False)
        if isinstance(event, PromptRead):
            return self._chunk("", list(zip(event.tokens, event.logprobs, event.top))) if self._due else None
        if isinstance(event, Text) and (event.text or (self.logprobs and event.logprobs)):
            return self._chunk(event.text, [(t.token, t.logprob, t.top) for t in event.logprobs])
        return None

    def end(self) -> TextChoice:
        """The last chunk. Raises RequestError (503) if the turn was cancelled from inside."""
        reason = finish_reason(fold(self.events))
        last = self._chunk("", [], echo=not self._refused)
        return last.model_copy(update={"finish_reason": reason, "logprobs": None})

    def _chunk(self, text: str, rows: Sequence[Row], *, echo: bool = True) -> TextChoice:
        before, self._due = self._due if echo else "", ""
        self._began = True
        logprobs = self._rows(rows) if self.logprobs else None
        return TextChoice(index=self.index, text=before + text, logprobs=logprobs, finish_reason=None)

    def _rows(self, rows: Sequence[Row]) -> TextLogprobs:
        offsets = []
        for token, _, _ in rows:
            offsets.append(self._offset)
            self._offset += len(token)
        return TextLogprobs(
            tokens=[r[0] for r in rows],
            token_logprobs=[r[1] for r in rows],
            top_logprobs=[_top(row) for row in rows],
            text_offset=offsets,
        )


def text_choice(draft: Growing, events: Sequence[Event]) -> TextChoice:
    """A finished continuation: its chunks put together. Raises RequestError (503) if the turn was cancelled from inside."""
    told = [chunk for event in events if (chunk := draft.add(event)) is not None] + [draft.end()]
    done = fold(list(events))
    if done.refusal is not None:
        return TextChoice(
            index=draft.index, text=done.refusal.text, logprobs=None, finish_reason=told[-1].finish_reason
        )
    parts = [chunk.logprobs for chunk in told if chunk.logprobs is not None]
    logprobs = TextLogprobs(
        tokens=[x for p in parts for x in p.tokens],
        token_logprobs=[x for p in parts for x in p.token_logprobs],
        top_logprobs=[x for p in parts for x in p.top_logprobs],
        text_offset=[x for p in parts for x in p.text_offset],
    )
    return TextChoice(
        index=draft.index,
        text="".join(chunk.text for chunk in told),
        logprobs=logprobs if draft.logprobs else None,
        finish_reason=told[-1].finish_reason,
    )


def _top(row: Row) -> dict[str, float] | None:
    """The alternatives by text, the token itself among them; of two tokens with one text the likelier counts.

    A harness asks whether the token's value equals the largest one: the token's own must not differ from it in a last bit.
    """
    token, logprob, top = row
    if logprob is None:
        return None
    found: dict[str, float] = {}
    for text, value in top:
        found.setdefault(text, value)
    if token not in found or abs(found[token] - logprob) < SAME_NATS:
        found[token] = logprob
    return found
