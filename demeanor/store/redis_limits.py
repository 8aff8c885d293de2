"""Limits that several server processes share, in Redis: what layers/limits.py counts in memory, and requests of API keys.

In: an address and maxima. Out: reservations. Each step is one script, so callers of all processes are admitted one after
the other. Time is Redis's own. A reservation has a lease that its process renews: what a killed process held in progress
is free when the lease ends, and its tokens are charged in full, as those of a turn that breaks off are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from demeanor.core.addresses import filled, passwords, shown, without
from demeanor.core.errors import RequestError, UsageError
from demeanor.core.reservations import BUSY_S, WINDOW_S, LimitExceeded, Maxima, Settle, Settled

log = logging.getLogger("demeanor.layers")
LEASE_S = 20.0
TIMEOUT_S = 1.0  # of connecting and of each answer
AWAY_S = 1.0  # after a failure Redis is not asked again for this long
WARN_S = 10.0
PREFIX = "demeanor:limits"
THREADS = 8

# KEYS: reservations of all; requests, tokens and reservations of the user. Scores are times in microseconds. A member
# of the tokens and of the user's reservations is ID:AMOUNT.
_COMMON = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local function amount(member) return tonumber(string.match(member, ':(%d+)$')) end
"""
_RESERVE = (
    _COMMON
    + """
local id, tokens, window, lease = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[7]), tonumber(ARGV[8])
local most_requests, most_tokens, most_open = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ended = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'WITHSCORES')
for i = 1, #ended, 2 do redis.call('ZADD', KEYS[3], ended[i + 1], ended[i]) end
if #ended > 0 then redis.call('PEXPIRE', KEYS[3], math.ceil((window + lease) / 1000) + 1000) end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - window)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - window)

if most_open >= 0 and redis.call('ZCARD', KEYS[1]) >= most_open then return {'in_progress', -1} end
if most_requests >= 0 then
  local excess = 1 + redis.call('ZCARD', KEYS[2]) - most_requests
  if excess > 0 then
    local entry = redis.call('ZRANGE', KEYS[2], excess - 1, excess - 1, 'WITHSCORES')
    return {'requests', entry[2] + window - now}
  end
end
if most_tokens >= 0 then
  if tokens > most_tokens then return {'size', 0} end
  local excess = tokens - most_tokens
  for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do excess = excess + amount(member) end
  local used = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
  for i = 1, #used, 2 do excess = excess + amount(used[i]) end
  if excess > 0 then
    for i = 1, #used, 2 do
      excess = excess - amount(used[i])
      if excess <= 0 then return {'tokens', used[i + 1] + window - now} end
    end
    return {'tokens', -1}
  end
end

redis.call('ZADD', KEYS[2], now, id)
redis.call('ZADD', KEYS[4], now + lease, id .. ':' .. tokens)
redis.call('ZADD', KEYS[1], now + lease, id)
local keep = math.ceil((window + lease) / 1000) + 1000
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], keep) end
return {'ok', 0}
"""
)
_SETTLE = (
    _COMMON
    + """
local id, tokens, used, window = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZREM', KEYS[1], id)
if redis.call('ZREM', KEYS[4], id .. ':' .. tokens) == 1 and used > 0 then
  redis.call('ZADD', KEYS[3], now, id .. ':' .. used)
  redis.call('PEXPIRE', KEYS[3], math.ceil(window / 1000) + 1000)
end
return 1
"""
)
_RENEW = (
    _COMMON
    + """
local id, tokens, lease, keep = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZADD', KEYS[1], 'XX', now + lease, id)
redis.call('ZADD', KEYS[4], 'XX', now + lease, id .. ':' .. tokens)
redis.call('PEXPIRE', KEYS[1], keep)
redis.call('PEXPIRE', KEYS[4], keep)
return 1
"""
)
_COUNT = (
    _COMMON
    + """
local id, most, window = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
local count, admitted = redis.call('ZCARD', KEYS[1]), 0
if count < most then
  redis.call('ZADD', KEYS[1], now, id)
  redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000) + 1000)
  count, admitted = count + 1, 1
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {admitted, count, oldest[2] + window - now}
"""
)


