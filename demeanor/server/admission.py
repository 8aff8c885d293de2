"""Admission: how many requests may be answered or wait at once, and how long one may take.

An ASGI middleware that reads a body whole, within its time, before the request counts, so one that never comes takes nobody's place;
it never looks into it. `Operations` are the settings of an app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.server import error_responses
from demeanor.server.auth import answers_turns, is_api
from demeanor.server.request_context import CURRENT_REQUEST, Disconnected, Load, Observer

MAX_BODY_BYTES = 1 << 20
UpstreamCounts: TypeAlias = tuple[Mapping[tuple[str, str], int], Mapping[str, str]]


class ToolServerState(Protocol):
    """An MCP server: whether it is `connected`, and how many of its tools are offered and withheld."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def offered(self) -> int: ...
    @property
    def withheld(self) -> int: ...


@dataclass(frozen=True)
class Operations:
    """How an app is run: `slots` requests are answered at once, `max_waiting` more may wait for a slot (None: no bound)."""

    slots: int = 32
    max_waiting: int | None = None
    deadline_s: float | None = None
    body_s: float = 30.0
    """Seconds that a request's body may take."""
    max_body_bytes: int = MAX_BODY_BYTES
    cors: tuple[str, ...] = ()
    ready: Callable[[], bool] = lambda: True
    observers: tuple[Observer, ...] = ()
    keep_contents: bool = False
    """Whether observers see messages and answers."""
    engine_load: Callable[[], tuple[int, int]] | None = None
    """The numbers of answers that the engines write and that wait for a slot; None: guessed from the turns in progress."""
    cache_pages: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
    """Pages of keys and values in all engines: of running answers, kept for later ones, and free."""
    placements: Callable[[], Sequence[Mapping[str, str]]] = tuple
    """How the engines decode: device, and formats of weights, products and cache."""
    tool_servers: Callable[[], Sequence[ToolServerState]] = tuple
    """The MCP servers of what is served."""
    abandoned_calls: Callable[[], int] = lambda: 0
    """The number of calls of tools that nobody waits for any more and that cannot be stopped."""
    upstreams: Callable[[], UpstreamCounts] = lambda: ({}, {})
    """Tries of each upstream by (name, outcome), and the state of each one's circuit."""
    limits_unchecked: Callable[[], Mapping[str, int]] = dict
    """Turns that were `refused` or `allowed` while the store of limits did not answer."""
    all_metrics: Callable[[bytes], Awaitable[bytes]] | None = None
    """This process's metrics to those of all server processes; None: there is one."""
    degraded: Callable[[], Awaitable[str | None]] | None = None
    """What does not work, although requests are answered without it; None if everything does."""
    health: Callable[[], Awaitable[str | None]] | None = None
    """Why what is served cannot answer now (a failed engine, a server behind it that is away); None if it can."""
    load: Load = field(default_factory=Load)

    def running_and_waiting(self) -> tuple[int, int]:
        """The numbers of answers being written and waiting for a slot."""
        if self.engine_load:
            return self.engine_load()
        return min(self.load.turns, self.slots), max(0, self.load.turns - self.slots)

    def full(self) -> bool:
        """Whether as many wait as may: requests beyond the slots, or answers (a request for n makes n) in the engines' own queues."""
        if self.max_waiting is None:
            return False
        waiting = self.engine_load()[1] if self.engine_load else 0
        return self.load.in_progress >= self.slots + self.max_waiting or waiting > self.max_waiting


class AdmissionMiddleware:
    """Wrap `inner`: a request that asks the model counts from its admission until the last byte is sent, and has a deadline."""

    def __init__(self, inner: ASGIApp, *, operations: Operations) -> None:
        self.inner, self.operations = inner, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_api(scope):
            await self.inner(scope, receive, send)
            return
        load, counted = self.operations.load, answers_turns(scope)
        try:
            if counted and self.operations.full():  # before its body costs anything
                raise self._busy()
            receive = await self._with_body(scope, receive)
            if counted and self.operations.full():
                raise self._busy()
        except RequestError as error:
            await error_responses.error_response(error)(scope, receive, send)
            return
        load.in_progress += counted
        try:
            await self._within(self.operations.deadline_s if counted else None, scope, receive, send)
        finally:
            load.in_progress -= counted

    def _busy(self) -> RequestError:
        load = self.operations.load
        return RequestError(
            f"The server is busy: {load.in_progress} requests are being answered or wait. Try again soon.",
            status=429,
            kind="rate_limit_error",
            code="server_busy",
            retry_after_s=load.wait_s(),
        )

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Receive the body; return what receives it again. One that is too long is left to the endpoint, which says so.

        Raises RequestError (408) if it does not come in time, Disconnected if the client leaves.
        """
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.operations.max_body_bytes:
            return receive
        content, more = bytearray(), True
        try:
            async with asyncio.timeout(self.operations.body_s):
                while more and len(content) <= self.operations.max_body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    content += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestError(
                f"The body did not come within {self.operations.body_s:g} s.", status=408, code="body_timeout"
            ) from None
        messages = [{"type": "http.request", "body": bytes(content), "more_body": more}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        return again

    async def _within(self, deadline_s: float | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; if its deadline or the server's end cuts it off, send an error: a response, or a stream's last event."""
        request = CURRENT_REQUEST.get()

        async def end(error: RequestError) -> None:
            if request.status:
                event = b"data: " + error_responses.error_answer(error).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": False})
            else:
                await error_responses.error_response(error)(scope, receive, send)

        try:
            async with asyncio.timeout(deadline_s) as limit:
                await self.inner(scope, receive, send)
        except TimeoutError:
            if not limit.expired() or (request.status and not request.streamed):
                raise
            await end(
                RequestError(
                    f"This request was not answered within the server's deadline of {deadline_s:g} s. Ask for fewer tokens, "
                    "or try again.",
                    status=504,
                    kind="server_error",
                    code="deadline_exceeded",
                )
            )
        except asyncio.CancelledError:
            if not self.operations.ready() and (request.streamed or not request.status):
                await end(
                    RequestError(
                        "The server is stopping and could not finish this request. Try again.",
                        status=503,
                        kind="server_error",
                        code="cancelled",
                        retry_after_s=1.0,
                    )
                )
            raise
