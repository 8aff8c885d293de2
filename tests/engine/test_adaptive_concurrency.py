"""An evaluation asks another server as many questions at once as it answers in time, however many it can answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from demeanor.core.errors import EngineError, UpstreamError
from demeanor.core.types import Decoding, Done, Event, Message, Text, Turn, complete
from demeanor.engine.adaptive_concurrency import MOST, AdaptiveConcurrency, paced
from tests.conftest import each

PATIENCE_S = 60.0


class Server:
    """A server with some slots, in simulated time: every step of the loop is a second of its clock."""

    def __init__(self, slots: int, answer_s: float, dead: bool = False, thinks: bool = False) -> None:
        self.thinks = thinks  # or calls tools, or sends the answer in one piece: no event before its end
        self.now, self.slots, self.answer_s, self.dead = 0.0, slots, answer_s, dead
        self.busy, self.most, self.given_up, self.asked = 0, 0, 0, 0
        self.inside = 0

    async def sleep(self, until: float) -> None:
        while self.now < until:
            await asyncio.sleep(0)

    async def __call__(self, turn: Turn) -> AsyncGenerator[Event, None]:
        began, self.asked, self.inside = self.now, self.asked + 1, self.inside + 1
        self.most = max(self.most, self.inside)
        try:
            while self.dead or self.busy >= self.slots:
                await asyncio.sleep(0)
                if self.now - began >= PATIENCE_S:
                    self.given_up += 1
                    raise UpstreamError("silent", status=504, code="upstream_timeout")
            self.busy += 1
            try:
                if not self.thinks:
                    yield Text("Yes")
                await self.sleep(self.now + self.answer_s)
                if self.thinks:
                    yield Text("Yes")
                yield Done("stop")
            finally:
                self.busy -= 1
        finally:
            self.inside -= 1


async def measured(server: Server, questions: int, places: AdaptiveConcurrency) -> list[object]:
    """Ask 48 at once, as an evaluation does, while the clock goes on."""
    respond, free = paced(server, places), asyncio.Semaphore(MOST)

    async def one(n: int) -> object:
        async with free:
            return (await complete(respond, Turn((Message("user", f"{n}?"),), Decoding()))).text

    async def clock() -> None:
        while True:
            for _ in range(4):
                await asyncio.sleep(0)
            server.now += 1.0

    ticking = asyncio.create_task(clock())
    try:
        return await asyncio.gather(*map(one, range(questions)), return_exceptions=True)
    finally:
        ticking.cancel()


@pytest.mark.parametrize(("slots", "answer_s"), [(1, 3.0), (1, 13.0), (2, 13.0), (1, 50.0), (1, 59.0)])
async def test_a_server_with_few_slots_answers_every_question_though_48_at_once_would_be_too_many(
    slots: int, answer_s: float
) -> None:
    server = Server(slots, answer_s)
    places = AdaptiveConcurrency(PATIENCE_S, clock=lambda: server.now)
    assert await measured(server, 60, places) == ["Yes"] * 60
    assert server.given_up <= 6, "seldom is an answer waited for in vain"
    assert server.now <= 1.5 * 60 * answer_s / slots + 6 * PATIENCE_S, "and the slots are kept busy"


@pytest.mark.parametrize(
    ("slots", "answer_s"), [(1, 3.0), (1, 25.0), (2, 20.0), (8, 20.0), (1000, 20.0), (1000, 40.0)]
)
async def test_a_server_that_begins_late_though_nothing_stands_before_a_question_is_asked_as_much_as_it_can(
    slots: int, answer_s: float
) -> None:
    server = Server(slots, answer_s, thinks=True)
    places = AdaptiveConcurrency(PATIENCE_S, clock=lambda: server.now)
    assert await measured(server, 150, places) == ["Yes"] * 150
    assert server.given_up <= 6
    assert server.now <= 1.2 * 150 * answer_s / min(slots, MOST) + 4 * answer_s, "the slots are kept busy"


async def test_a_quick_server_is_soon_asked_as_much_as_an_evaluation_can() -> None:
    server = Server(1000, 2.0)
    places = AdaptiveConcurrency(PATIENCE_S, clock=lambda: server.now)
    assert await measured(server, 400, places) == ["Yes"] * 400
    assert server.most == MOST
    assert server.given_up == 0


async def test_a_server_that_is_gone_fails_all_questions_together_and_not_one_after_the_other() -> None:
    server = Server(1, 1.0, dead=True)
    places = AdaptiveConcurrency(PATIENCE_S, clock=lambda: server.now)
    found = await measured(server, 96, places)
    assert all(isinstance(error, UpstreamError) for error in each(found))
    assert server.now < 8 * PATIENCE_S
    server.dead = False
    assert await measured(server, 5, places) == ["Yes"] * 5


async def test_other_failures_and_those_after_a_part_of_the_answer_are_not_asked_again() -> None:
    for error in each([EngineError("HTTP 400"), UpstreamError("silent", code="upstream_timeout")]):
        asked = []

        async def broken(
            turn: Turn, error: Exception = error, asked: list[Turn] = asked
        ) -> AsyncGenerator[Event, None]:
            asked.append(turn)
            yield Text("Y")
            raise error

        places = AdaptiveConcurrency(PATIENCE_S)
        with pytest.raises(type(error)):
            await complete(paced(broken, places), Turn((Message("user", "?"),), Decoding()))
        assert (len(asked), places.taken) == (1, 0)


async def test_a_server_that_takes_no_more_requests_is_asked_fewer_at_once() -> None:
    async def full(turn: Turn) -> AsyncGenerator[Event, None]:
        raise UpstreamError("slow down", status=429, again=True)
        yield Text("")

    places = AdaptiveConcurrency(PATIENCE_S, first=8)
    with pytest.raises(UpstreamError, match="slow down"):
        await complete(paced(full, places), Turn((Message("user", "?"),), Decoding()))
    assert (places.width, places.taken) == (4.0, 0)


async def test_a_question_that_is_cancelled_while_it_waits_leaves_its_place_to_the_next() -> None:
    places = AdaptiveConcurrency(PATIENCE_S, first=1)
    await places.take()
    first, second = asyncio.create_task(places.take()), asyncio.create_task(places.take())
    await asyncio.sleep(0)
    first.cancel()
    places.leave()
    await second
    assert first.cancelled()
    assert places.taken == 1
