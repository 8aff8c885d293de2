"""The limits layer: requests and tokens of each user per minute, and requests in progress.

In: a turn. Out: its events, or a 429 error. A request counts from its admission, tokens from the end of their
turn, both for 60 s; until then the tokens a turn may use are reserved. They are counted in this process, or in Redis
for all processes (store/redis_limits.py). The `limits` library is not used: it reads the system clock and cannot
give back a part of what it counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from demeanor.core import registry
from demeanor.core.addresses import redis_url
from demeanor.core.errors import RequestError
from demeanor.core.long_text import off_loop
from demeanor.core.reservations import (
    BUSY_S,
    WINDOW_S,
    LimitExceeded,
    Maxima,
    Reservations,
    Settle,
    Settled,
)
from demeanor.core.types import Done, Event, Refusal, Respond, Turn, Usage, num_chars
from demeanor.layers import Kit, timed

SWEEP_USERS = 10_000  # from this number on, idle users are removed whenever the number has doubled


class Window:
    """Amounts of the last 60 s, oldest first, with their sum."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int]] = deque()
        self.total = 0

    def add(self, now: float, amount: int) -> None:
        self._entries.append((now, amount))
        self.total += amount

    def expire(self, now: float) -> None:
        while self._entries and self._entries[0][0] <= now - WINDOW_S:
            self.total -= self._entries.popleft()[1]

    def room_in_s(self, excess: int, now: float) -> float:
        """Return the seconds until at least `excess` has expired; inf if there is not that much."""
        for time, amount in self._entries:
            excess -= amount
            if excess <= 0:
                return time + WINDOW_S - now
        return float("inf")


class TokenLedger:
    """One user's windows, and the tokens reserved by turns in progress."""

    def __init__(self) -> None:
        self.requests, self.tokens, self.reserved = Window(), Window(), 0

    def expire(self, now: float) -> None:
        self.requests.expire(now)
        self.tokens.expire(now)

    @property
    def idle(self) -> bool:
        return not (self.requests.total or self.tokens.total or self.reserved)


class Ledgers:
    """All users' ledgers under one set of limits; None is no limit. Safe to use from several threads."""

    def __init__(
        self,
        requests: int | None,
        tokens: int | None,
        in_progress: int | None,
        sweep_users: int = SWEEP_USERS,
    ) -> None:
        self._max_requests, self._max_tokens, self._max_in_progress = requests, tokens, in_progress
        self._users: dict[str, TokenLedger] = {}
        self._sweep_users = self._sweep_at = sweep_users
        self._in_progress = 0
        self._lock = threading.Lock()

    @property
    def num_users(self) -> int:
        return len(self._users)

    def reserve(self, user: str, tokens: int, now: float) -> Settle:
        """Count a request and reserve its tokens, or raise LimitExceeded; atomic."""
        with self._lock:
            ledger = self._ledger(user, now)
            self._check(ledger, tokens, now)
            ledger.requests.add(now, 1)
            ledger.reserved += tokens
            self._in_progress += 1
        is_open = [True]

        def settle(used: int | None, now: float) -> Awaitable[None]:
            with self._lock:
                if not is_open:
                    return Settled()
                is_open.clear()
                ledger.reserved -= tokens
                self._in_progress -= 1
                if used != 0:
                    ledger.tokens.add(now, tokens if used is None else min(used, tokens))
            return Settled()

        return settle

    def _check(self, ledger: TokenLedger, tokens: int, now: float) -> None:
        if self._max_in_progress is not None and self._in_progress >= self._max_in_progress:
            raise LimitExceeded("in_progress", tokens, BUSY_S)
        if self._max_requests is not None and ledger.requests.total >= self._max_requests:
            excess = 1 + ledger.requests.total - self._max_requests
            raise LimitExceeded("requests", tokens, ledger.requests.room_in_s(excess, now))
        if self._max_tokens is None:
            return
        if tokens > self._max_tokens:
            raise LimitExceeded("size", tokens)
        excess = ledger.tokens.total + ledger.reserved + tokens - self._max_tokens
        if excess > 0:
            wait_s = ledger.tokens.room_in_s(excess, now)
            raise LimitExceeded("tokens", tokens, BUSY_S if wait_s == float("inf") else wait_s)

    def _ledger(self, user: str, now: float) -> TokenLedger:
        """Return the user's ledger without expired entries."""
        if len(self._users) >= self._sweep_at:
            for ledger in self._users.values():
                ledger.expire(now)
            self._users = {name: ledger for name, ledger in self._users.items() if not ledger.idle}
            self._sweep_at = max(self._sweep_users, 2 * len(self._users))
        ledger = self._users.setdefault(user, TokenLedger())
        ledger.expire(now)
        return ledger


