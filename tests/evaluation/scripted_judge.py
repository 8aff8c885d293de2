"""A judge without a model: its words are a function of all that it was shown; it counts what it is asked and can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from demeanor.core.types import Done, Event, FinishReason, Text, Turn, Usage


class Scripted:
    """A respond that says `says(text of all messages)`."""

    def __init__(
        self,
        says: Callable[[str], str] = lambda text: "Fine.\nVerdict: yes",
        *,
        error: Exception | None = None,
        finish: FinishReason = "stop",
    ) -> None:
        self.says, self.error, self.finish = says, error, finish
        self.turns: list[Turn] = []

    @property
    def calls(self) -> int:
        return len(self.turns)

    async def __call__(self, turn: Turn) -> AsyncIterator[Event]:
        self.turns.append(turn)
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        yield Text(self.says("\n".join(m.content for m in turn.messages)))
        yield Usage(9, 2)
        yield Done(self.finish)
