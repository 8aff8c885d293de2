"""Authentication: the API key of a request becomes its user, its scopes and its limits, or the request is refused.

An ASGI middleware around /v1 and /metrics; it writes the user and the token budget into the RequestContext, where routes read
them, and the x-ratelimit headers. Keys themselves are never stored and never logged.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.core.errors import RequestError, StoreError
from demeanor.server import error_responses
from demeanor.server.costs import Account
from demeanor.server.operator_access import OPERATOR_PATHS, check_local
from demeanor.server.request_context import CURRENT_REQUEST, RequestContext, TokenBudget
from demeanor.store import keys as stored
from demeanor.store.database import Database
from demeanor.store.redis_limits import RedisAway, RedisRequests

log = logging.getLogger("demeanor.server")
KeyStore: TypeAlias = Callable[[str], str | None]
"""Takes the key a client sent; returns the name of its user, or None."""
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
    "comparisons": "feedback",
    "history": "chat",
    "metrics": "metrics",
    "demeanor": stored.OPERATOR,
}


def from_digests(users: Mapping[str, str]) -> KeyStore:
    """A KeyStore over {digest: user name}; every digest is compared, each in constant time."""

    def user_of(key: str) -> str | None:
        shown, found = stored.digest(key), None
        for known, user in users.items():
            if hmac.compare_digest(shown, known):
                found = user
        return found

    return user_of


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a database and, beside them, plain ones without scopes and limits; `requests` counts the requests of all
    processes (None: each process counts its own)."""

    database: Database
    plain: KeyStore | None = None
    requests: RedisRequests | None = None


class AuthMiddleware:
    """Wrap `inner`: requests to /v1 and /metrics need a key in force, its scope, and something left of its limits."""

    def __init__(
        self, inner: ASGIApp, *, keys: KeyStore | KeyRing | None, clock: Callable[[], float]
    ) -> None:
        self.inner, self.keys, self.clock = inner, keys, clock
        self._recent: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_api(scope):
            await self.inner(scope, receive, send)
            return
        request = CURRENT_REQUEST.get()

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                with contextlib.suppress(StoreError):  # the answer stands without them
                    MutableHeaders(scope=message).update(await self._rate_headers(request))
            await send(message)

        try:
            if self.keys is not None:
                await self._authenticate(request, Headers(scope=scope).get("authorization", ""))
                _check_scope(request.key, scope["path"])
            elif scope["path"].startswith(OPERATOR_PATHS):
                check_local(scope)
            if request.key is not None:
                await self._apply_limits(request, request.key, answers_turns(scope))
        except RequestError as error:
            await error_responses.error_response(error)(scope, receive, send_with_limits)
            return
        await self.inner(scope, receive, send_with_limits)

    async def _rate_headers(self, request: RequestContext) -> dict[str, str]:
        if isinstance(self.keys, KeyRing) and request.key is not None:
            return await self.keys.database.read(partial(rate_headers, request))
        return rate_headers(request)

    async def _authenticate(self, request: RequestContext, authorization: str) -> None:
        """Write the key and its user into the request. Raises RequestError (401)."""
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorised("No API key was given. Send it in the header `Authorization: Bearer KEY`.")
        plain = self.keys
        if isinstance(plain, KeyRing):
            request.key = await plain.database.read(partial(stored.find, plain.database, key))
            plain = plain.plain
        if request.key is not None:
            request.user = request.key.name
        elif plain is not None:
            request.user = plain(key)
        if request.user is None:
            raise _unauthorised("The API key is not known here.")

    async def _apply_limits(self, request: RequestContext, key: stored.Key, answers: bool) -> None:
        """Give the request its token budget and count it. Raises RequestError (429) if either limit of the key is used up."""
        if isinstance(self.keys, KeyRing):
            request.account = Account(self.keys.database, key.digest, key.usd_per_day)
            if key.tokens_per_day is not None:
                request.token_budget = TokenBudget(self.keys.database, key.digest, key.tokens_per_day)
        if key.requests_per_minute is not None:
            await self._count(request, key.digest, key.requests_per_minute)
        if answers and isinstance(self.keys, KeyRing):
            await self.keys.database.read(partial(_check_left, request))

    async def _count(self, request: RequestContext, digest: str, limit: int) -> None:
        """Count a request of a key. Raises RequestError (429) if the last 60 s hold as many as it may make."""
        admitted, count, wait_s = await self._counted(digest, limit)
        request.requests_left = limit - count, wait_s
        if not admitted:
            raise RequestError(
                f"Rate limit reached. At most {limit} requests a minute with this API key. Try again in {wait_s:.3g} s.",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )

    async def _counted(self, digest: str, limit: int) -> tuple[bool, int, float]:
        """Count a request of all processes, or of this one where there is no Redis or it does not answer."""
        shared = self.keys.requests if isinstance(self.keys, KeyRing) else None
        if shared is not None:
            try:
                return await shared.count(digest, limit)
            except RedisAway as away:
                log.warning("requests of keys are counted in this process: %s", away)
        now, recent = self.clock(), self._recent.setdefault(digest, deque())
        while recent and recent[0] <= now - WINDOW_S:
            recent.popleft()
        full = len(recent) >= limit
        if not full:
            recent.append(now)
        return not full, len(recent), recent[0] + WINDOW_S - now