class InMemory:
    """Ledgers of this process as Reservations."""

    def __init__(self, maxima: Maxima) -> None:
        self.ledgers = Ledgers(maxima.requests, maxima.tokens, maxima.in_progress)

    async def reserve(self, user: str, tokens: int, now: float) -> Settle:
        """Count a request and reserve its tokens, or raise LimitExceeded; atomic."""
        return self.ledgers.reserve(user, tokens, now)


BEHAVIOUR = False


class Spec(registry.Spec):
    """How much one user may ask for; null is no limit."""

    requests_per_minute: int | None = Field(None, gt=0, description="turns of one user in any 60 s")
    tokens_per_minute: int | None = Field(
        None, gt=0, description="tokens of one user in any 60 s, of prompts and answers together"
    )
    max_in_progress: int | None = Field(
        None, gt=0, description="turns in progress at once, all users together; more are refused"
    )
    store: Annotated[str, AfterValidator(redis_url)] | None = Field(
        None,
        description="redis://HOST:PORT/NUMBER that counts for all processes with these limits; null: each process "
        "counts for itself",
    )
    when_unreachable: Literal["refuse", "allow"] | None = Field(
        None,
        description="turns while the store does not answer: refuse them with 503 (null), or allow them uncounted",
    )

    @model_validator(mode="after")
    def _of_a_store(self) -> Spec:
        if self.when_unreachable is not None and self.store is None:
            raise ValueError("when_unreachable: is for a `store`, and there is none; leave it out")
        return self


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Admit turns within their user's limits; variants that share `kit.shared` share the limits."""
    if ("limits", spec) not in kit.shared:
        maxima = Maxima(spec.requests_per_minute, spec.tokens_per_minute, spec.max_in_progress)
        allow = spec.when_unreachable == "allow"
        counted = InMemory(maxima) if spec.store is None else kit.open_limits(spec.store, maxima, allow)
        kit.shared["limits", spec] = counted
    limits: Reservations = kit.shared["limits", spec]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        size = num_chars(turn.messages, turn.tools)
        prompt = 0
        if spec.tokens_per_minute:
            prompt = await off_loop(size, kit.count_tokens, turn.messages, turn.tools)
        try:
            settle = await limits.reserve(turn.user, prompt + turn.decoding.max_tokens, kit.clock())
        except LimitExceeded as limit:
            raise _too_many(spec, limit) from None
        # Unknown: breaking a turn off is then charged in full, and is no way around the limit.
        used: int | None = None
        try:
            async for event in inner(turn):
                if isinstance(event, Usage):
                    used = (prompt if used is None else used) + event.completion_tokens
                elif isinstance(event, Refusal) and event.stage == "input":
                    used = used or 0
                elif isinstance(event, Done):
                    await settle(used, kit.clock())
                yield event
        except Exception:
            used = 0  # there was no answer
            await settle(used, kit.clock())
            raise
        finally:
            settle(used, kit.clock())

    return timed("limits", body, inner, kit.clock)


def _too_many(spec: Spec, limit: LimitExceeded) -> RequestError:
    if limit.what == "size":
        return RequestError(
            f"This request may use {limit.wanted} tokens (prompt and max_tokens), more than the "
            f"{spec.tokens_per_minute} a minute that one user has. Ask for less.",
            param="max_tokens",
            code="request_too_large",
        )
    text = {
        "requests": f"At most {spec.requests_per_minute} requests a minute.",
        "tokens": f"At most {spec.tokens_per_minute} tokens a minute, "
        f"and this request may use {limit.wanted}.",
        "in_progress": f"At most {spec.max_in_progress} requests are answered at once.",
    }[limit.what]
    return RequestError(
        f"Rate limit reached. {text} Try again in {limit.retry_after_s:.3g} s.",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=limit.retry_after_s,
    )
