"""A key's daily tokens: reserved before each model call, settled after it, in the database, so that no key ever takes too many.

In: what one model call may use at most (its rendered prompt and max_tokens). Out: a refusal before any work, or the events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from demeanor.core.errors import RequestError
from demeanor.core.types import Event, Respond, Turn, Usage
from demeanor.store import keys
from demeanor.store.database import Database


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """The tokens that one key may use on a day (UTC)."""

    database: Database
    digest: str
    limit: int

    def left(self) -> int:
        """Tokens left today, open reservations counted as spent."""
        return max(0, self.limit - keys.spent(self.database, self.digest, self.today()))

    def today(self) -> str:
        return keys.day_of(self.database.now())

    def reset_s(self) -> float:
        """Seconds until the next day begins."""
        now = self.database.now()
        return (datetime.combine(now.date() + timedelta(days=1), time(), now.tzinfo) - now).total_seconds()

    async def reserve(self, tokens: int) -> str:
        """Take tokens of today, which is returned. Raises RequestError: 400 if no day has so many, 429 if this one has no more."""
        if tokens > self.limit:
            raise RequestError(
                f"This request may use {tokens} tokens (prompt and max_tokens), more than the {self.limit} a day of this "
                "API key. Ask for less.",
                param="max_tokens",
                code="request_too_large",
            )
        day = self.today()
        if not await keys.take(self.database, self.digest, day, tokens, self.limit):
            raise self.empty(tokens)
        return day

    async def settle(self, day: str, reserved: int, used: int) -> None:
        """Give back what was not used, or take what was used beyond it: the prompt of a model elsewhere can only be estimated."""
        if used != reserved:
            await keys.give_back(self.database, self.digest, day, reserved - used)

    def empty(self, wanted: int) -> RequestError:
        left, wait_s = self.left(), self.reset_s()
        return RequestError(
            f"Rate limit reached. This API key has {left} of {self.limit} tokens left today (UTC), and this request may use {wanted} "
            f"(prompt and max_tokens). Ask for less, or try again in {wait_s:.0f} s.",
            status=429,
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            retry_after_s=wait_s,
        )


def charged(
    inner: Respond, count: Callable[[Turn], int], budget: Callable[[], TokenBudget | None]
) -> Respond:
    """Charge each model call of a request to its budget, if it has one; `count` gives the tokens of a turn's prompt, or more.

    A call that fails before its first event is not charged; one broken off is charged in full, so that breaking off is no way around
    the budget.
    """

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        current = budget()
        if current is None:
            async for event in inner(turn):
                yield event
            return
        most = count(turn) + turn.decoding.max_tokens
        day = await current.reserve(most)
        used = 0
        try:
            async with aclosing(inner(turn)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Usage):
                        used = event.prompt_tokens + event.completion_tokens
                    else:
                        used = used or most
                    yield event
        finally:
            await current.settle(day, most, used)

    return respond
