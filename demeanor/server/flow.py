"""Asynchronous plumbing: several turns as one flow of events, and work that ends when its client leaves.

Plain asyncio; no threads. Whatever ends a flow (its end, an error, a cancellation) closes every turn in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from starlette.types import Receive

from demeanor.core.types import Event, Respond, Turn
from demeanor.server.request_context import recorded

T = TypeVar("T")
Step: TypeAlias = tuple[int, Event | None]
"""The number of a choice and its next event; None when the choice has ended."""
AHEAD = 64


class Disconnected(Exception):
    """The client left before its answer was ready; nobody is there to be told."""


async def flow(respond: Respond, turns: Sequence[Turn]) -> AsyncGenerator[Step, None]:
    """Run turns side by side and yield their events as they come; one turn alone stays in the caller's task."""
    if len(turns) == 1:
        events = recorded(turns[0], respond(turns[0]))
        try:
            async for event in events:
                yield 0, event
            yield 0, None
        finally:
            await _close(events)
        return
    queue: asyncio.Queue[Step | Exception] = asyncio.Queue(AHEAD)
    tasks = [
        asyncio.create_task(_feed(i, recorded(turn, respond(turn)), queue)) for i, turn in enumerate(turns)
    ]
    try:
        running = len(tasks)
        while running:
            step = await queue.get()
            if isinstance(step, Exception):
                raise step
            running -= step[1] is None
            yield step
    finally:
        await _stop(*tasks)


async def gathered(respond: Respond, turns: Sequence[Turn]) -> list[list[Event]]:
    """Every event of every turn, run side by side."""
    choices: list[list[Event]] = [[] for _ in turns]
    async for index, event in flow(respond, turns):
        if event is not None:
            choices[index].append(event)
    return choices


async def _feed(index: int, events: AsyncIterator[Event], queue: asyncio.Queue[Step | Exception]) -> None:
    try:
        async for event in events:
            await queue.put((index, event))
        await queue.put((index, None))
    except Exception as error:
        await queue.put(error)
    finally:
        await _close(events)


async def _close(events: AsyncIterator[Event]) -> None:
    if isinstance(events, AsyncGenerator):
        await events.aclose()


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, cancelled and awaited as soon as the client hangs up. Raises Disconnected in that case."""
    task, watch = asyncio.create_task(work), asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        await _stop(task, watch)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
