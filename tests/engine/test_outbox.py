"""All deliveries of a step reach an outbox in one call, in order; a closed outbox does not stop the others."""

from __future__ import annotations

import asyncio

from demeanor.engine.local import LoopOutbox, Recipient, deliver
from demeanor.engine.scheduler import Piece


class Recorder:
    def __init__(self) -> None:
        self.posted: list[list[tuple[object, object]]] = []

    def post(self, deliveries: list[tuple[object, object]]) -> None:
        self.posted.append(deliveries)


class Closed:
    def post(self, deliveries: list[tuple[object, object]]) -> None:
        raise RuntimeError("Event loop is closed")


def pieces(num: int) -> list[Piece]:
    return [Piece(i, str(i), 0.0) for i in range(num)]


def test_an_outbox_gets_all_deliveries_of_a_step_in_one_call() -> None:
    one, two = Recorder(), Recorder()
    a, b, c = pieces(3)
    assert deliver([(Recipient(one, "x"), a), (Recipient(two, "y"), b), (Recipient(one, "z"), c)]) == []
    assert one.posted == [[("x", a), ("z", c)]]
    assert two.posted == [[("y", b)]]


def test_a_closed_outbox_is_reported_and_the_others_get_theirs() -> None:
    closed, open_ = Closed(), Recorder()
    a, b = pieces(2)
    assert deliver([(Recipient(closed, 0), a), (Recipient(open_, 0), b)]) == [closed]
    assert open_.posted == [[(0, b)]]


async def test_two_readers_of_one_event_loop_share_an_outbox() -> None:
    loop = asyncio.get_running_loop()
    assert LoopOutbox(loop) == LoopOutbox(loop)
    readers = [asyncio.Queue(), asyncio.Queue()]
    a, b = pieces(2)
    await asyncio.to_thread(
        deliver, [(Recipient(LoopOutbox(loop), readers[0]), a), (Recipient(LoopOutbox(loop), readers[1]), b)]
    )
    assert [await reader.get() for reader in readers] == [a, b]
