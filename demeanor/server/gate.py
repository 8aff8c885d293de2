"""The gate before /v1 and /metrics: keys, scopes, requests per minute, the bound on waiting requests, the deadline.

An ASGI layer that never looks into a body: what it refuses has cost no work. Rate-limit headers are written here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.server import problems
from demeanor.server.calls import CALL, Call
from demeanor.server.keys import KeyStore, Ring, presented, user_of
from demeanor.server.operations import Operations
from demeanor.server.spending import Purse

WINDOW_S = 60.0
SCOPES = {
    "chat": "chat",
    "completions": "chat",
    "responses": "chat",
    "conversations": "chat",
    "embeddings": "embeddings",
    "models": "models",
    "moderations": "moderations",
    "feedback": "feedback",
    "metrics": "metrics",
}


class Gate:
    """Wrap `inner`; requests to answer (POST) are counted from their admission until the last byte is sent."""

    def __init__(
        self,
        inner: ASGIApp,
        *,
        keys: KeyStore | None,
        operations: Operations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inner, self.keys, self.operations, self.clock = inner, keys, operations, clock
        self._recent: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = CALL.get()
        if scope["type"] != "http" or call is None or not _governed(scope["path"]):
            await self.inner(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(rate_headers(call))
            await send(message)

        working = scope["method"] == "POST" and not scope["path"].startswith("/v1/feedback")
        load = self.operations.load
        try:
            self._admit(call, scope, working)
        except RequestError as error:
            await problems.response(error)(scope, receive, told)
            return
        load.in_progress += working
        try:
            await self._within(self.operations.deadline_s if working else None, scope, receive, told)
        finally:
            load.in_progress -= working

    def _admit(self, call: Call, scope: Scope, working: bool) -> None:
        """Let a request in, or raise RequestError: 401, 403 or 429."""
        authorization = Headers(scope=scope).get("authorization")
        key = self.keys.find(presented(authorization)) if isinstance(self.keys, Ring) else None
        if key is None:
            user_of(authorization, self.keys)
        elif isinstance(self.keys, Ring):
            call.key = key
            scope_name = SCOPES.get(scope["path"].removeprefix("/v1/").split("/")[0].removeprefix("/"))
            if key.scopes is not None and scope_name is not None and scope_name not in key.scopes:
                raise RequestError(
                    f"This API key may not do this: it needs the scope '{scope_name}' and has {', '.join(key.scopes)}.",
                    status=403,
                    kind="permission_error",
                    code="insufficient_scope",
                )
            if key.tokens_per_day is not None:
                call.purse = Purse(self.keys.database, key.digest, key.tokens_per_day)
            if key.requests_per_minute is not None:
                self._count(call, key.digest, key.requests_per_minute)
            if working and call.purse is not None and not call.purse.left():
                raise call.purse.empty(1)
        if working and self.operations.full():
            load = self.operations.load
            raise RequestError(
                f"The server is busy: {load.in_progress} requests are being answered or wait. Try again soon.",
                status=429,
                kind="rate_limit_error",
                code="server_busy",
                retry_after_s=load.wait_s(),
            )

    def _count(self, call: Call, digest: str, limit: int) -> None:
        """Count a request of a key. Raises RequestError (429) if the last 60 s hold as many as it may make."""
        now, recent = self.clock(), self._recent.setdefault(digest, deque())
        while recent and recent[0] <= now - WINDOW_S:
            recent.popleft()
        full = len(recent) >= limit
        if not full:
            recent.append(now)
        wait_s = recent[0] + WINDOW_S - now
        call.requests_left = limit - len(recent), wait_s
        if full:
            raise RequestError(
                f"Rate limit reached. At most {limit} requests a minute with this API key. Try again in {wait_s:.3g} s.",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )

    async def _within(self, deadline_s: float | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; cut off at its deadline or by the server's end, it is told so: as a status, or as a stream's last event."""
        started = streamed = False

        async def seen(message: Message) -> None:
            nonlocal started, streamed
            if message["type"] == "http.response.start":
                started = True
                streamed = (
                    Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
                )
            await send(message)

        async def end(error: RequestError) -> None:
            if started:
                await send(
                    {
                        "type": "http.response.body",
                        "body": b"data: " + problems.body(error) + b"\n\n",
                        "more_body": False,
                    }
                )
            else:
                await problems.response(error)(scope, receive, send)

        try:
            async with asyncio.timeout(deadline_s) as limit:
                await self.inner(scope, receive, seen)
        except TimeoutError:
            if not limit.expired() or (started and not streamed):
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
            if not self.operations.ready() and (streamed or not started):
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


def _governed(path: str) -> bool:
    return path.startswith("/v1/") or path == "/metrics"


def rate_headers(call: Call) -> dict[str, str]:
    """What the key behind a call has left, in OpenAI's headers; empty where it has no limits."""
    found: dict[str, str] = {}
    if call.key is not None and call.requests_left is not None:
        left, wait_s = call.requests_left
        found |= {
            "x-ratelimit-limit-requests": str(call.key.requests_per_minute),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": duration(wait_s),
        }
    if call.purse is not None:
        found |= {
            "x-ratelimit-limit-tokens": str(call.purse.limit),
            "x-ratelimit-remaining-tokens": str(call.purse.left()),
            "x-ratelimit-reset-tokens": duration(call.purse.reset_s()),
        }
    return found


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 59s, 6m0s, 23h59m1s; rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
