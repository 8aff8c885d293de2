"""The record layer: a turn is acknowledged when it is stored, and what broke off is stored too. The clock of a layer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import pytest
from fake_layers import NOON, Clock, ask, events_of, kit, only, says

from demeanor.core.errors import RequestError, StoreError
from demeanor.core.types import Done, Event, Respond, Text, Timing, Turn
from demeanor.layers import record, timed


class Store:
    """Remembers what it was given, and whether it was durable yet when somebody looked."""

    def __init__(self) -> None:
        self.rows: list[tuple[Turn, list[Event], datetime, datetime]] = []
        self.durable = 0

    async def __call__(
        self, turn: Turn, events: Sequence[Event], started: datetime, finished: datetime
    ) -> None:
        self.rows.append((turn, list(events), started, finished))
        await asyncio.sleep(0.001)
        self.durable += 1


def wrap(inner: Respond, store: Any) -> Respond:
    return record.wrap(record.Spec(), inner, kit(open_store=lambda url: store))


async def test_done_is_passed_on_only_when_the_turn_is_durable() -> None:
    store = Store()
    async for event in wrap(says("It leaves ", "at 9."), store)(ask()):
        assert store.durable == isinstance(event, Done | Timing)
    assert store.rows == [(ask(), [e async for e in says("It leaves ", "at 9.")(ask())], NOON, NOON)]


async def test_a_write_that_fails_leaves_the_answer_as_it_is_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*given: Any) -> None:
        raise StoreError("disk full")

    seen = await events_of(wrap(says("9."), broken))
    assert len(only(seen, Done)) == 1
    assert [r.getMessage() for r in caplog.records] == [f"turn {ask().id} is not recorded: disk full"]


async def test_a_database_that_cannot_be_written_refuses_a_turn_before_it_costs_anything() -> None:
    asked: list[Turn] = []

    async def inner(turn: Turn) -> AsyncIterator[Event]:
        asked.append(turn)
        yield Done("stop")

    async def locked() -> None:
        raise StoreError("locked")

    given = kit(open_store=lambda url: Store(), open_check=lambda url: locked)
    with pytest.raises(StoreError):
        await events_of(record.wrap(record.Spec(), inner, given))
    assert asked == []


@pytest.mark.parametrize("how", ["left", "cancelled", "failed"])
async def test_a_turn_that_breaks_off_is_stored_as_far_as_it_came(how: str) -> None:
    async def inner(turn: Turn) -> AsyncIterator[Event]:
        yield Text("It lea")
        if how == "failed":
            raise KeyError("engine")
        await asyncio.sleep(60)

    store = Store()
    events = wrap(inner, store)(ask())
    assert await anext(events) == Text("It lea")
    if how == "left":
        await events.aclose()  # type: ignore[attr-defined]
    else:
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises((KeyError, asyncio.CancelledError)):
            await task
    assert [row[1] for row in store.rows] == [[Text("It lea")]]


async def test_a_request_refused_before_its_first_event_leaves_no_record() -> None:
    async def refuses(turn: Turn) -> AsyncIterator[Event]:
        raise RequestError("too many", status=429)
        yield

    store = Store()
    with pytest.raises(RequestError):
        await events_of(wrap(refuses, store))
    assert store.rows == []


async def test_variants_share_one_store() -> None:
    opened = []
    shared = kit(open_store=lambda url: opened.append(url) or Store())
    for _ in range(3):
        record.wrap(record.Spec(database="sqlite:///a.db"), says("x"), shared)
    assert opened == ["sqlite:///a.db"]


async def test_a_layers_milliseconds_are_its_own() -> None:
    clock = Clock()

    async def inner(turn: Turn) -> AsyncIterator[Event]:
        clock.now_s += 100
        yield Text("a")
        clock.now_s += 100
        yield Done("stop")

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        clock.now_s += 0.001
        async for event in inner(turn):
            clock.now_s += 0.010
            yield event
            clock.now_s += 0.002

    own_ms = None
    async for event in timed("mine", body, inner, clock)(ask()):
        clock.now_s += 1000  # whoever reads takes his time
        own_ms = event.ms if isinstance(event, Timing) else own_ms
    assert own_ms == pytest.approx(1 + 10 + 2 + 10)  # up to Done