class RedisAway(Exception):
    """Redis does not answer, and why."""


class RedisServer:
    """One Redis, by its address: runs scripts in threads of its own and is left alone for a moment after a failure."""

    def __init__(self, address: str) -> None:
        """Take an address with `${NAME}` for secrets. Raises UsageError if it is malformed or redis is missing."""
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise UsageError(
                "limits: redis:// needs the package redis; install it: pip install 'demeanor[redis]'"
            ) from None
        self.name = shown(address)
        try:
            url = filled(address)
        except UsageError as error:
            raise UsageError(f"limits: got '{self.name}': {error}") from None
        self._secrets = passwords(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
                client_name="demeanor",
            )
        except (ValueError, TypeError):
            raise UsageError(f"limits: got '{self.name}', wanted redis://HOST:PORT/NUMBER") from None
        self._threads = ThreadPoolExecutor(THREADS, "limits")
        self._scripts = {
            text: self._client.register_script(text) for text in (_RESERVE, _SETTLE, _RENEW, _COUNT)
        }
        self._away_until, self._why = 0.0, ""

    def run(self, script: str, keys: list[str], values: list[str | int]) -> Future[Any]:
        """Run a script; the future raises RedisAway if Redis does not answer."""
        return self._threads.submit(self._run, lambda: self._scripts[script](keys=keys, args=values))

    def ping(self) -> Future[Any]:
        return self._threads.submit(self._run, self._client.ping)

    def _run(self, call: Callable[[], Any]) -> Any:
        if time.monotonic() < self._away_until:
            raise RedisAway(self._why)
        try:
            return call()
        except self._errors as error:
            self._why = without(
                str(error).splitlines()[0] if str(error) else type(error).__name__, self._secrets
            )
            self._away_until = time.monotonic() + AWAY_S
            raise RedisAway(self._why) from None


@cache
def server(address: str) -> RedisServer:
    """Return the connection of this process to a Redis; all users of one address share it."""
    return RedisServer(address)


@dataclass(eq=False, slots=True)
class _Open:
    """A reservation whose turn is in progress."""

    id: str
    tokens: int
    keys: list[str]


