"""A layer's clock: counts the layer's own milliseconds, neither inner layers nor whoever reads the answer.

In: a layer body `(turn, inner) -> events`. Out: a Respond that says Timing right before Done and, whatever ends the turn
(its end, an error, a caller who left), closes the body and every inner answer it opened, inner ones last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from demeanor.types import Done, Event, Respond, Timing, Turn

Body: TypeAlias = Callable[[Turn, Respond], AsyncIterator[Event]]


class Meter:
    """A stopwatch in seconds that can be stopped while others work."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._total_s, self._since = clock, 0.0, 0.0

    def start(self) -> None:
        self._since = self._clock()

    def stop(self) -> None:
        self._total_s += self._clock() - self._since

    @property
    def ms(self) -> float:
        return 1000 * self._total_s


class Outside:
    """Inner events, read while the meter stands still."""

    def __init__(self, events: AsyncIterator[Event], meter: Meter) -> None:
        self._events, self._meter = events, meter

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._meter.stop()
        try:
            return await anext(self._events)
        finally:
            self._meter.start()


def timed(by: str, body: Body, inner: Respond, clock: Callable[[], float]) -> Respond:
    """The layer `body` around `inner`, with its own time as the last event before Done."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        meter = Meter(clock)
        opened: list[AsyncIterator[Event]] = []

        def within(turn: Turn) -> AsyncIterator[Event]:
            opened.append(inner(turn))
            return Outside(opened[-1], meter)

        events = body(turn, within)
        try:
            while True:
                meter.start()
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                finally:
                    meter.stop()
                if isinstance(event, Done):
                    yield Timing(by, meter.ms)
                yield event
        finally:
            for each in (events, *reversed(opened)):
                await close(each)

    return respond


async def close(events: AsyncIterator[Event]) -> None:
    """End an answer that nobody reads any further, so that its engine slot is free at once."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()