def is_api(scope: Scope) -> bool:
    """Whether this is a request that needs a key: to the API or to the metrics, not to a page or a health check."""
    path: str = scope.get("path", "")
    return scope["type"] == "http" and (path.startswith("/v1/") or path == "/metrics")


def answers_turns(scope: Scope) -> bool:
    """Whether a request asks the model for something, and so counts against slots and token budgets."""
    path: str = scope["path"]
    is_replay = path.startswith("/v1/demeanor/turns/") and path.endswith("/replay")
    others = ("/v1/feedback", "/v1/comparisons", "/v1/demeanor/")
    return scope["method"] == "POST" and (is_replay or not path.startswith(others))


def _unauthorised(message: str) -> RequestError:
    return RequestError(message, status=401, kind="authentication_error", code="invalid_api_key")


def _check_scope(key: stored.Key | None, path: str) -> None:
    """Raise RequestError (403) if the key, or a plain one (None), lacks the scope of an address.

    What operators see is other users' words: a key has that scope only if it was named.
    """
    needed = SCOPES.get(path.removeprefix("/v1").removeprefix("/").split("/")[0])
    scopes = None if key is None else key.scopes
    if needed is None or (scopes is None and needed != stored.OPERATOR) or needed in (scopes or ()):
        return
    has = (
        ", ".join(scopes)
        if scopes
        else f"no scope that was named: demeanor keys create NAME --scopes {needed}"
    )
    raise RequestError(
        f"This API key may not do this: it needs the scope '{needed}' and has {has}.",
        status=403,
        kind="permission_error",
        code="insufficient_scope",
    )


def _check_left(request: RequestContext) -> None:
    """Raise RequestError (429) if a request's key has nothing left today."""
    if request.token_budget is not None and not request.token_budget.left():
        raise request.token_budget.empty(1)
    if request.account is not None and request.account.left_usd() == 0:
        raise request.account.empty()


def rate_headers(request: RequestContext) -> dict[str, str]:
    """What the key of a request has left, in OpenAI's headers; empty where it has no limits."""
    found: dict[str, str] = {}
    if request.key is not None and request.requests_left is not None:
        left, wait_s = request.requests_left
        found |= {
            "x-ratelimit-limit-requests": str(request.key.requests_per_minute),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": duration(wait_s),
        }
    if request.token_budget is not None:
        found |= {
            "x-ratelimit-limit-tokens": str(request.token_budget.limit),
            "x-ratelimit-remaining-tokens": str(request.token_budget.left()),
            "x-ratelimit-reset-tokens": duration(request.token_budget.reset_s()),
        }
    return found


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 59s, 6m0s, 23h59m1s; rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