class RedisLimits:
    """All users' limits under one set of maxima, shared by every process that has the same maxima and Redis."""

    def __init__(
        self,
        address: str,
        maxima: Maxima,
        *,
        allow_when_away: bool = False,
        lease_s: float = LEASE_S,
        given_time: bool = False,
    ) -> None:
        """`given_time`: for tests, the time of a call counts and not that of Redis."""
        self.redis, self.allow_when_away = server(address), allow_when_away
        self.decisions_without_redis: Counter[str] = Counter()
        self._maxima, self._lease_s, self._given_time = maxima, lease_s, given_time
        self._space = hashlib.sha256(repr(maxima).encode()).hexdigest()[:12]
        self._open: dict[str, _Open] = {}
        self._lock, self._renewing = threading.Lock(), False
        self._warned = -WARN_S

    async def reserve(self, user: str, tokens: int, now: float) -> Settle:
        """Count a request and reserve its tokens, or raise LimitExceeded; atomic over all processes.

        Raises RequestError (503) if Redis is away, unless turns are allowed then.
        """
        held = _Open(_new_id(), tokens, self._keys(user))
        m = self._maxima
        most = [-1 if x is None else x for x in (m.requests, m.tokens, m.in_progress)]
        values: list[str | int] = [self._time(now), held.id, tokens, *most, _us(WINDOW_S), _us(self._lease_s)]
        try:
            what, wait = await asyncio.wrap_future(self.redis.run(_RESERVE, held.keys, values))
        except RedisAway as away:
            return self._without_redis(str(away))
        if what != b"ok":
            raise LimitExceeded(what.decode(), tokens, BUSY_S if wait < 0 else wait / 1e6)
        self._hold(held)

        def settle(used: int | None, now: float) -> Awaitable[None]:
            if self._open.pop(held.id, None) is None:
                return Settled()
            amount = tokens if used is None else min(used, tokens)
            values: list[str | int] = [self._time(now), held.id, tokens, amount, _us(WINDOW_S)]
            return _Settling(self.redis.run(_SETTLE, held.keys, values))

        return settle

    async def away(self) -> str | None:
        """Why Redis does not answer; None if it does."""
        try:
            await asyncio.wrap_future(self.redis.ping())
        except RedisAway as away:
            return f"limits: {self.redis.name}: {away}"
        return None

    def _time(self, now: float) -> str | int:
        return _us(now) if self._given_time else ""

    def _keys(self, user: str) -> list[str]:
        who = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        space = f"{PREFIX}:{{{self._space}}}"
        return [f"{space}:open", *(f"{space}:{who}:{what}" for what in ("requests", "tokens", "open"))]

    def _without_redis(self, why: str) -> Settle:
        outcome = "allowed" if self.allow_when_away else "refused"
        self.decisions_without_redis[outcome] += 1
        if time.monotonic() - self._warned >= WARN_S:
            self._warned = time.monotonic()
            log.error("limits: %s does not answer (%s): turns are %s", self.redis.name, why, outcome)
        if self.allow_when_away:
            return lambda used, now: Settled()
        raise RequestError(
            "The server cannot check its limits at the moment. Try again.",
            status=503,
            kind="server_error",
            code="limits_unavailable",
            retry_after_s=AWAY_S,
        )

    # ---- leases ----

    def _hold(self, held: _Open) -> None:
        """Keep a reservation's lease until it is settled; one thread renews all."""
        self._open[held.id] = held
        if self._given_time:
            return
        with self._lock:
            if not self._renewing:
                self._renewing = True
                threading.Thread(target=self._renew, name="limits-leases", daemon=True).start()

    def _renew(self) -> None:
        while True:
            time.sleep(self._lease_s / 3)
            with self._lock:
                if not self._open:
                    self._renewing = False
                    return
            keep_ms = int(1000 * (WINDOW_S + self._lease_s)) + 1000
            for held in list(self._open.values()):
                values: list[str | int] = ["", held.id, held.tokens, _us(self._lease_s), keep_ms]
                with contextlib.suppress(RedisAway):
                    self.redis.run(_RENEW, held.keys, values).result()


class RedisRequests:
    """Requests of API keys in any 60 s, shared by every process with the same Redis."""

    def __init__(self, address: str) -> None:
        self.redis = server(address)

    async def count(self, name: str, most: int) -> tuple[bool, int, float]:
        """Count a request; return whether it is admitted, how many count now, and the seconds until the oldest no
        longer does. Raises RedisAway."""
        values: list[str | int] = ["", _new_id(), most, _us(WINDOW_S)]
        admitted, count, wait = await asyncio.wrap_future(
            self.redis.run(_COUNT, [f"{PREFIX}:keys:{name}"], values)
        )
        return bool(admitted), int(count), wait / 1e6

    async def away(self) -> str | None:
        """Why Redis does not answer; None if it does."""
        try:
            await asyncio.wrap_future(self.redis.ping())
        except RedisAway as away:
            return f"requests of keys: {self.redis.name}: {away}"
        return None


class _Settling:
    """A settlement under way; it goes on whether it is awaited or not."""

    def __init__(self, done: Future[Any]) -> None:
        self._done = done

    def __await__(self) -> Generator[Any, None, None]:
        with contextlib.suppress(RedisAway):  # the lease ends, and the tokens are charged in full
            yield from asyncio.wrap_future(self._done).__await__()


def _new_id() -> str:
    return secrets.token_hex(8)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
