"""All letters of a step reach a mailbox in one posting, in order; a mailbox where nobody is does not stop the others."""

from __future__ import annotations

import asyncio

from demeanor.engine.local import LoopOutbox, Recipient, deliver
from demeanor.engine.scheduler import Piece


class Recorder:
    def __init__(self) -> None:
        self.posted: list[list[tuple[object, object]]] = []

    def post(self, letters: list[tuple[object, object]]) -> None:
        self.posted.append(letters)


class Nobody:
    def post(self, letters: list[tuple[object, object]]) -> None:
        raise RuntimeError("Event loop is closed")


def pieces(num: int) -> list[Piece]:
    return [Piece(i, str(i), 0.0) for i in range(num)]


def test_a_mailbox_gets_all_letters_of_a_step_in_one_posting() -> None:
    one, two = Recorder(), Recorder()
    a, b, c = pieces(3)
    assert deliver([(Recipient(one, "x"), a), (Recipient(two, "y"), b), (Recipient(one, "z"), c)]) == []
    assert one.posted == [[("x", a), ("z", c)]]
    assert two.posted == [[("y", b)]]


def test_a_mailbox_where_nobody_is_is_reported_and_the_others_get_theirs() -> None:
    nobody, somebody = Nobody(), Recorder()
    a, b = pieces(2)
    assert deliver([(Recipient(nobody, 0), a), (Recipient(somebody, 0), b)]) == [nobody]
    assert somebody.posted == [[(0, b)]]


async def test_two_readers_of_one_event_loop_share_a_mailbox() -> None:
    loop = asyncio.get_running_loop()
    assert LoopOutbox(loop) == LoopOutbox(loop)
    readers = [asyncio.Queue(), asyncio.Queue()]
    a, b = pieces(2)
    await asyncio.to_thread(
        deliver, [(Recipient(LoopOutbox(loop), readers[0]), a), (Recipient(LoopOutbox(loop), readers[1]), b)]
    )
    assert [await reader.get() for reader in readers] == [a, b]
