"""One call of the model within a turn: passes its events on and remembers what the next round needs to know.

All rounds are one answer: citations move by the text of earlier rounds, and what inner layers say again is said once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from demeanor.types import Citation, Done, Event, Passage, Prompted, Text, ToolCall, ToolCalled, Usage


class Round:
    """What one round said and called, how many tokens it wrote, and how it ended."""

    def __init__(self, start: int = 0, told: frozenset[Event] = frozenset()) -> None:
        """`start`: characters of the answer so far; `told`: passages and prompts that earlier rounds have shown."""
        self.said = ""
        self.calls: list[ToolCall] = []
        self.written = 0
        self.done = Done("cancelled", by="tools")
        self._start, self._told = start, set(told)

    async def events(self, inner: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """Everything but Done, as it comes."""
        async for event in inner:
            if isinstance(event, Done):
                self.done = event
                continue
            if isinstance(event, Passage | Prompted):
                if event in self._told:
                    continue
                self._told.add(event)
            elif isinstance(event, Text):
                self.said += event.text
            elif isinstance(event, ToolCalled):
                self.calls.append(event.call)
            elif isinstance(event, Usage):
                self.written += event.completion_tokens
            elif isinstance(event, Citation):
                event = replace(event, start=event.start + self._start, end=event.end + self._start)
            yield event

    @property
    def broken_off(self) -> bool:
        """Whether the round was refused or cancelled, so that nothing it asked for is run."""
        return self.done.finish_reason in ("cancelled", "content_filter")

    def next(self, pause: str) -> Round:
        """The round that follows after this one's text and a pause."""
        return Round(self._start + len(self.said) + len(pause), frozenset(self._told))
