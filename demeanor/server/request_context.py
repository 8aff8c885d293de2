"""One HTTP request while it is answered: the user, the limits of the key, and what the request has used so far.

The outermost middleware makes a RequestContext per request; any code that runs for the request, tasks it starts included, finds
it in CURRENT_REQUEST. Metrics, log lines and spans are made from it when the request has ended.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

from demeanor.core.errors import RequestError, StoreError
from demeanor.core.types import (
    Event,
    Refusal,
    Respond,
    RuleHit,
    Text,
    Timing,
    ToolCalled,
    ToolDecision,
    Turn,
    Upstream,
    Usage,
)
from demeanor.server.costs import Account
from demeanor.store import keys
from demeanor.store.database import Database
from demeanor.store.keys import Key


class Disconnected(Exception):
    """The client left before its answer was ready; there is no one to answer."""


log = logging.getLogger("demeanor.server")
VALID_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


@dataclass
class Load:
    """The server's load: requests admitted and not yet answered, turns being answered, and the mean duration of a request."""

    in_progress: int = 0
    turns: int = 0
    mean_s: float = 1.0

    def observe(self, request: RequestContext) -> None:
        """Count an answered request in the running mean."""
        if request.method == "POST" and request.status == 200:
            self.mean_s += 0.1 * (request.ended - request.started - self.mean_s)

    def wait_s(self) -> float:
        """Advice on when to come back: about when the next request will have ended, from 1 to 60 s."""
        return min(60.0, max(1.0, self.mean_s))


@dataclass(eq=False)
class RequestContext:
    """A request and its running counts; times in seconds of `clock`. `id` is ours and unique, `request_id` the one that is shown."""

    id: str
    request_id: str
    method: str = ""
    started: float = 0.0
    clock: Callable[[], float] = time.monotonic
    load: Load = field(default_factory=Load)
    trace_headers: dict[str, str] = field(default_factory=dict)
    """The W3C trace context headers (traceparent, tracestate) of the client."""
    contents: list[tuple[Turn, list[Event]]] | None = None
    """The turns with their events; None where observers must not see them."""
    user: str | None = None
    """The user that the API key names; None if the server has no API keys."""
    key: Key | None = None
    token_budget: TokenBudget | None = None
    account: Account | None = None
    """What the key has spent in USD; None for keys that are not in a database."""
    requests_left: tuple[int, float] | None = None
    """Requests the key has left in this minute, and after how many seconds there is one more."""
    route: str = "other"
    status: int = 0
    ended: float = 0.0
    model: str = ""
    stack_key: str = ""
    streamed: bool = False
    turns: int = 0
    layers_ms: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    costs: list[tuple[str, float | None]] = field(default_factory=list)
    """Of each model call where prices are known: the upstream or weights, and USD (None: no price)."""
    upstreams: list[Upstream] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    rule_hits: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Layer, rule, stage and outcome of every hit of a policy's rule."""
    tool_decisions: list[ToolDecision] = field(default_factory=list)
    first_token: float | None = None
    last_token: float | None = None

    async def record(self, turn: Turn, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """Count a turn and its events as they pass."""
        self.model, self.stack_key = turn.variant, turn.stack_key
        self.turns += 1
        seen: list[Event] = []
        if self.contents is not None:
            self.contents.append((turn, seen))
        self.load.turns += 1
        try:
            async for event in events:
                self.add(event)
                if self.contents is not None:
                    seen.append(event)
                yield event
        finally:
            self.load.turns -= 1
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    def add(self, event: Event) -> None:
        """Count one event."""
        match event:
            case Timing(by, ms):
                self.layers_ms[by] = self.layers_ms.get(by, 0.0) + ms
            case Usage(prompt_tokens, completion_tokens):
                self.cached_tokens += event.cached_tokens
                self.prompt_tokens += prompt_tokens
                self.completion_tokens += completion_tokens
                if event.cost_usd is not None or event.unpriced:
                    self.costs.append((event.model, event.cost_usd))
            case Upstream():
                self.upstreams.append(event)
            case Refusal(by, rule):
                self.refusals.append((by, rule))
            case RuleHit(rule, stage, outcome):
                self.rule_hits.append((event.by, rule, stage, outcome))
            case ToolDecision():
                self.tool_decisions.append(event)
            case Text() | ToolCalled():
                self.last_token = self.clock()
                if self.first_token is None:
                    self.first_token = self.last_token
            case _:
                pass

    @property
    def cost_usd(self) -> float | None:
        """USD of all model calls so far; None if the cost of one is not known, or of all."""
        known = [usd for _, usd in self.costs if usd is not None]
        return sum(known) if known and len(known) == len(self.costs) else None


Observer: TypeAlias = Callable[[RequestContext], None]
"""Receives every request that has ended."""

CURRENT_REQUEST: ContextVar[RequestContext] = ContextVar("demeanor_request")


def recorded(turn: Turn, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    """The same events, counted in the current request if there is one."""
    request = CURRENT_REQUEST.get(None)
    return events if request is None else request.record(turn, events)


def current_token_budget() -> TokenBudget | None:
    """The token budget of the current request, if there is one."""
    request = CURRENT_REQUEST.get(None)
    return None if request is None else request.token_budget


def current_account() -> Account | None:
    """The account of the current request's key, if it has one."""
    request = CURRENT_REQUEST.get(None)
    return None if request is None else request.account


def key_models() -> tuple[str, ...]:
    """The model ids that the key of the current request names."""
    request = CURRENT_REQUEST.get(None)
    return () if request is None or request.key is None else request.key.models


def valid_id(given: str | None, own: str) -> str:
    """The id a client chose, if it is short and plain enough for a log; else our own."""
    return given if given and VALID_ID.fullmatch(given) else own


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
        return keys.day_ends_s(self.database.now())

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
        if used == reserved:
            return
        try:
            await keys.give_back(self.database, self.digest, day, reserved - used)
        except StoreError as error:  # the answer stands; the key is charged what was reserved
            log.error("a key's tokens are not settled: %s", error)

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
