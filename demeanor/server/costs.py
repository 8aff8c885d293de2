"""What model calls cost in USD: a price for each call, and the account of the key that pays for it.

In: the events of a model call. Out: the same events, each `Usage` with its cost. Amounts are whole billionths of a
USD, so that sums are exact. A model without a price costs an unknown amount, which is never counted as 0.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from demeanor.core.errors import RequestError, StoreError
from demeanor.core.types import Event, Respond, Turn, Upstream, Usage
from demeanor.store import keys
from demeanor.store.database import Database

log = logging.getLogger("demeanor.server")
NANO = 1_000_000_000  # billionths of a USD in one


class CallPrice(Protocol):
    """The price of one model's tokens; see stack/upstreams.py."""

    def nano_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int: ...


@dataclass(frozen=True, slots=True)
class Account:
    """What one key has spent; `limit_usd` a day (UTC), if it has one."""

    database: Database
    digest: str
    limit_usd: float | None

    def left_usd(self) -> float | None:
        """USD left today, open reservations counted as spent; None without a limit."""
        if self.limit_usd is None:
            return None
        return max(0.0, self.limit_usd - keys.cost(self.database, self.digest, self._today()).nano_usd / NANO)

    def _today(self) -> str:
        return keys.day_of(self.database.now())

    async def reserve(self, nano: int | None) -> str:
        """Take the most that a call may cost (None: unknown) from today, which is returned.

        Raises RequestError: 429 if the day has too little left, 400 if no day has so much, 503 without a price.
        """
        day = self._today()
        if self.limit_usd is None:
            return day
        if nano is None:
            raise RequestError(
                "This API key has a budget in USD, and the price of this model is not known; the operator of this "
                "server can add it (serve.prices).",
                status=503,
                kind="server_error",
                code="price_unknown",
            )
        limit = round(self.limit_usd * NANO)
        if nano > limit:
            raise RequestError(
                f"This request may cost {nano / NANO:.6f} USD (prompt and max_tokens), more than the "
                f"{self.limit_usd:g} USD a day of this API key. Ask for less.",
                param="max_tokens",
                code="request_too_large",
            )
        if not await keys.take_cost(self.database, self.digest, day, nano, limit):
            raise self.empty()
        return day

    def empty(self) -> RequestError:
        wait_s = keys.day_ends_s(self.database.now())
        return RequestError(
            f"This API key has {self.left_usd() or 0.0:.6f} of {self.limit_usd:g} USD left today (UTC), which is too "
            f"little for this request (prompt and max_tokens). Ask for less, or try again in {wait_s:.0f} s.",
            status=429,
            kind="rate_limit_error",
            code="budget_exceeded",
            retry_after_s=wait_s,
        )

    async def settle(self, day: str, reserved: int, used: int | None) -> None:
        """Book what a call cost (None: unknown, counted as a call without a price), and give back the rest."""
        taken = reserved if self.limit_usd is not None else 0
        try:
            await keys.book_cost(self.database, self.digest, day, (used or 0) - taken, unpriced=used is None)
        except StoreError as error:  # the answer stands; the key is charged what was reserved
            log.error("the cost of a call is not booked: %s", error)


def priced(
    inner: Respond,
    prices: Mapping[str, CallPrice],
    models: Sequence[Sequence[str]],
    count: Callable[[Turn], int],
    account: Callable[[], Account | None] = lambda: None,
) -> Respond:
    """Tell each model call's cost, and charge it to the key's account.

    `models` lists the upstreams that may answer, each as the names under which its price may stand; `count` gives the
    tokens of a prompt, or more. A call that fails before its first event costs nothing; one that breaks off is charged
    what was reserved.
    """
    found = {names[0]: next((prices[name] for name in names if name in prices), None) for names in models}

    def most(turn: Turn) -> int | None:
        known = [price for price in found.values() if price is not None]
        if len(known) < len(found):
            return None
        prompt = count(turn)
        return max(
            max(
                p.nano_usd(prompt, turn.decoding.max_tokens),
                p.nano_usd(prompt, turn.decoding.max_tokens, prompt),
            )
            for p in known
        )

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        current = account()
        if current is not None and not prices and current.limit_usd is None:
            current = None  # nothing has a price, so there is nothing to book
        name = next(iter(found)) if len(found) == 1 else ""
        reserved = (most(turn) if current.limit_usd is not None else 0) if current else 0
        day = await current.reserve(reserved) if current else ""
        used: int | None = 0
        told = False
        try:
            async with aclosing(inner(turn)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Upstream):
                        name = event.name
                    if isinstance(event, Usage):
                        event, used = _with_cost(event, name, found.get(name), bool(prices))
                        told = True
                    elif not told:
                        used = reserved if reserved else None
                    yield event
        finally:
            if current is not None and (used != 0 or reserved):
                await current.settle(day, reserved or 0, used)

    return respond


def _with_cost(usage: Usage, name: str, price: CallPrice | None, asked: bool) -> tuple[Usage, int | None]:
    if price is None:
        return replace(usage, unpriced=asked, model=name), None
    nano = price.nano_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return replace(usage, cost_usd=nano / NANO, model=name), nano
