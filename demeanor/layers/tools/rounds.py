"""One round of a turn with tools: the model's text and calls, and the turn of the round after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace

from demeanor.core.types import (
    Citation,
    Done,
    Event,
    Message,
    Messages,
    Passage,
    Prompted,
    Text,
    ToolCalled,
    ToolResult,
    Trust,
    Turn,
    Unsupported,
    Usage,
)


class Round:
    """The text, calls and tokens of one round, and how it ended."""

    def __init__(self, start: int = 0, shown: frozenset[Event] = frozenset()) -> None:
        """`start`: characters of the answer so far; `shown`: passages and prompts of earlier rounds."""
        self._texts: list[str] = []
        self.called: list[ToolCalled] = []
        self.num_tokens = 0
        self.done = Done("cancelled", by="tools")
        self._start, self._shown = start, set(shown)

    async def events(self, inner: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """Yield all events but Done, and those that earlier rounds have shown."""
        async for event in inner:
            if isinstance(event, Done):
                self.done = event
                continue
            if isinstance(event, Passage | Prompted):
                if event in self._shown:
                    continue
                self._shown.add(event)
            elif isinstance(event, Text):
                self._texts.append(event.text)
            elif isinstance(event, ToolCalled):
                self.called.append(event)
            elif isinstance(event, Usage):
                self.num_tokens += event.completion_tokens
            elif isinstance(event, Citation | Unsupported):
                event = replace(event, start=event.start + self._start, end=event.end + self._start)
            yield event

    @property
    def text(self) -> str:
        """The text of the round so far."""
        return "".join(self._texts)

    @property
    def broken_off(self) -> bool:
        """True if the round was refused or cancelled, so that none of its calls is run."""
        return self.done.finish_reason in ("cancelled", "content_filter")

    def next(self, pause: str) -> Round:
        """Return the round after this one's text and a pause."""
        return Round(self._start + len(self.text) + len(pause), frozenset(self._shown))


def next_turn(turn: Turn, last: Round, results: Sequence[ToolResult]) -> Turn:
    """Return the turn with the model's text and calls and their results; all rounds share max_tokens.

    A demanded call has been made by then, so the model is free to answer.
    """
    answer = Message("assistant", last.text, tool_calls=tuple(called.call for called in last.called))
    read = map(next_message, results)
    return replace(
        turn,
        messages=(*turn.messages, answer, *read),
        decoding=replace(turn.decoding, max_tokens=turn.decoding.max_tokens - last.num_tokens),
        tool_choice="none" if turn.tool_choice == "none" else "auto",
    )


def next_message(result: ToolResult) -> Message:
    """Return a result as the model reads it, without authority."""
    return Message("tool", result.content, tool_call_id=result.call_id, name=result.name, trust=Trust.NONE)


UNANSWERED = "error: the conversation holds no result of this call"


def with_results(messages: Messages, ours: Collection[str]) -> Messages:
    """Return a conversation in which every call of our tools has a result: a call that waited for a person, and that nobody
    decided on, has none otherwise, and many models refuse such a conversation."""
    answered = {message.tool_call_id for message in messages if message.role == "tool"}
    found = list[Message]()
    for message in messages:
        found.append(message)
        for call in message.tool_calls:
            if call.id not in answered and call.name in ours:
                found.append(next_message(ToolResult(call.id, call.name, UNANSWERED, error=True)))
    return tuple(found)
