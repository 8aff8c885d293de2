"""Admission: how many requests may be answered or wait at once, and how long one may take.

An ASGI middleware that never looks into a body, so a refused request has cost no work. `Operations` are the settings of an app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.server import error_responses
from demeanor.server.auth import answers_turns, is_api
from demeanor.server.request_context import CURRENT_REQUEST, Load, Observer


@dataclass(frozen=True)
class Operations:
    """How an app is run: `slots` requests are answered at once, `max_waiting` more may wait for a slot (None: no bound)."""

    slots: int = 32
    max_waiting: int | None = None
    deadline_s: float | None = None
    cors: tuple[str, ...] = ()
    ready: Callable[[], bool] = lambda: True
    observers: tuple[Observer, ...] = ()
    keep_contents: bool = False
    """Whether observers see messages and answers."""
    engine_load: Callable[[], tuple[int, int]] | None = None
    """The numbers of answers that the engines write and that wait for a slot; None: guessed from the turns in progress."""
    abandoned_calls: Callable[[], int] = lambda: 0
    """The number of calls of tools that nobody waits for any more and that cannot be stopped."""
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
        if counted and self.operations.full():
            error = RequestError(
                f"The server is busy: {load.in_progress} requests are being answered or wait. Try again soon.",
                status=429,
                kind="rate_limit_error",
                code="server_busy",
                retry_after_s=load.wait_s(),
            )
            await error_responses.error_response(error)(scope, receive, send)
            return
        load.in_progress += counted
        try:
            await self._within(self.operations.deadline_s if counted else None, scope, receive, send)
        finally:
            load.in_progress -= counted

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
