"""The time of a model on another server, told as the engine tells its own: one Timing of `weights` before the end of a turn."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

from demeanor.core.types import Done, Event, Respond, Timing, Turn


def timed_model(inner: Respond, clock: Callable[[], float] = time.monotonic) -> Respond:
    """The same answers, with the milliseconds that were spent waiting for the model."""

    async def respond(turn: Turn) -> AsyncGenerator[Event, None]:
        spent_s, events = 0.0, inner(turn)
        try:
            while True:
                began = clock()
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                finally:
                    spent_s += clock() - began
                if isinstance(event, Done):
                    yield Timing("weights", 1000 * spent_s)
                yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    return respond
