"""Turns answered while their client is connected: side by side as one sequence of events, and as server-sent events.

Plain asyncio; no threads. Whatever ends a stream (its end, an error, a cancellation) closes every turn in it. Nothing is sent before the
first visible event, so that an error raised before it is still an HTTP status; from 10 s on, comments keep a silent stream alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.core.types import Event, Respond, Turn
from demeanor.server import error_responses
from demeanor.server.request_context import Disconnected, recorded
from demeanor.server.schemas import ResponseObject

T = TypeVar("T")
Step: TypeAlias = tuple[int, Event | None]
"""The number of a choice and its next event; None when the choice has ended."""
MAX_QUEUED = 64


async def interleaved(respond: Respond, turns: Sequence[Turn]) -> AsyncGenerator[Step, None]:
    """Run turns side by side and yield their events as they come; a single turn stays in the caller's task."""
    if len(turns) == 1:
        events = recorded(turns[0], respond(turns[0]))
        try:
            async for event in events:
                yield 0, event
            yield 0, None
        finally:
            await _close(events)
        return
    queue: asyncio.Queue[Step | Exception] = asyncio.Queue(MAX_QUEUED)
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


async def all_events(request: Request, respond: Respond, turns: Sequence[Turn]) -> list[list[Event]]:
    """Every event of every turn, run side by side. Raises Disconnected if the client leaves before."""
    return await while_connected(request.receive, _gathered(respond, turns))


async def _gathered(respond: Respond, turns: Sequence[Turn]) -> list[list[Event]]:
    choices: list[list[Event]] = [[] for _ in turns]
    async for index, event in interleaved(respond, turns):
        if event is not None:
            choices[index].append(event)
    return choices


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


class EventStream(Response):
    """A response that sends chunks as server-sent events and ends the turns behind it when the client leaves."""

    media_type = "text/event-stream"
    keep_alive_s = 10.0

    def __init__(
        self,
        chunks: AsyncGenerator[ResponseObject, None],
        request_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """An error that comes too late for an HTTP status becomes the last event."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self.chunks, self.request_id = chunks, request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        self._sent, self._turn = 0, asyncio.Lock()
        alive = asyncio.create_task(self._keep_alive(send))
        try:
            async with aclosing(self.chunks) as chunks:
                try:
                    async for chunk in chunks:
                        await self._send(send, self.frame(chunk))
                    await self._send(send, b"data: [DONE]\n\n")
                except Exception as error:
                    if not self._sent:
                        raise
                    refusal = error_responses.refusal_of(error, self.request_id)
                    await self._send(send, self.frame(self.last_chunk(refusal)))
        finally:
            await _stop(alive)
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        """Send a comment whenever nothing else was sent for a while, so that no one takes the line for dead."""
        while True:
            sent = self._sent
            await asyncio.sleep(self.keep_alive_s)
            if sent == self._sent:
                await self._send(send, b": keep-alive\n\n")

    async def _send(self, send: Send, frame: bytes) -> None:
        async with self._turn:
            if not self._sent:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._sent += 1
            await send({"type": "http.response.body", "body": frame, "more_body": True})

    def frame(self, chunk: ResponseObject) -> bytes:
        """One chunk as a server-sent event."""
        return b"data: " + chunk.encode() + b"\n\n"

    def last_chunk(self, error: RequestError) -> ResponseObject:
        """The chunk that tells an error."""
        return error_responses.error_answer(error)
