"""The time of a remote model stands among the layers."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from demeanor.core.types import Decoding, Done, Event, Message, Text, Timing, Turn
from demeanor.engine.timed_model import timed_model

TURN = Turn((Message("user", "q"),), Decoding())


async def test_only_the_time_of_the_model_counts_and_it_stands_before_the_end() -> None:
    now, closed = [0.0], []

    async def model(turn: Turn) -> AsyncGenerator[Event, None]:
        try:
            for text in ("a", "b"):
                now[0] += 1.5
                yield Text(text)
            yield Done("stop")
        finally:
            closed.append(True)

    seen: list[Event] = []
    async for event in timed_model(model, lambda: now[0])(TURN):
        seen.append(event)
        now[0] += 10  # the reader's own time
    assert seen == [Text("a"), Text("b"), Timing("weights", 3000.0), Done("stop")]
    assert closed == [True]


async def test_a_reader_that_leaves_closes_the_model() -> None:
    closed = []

    async def model(turn: Turn) -> AsyncGenerator[Event, None]:
        try:
            while True:
                yield Text("on")
        finally:
            closed.append(True)

    events = timed_model(model)(TURN)
    assert isinstance(events, AsyncGenerator)
    await anext(events)
    await events.aclose()
    assert closed == [True]
