"""Limits in Redis: the same answers as in memory, over processes, and none for ever after a kill; Redis that is away."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import RequestError, UsageError
from demeanor.core.reservations import LimitExceeded, Maxima
from demeanor.layers.limits import InMemory
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.store import keys, redis_limits
from demeanor.store.database import Database
from demeanor.store.redis_limits import RedisLimits, RedisRequests
from tests.conftest import each
from tests.server.scripted import Scripted, body
from tests.servers import RedisProcess

steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "end", "break", "wait"]),
        st.sampled_from(["edda", "odin"]),
        st.integers(1, 60),
        st.integers(0, 60),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_and_memory_decide_alike(redis_url: str, script: list[tuple[str, str, int, int]]) -> None:
    in_memory, in_redis = zip(*asyncio.run(decisions(redis_url, script)), strict=True)
    assert in_redis == in_memory


async def decisions(url: str, script: list[tuple[str, str, int, int]]) -> list[tuple[Any, Any]]:
    """What each store decided about every request; the first entry stands for a script without any."""
    maxima = Maxima(requests=5, tokens=100, in_progress=3)
    redis_limits.server(url)._client.flushall()
    stores = (InMemory(maxima), RedisLimits(url, maxima, given_time=True, lease_s=1e6))
    now, running, decided = 1000.0, [], [(None, None)]
    for what, user, amount, used in script:
        if what == "wait":
            now += amount / 2
        elif what in ("end", "break") and running:
            for settle in running.pop(0):
                await settle(used if what == "end" else None, now)
                await settle(None, now)  # only the first call counts
        elif what == "ask":
            outcomes = [await asked(store, user, 2 * amount, now) for store in stores]
            decided.append((outcomes[0][0], outcomes[1][0]))
            if outcomes[0][1]:
                running.append([settle for _, settle in outcomes if settle])
    return decided


async def asked(store: Any, user: str, tokens: int, now: float) -> tuple[Any, Any]:
    try:
        return "ok", await store.reserve(user, tokens, now)
    except LimitExceeded as full:
        return (full.what, full.wanted, round(full.retry_after_s, 4)), None


CALLER = """
import asyncio, sys
from demeanor.core.reservations import LimitExceeded, Maxima
from demeanor.store.redis_limits import RedisLimits

async def main():
    limits = RedisLimits(sys.argv[1], Maxima(tokens=1000))
    async def one(i):
        try:
            await limits.reserve("edda", 30 + i % 7, 0.0)
            return 30 + i % 7
        except LimitExceeded:
            return 0
    sys.stdin.readline()
    print(sum(await asyncio.gather(*(one(i) for i in range(32)))), flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


def test_64_callers_in_two_processes_are_admitted_within_the_budget_and_use_it(redis_url: str) -> None:
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER, redis_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in callers:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        admitted = sum(int(process.stdout.readline()) for process in each(callers))  # type: ignore[union-attr]
    finally:
        for process in callers:
            process.kill()
            process.communicate()
    assert 1000 - 30 < admitted <= 1000


HOLDER = """
import asyncio, sys
from demeanor.core.reservations import Maxima
from demeanor.store.redis_limits import RedisLimits

async def main():
    limits = RedisLimits(sys.argv[1], Maxima(tokens=100, in_progress=2), lease_s=2.0)
    for user, tokens in (("edda", 90), ("odin", 10)):
        await limits.reserve(user, tokens, 0.0)
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_process_gives_back_what_was_in_progress_and_is_charged_in_full(
    redis_url: str,
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, redis_url], stdout=subprocess.PIPE, text=True)
    limits = RedisLimits(redis_url, Maxima(tokens=100, in_progress=2), lease_s=2.0)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        until = time.monotonic() + 4.0  # its leases are renewed
        while time.monotonic() < until:
            with pytest.raises(LimitExceeded, match="in_progress"):
                await limits.reserve("vera", 1, 0.0)
            await asyncio.sleep(0.1)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    finally:
        holder.kill()
        holder.communicate()
    settle = await admitted_within(limits, "vera", 100, 30.0)
    await settle(0, 0.0)
    with pytest.raises(LimitExceeded, match="tokens") as full:
        await limits.reserve("edda", 20, 0.0)
    assert 0 < full.value.retry_after_s <= 60
    await (await limits.reserve("edda", 10, 0.0))(0, 0.0)


async def admitted_within(limits: RedisLimits, user: str, tokens: int, seconds: float) -> Any:
    until = time.monotonic() + seconds
    while True:
        try:
            return await limits.reserve(user, tokens, 0.0)
        except LimitExceeded:
            assert time.monotonic() < until, "never admitted"
            await asyncio.sleep(0.05)


@pytest.fixture
def own_redis() -> Any:
    from tests.servers import redis_server

    with redis_server() as running:
        yield running


async def test_turns_are_refused_or_allowed_while_redis_is_away_and_counted_again_when_it_is_back(
    own_redis: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    strict = RedisLimits(own_redis.url, Maxima(requests=2))
    lenient = RedisLimits(own_redis.url, Maxima(requests=2), allow_when_away=True)
    held = await strict.reserve("edda", 1, 0.0)
    assert (await strict.away(), await lenient.away()) == (None, None)
    own_redis.stop()
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            with pytest.raises(RequestError) as refused:
                await strict.reserve("edda", 1, 0.0)
            assert (refused.value.status, refused.value.code) == (503, "limits_unavailable")
            await (await lenient.reserve("edda", 1, 0.0))(1, 0.0)
    await held(1, 0.0)  # an answer that has begun ends as always
    assert strict.decisions_without_redis == Counter(refused=4)
    assert lenient.decisions_without_redis == Counter(allowed=4)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2, "not a line for every turn"
    assert all("does not answer" in line for line in said)
    assert "redis.sock" in str(await strict.away())
    own_redis.start()
    settle = await answered_within(strict, 30.0)
    await settle(1, 0.0)
    assert await strict.away() is None
    outcomes = [await asked(lenient, "edda", 1, 0.0) for _ in range(3)]
    assert outcomes[-1][0][0] == "requests"


async def answered_within(limits: RedisLimits, seconds: float) -> Any:
    until = time.monotonic() + seconds
    while True:
        try:
            return await limits.reserve("edda", 1, 0.0)
        except RequestError:
            assert time.monotonic() < until, "Redis is never found again"
            await asyncio.sleep(0.05)


async def test_a_redis_that_hangs_holds_a_turn_up_for_a_second_at_most(own_redis: RedisProcess) -> None:
    limits = RedisLimits(own_redis.url, Maxima(requests=1000))
    await limits.reserve("edda", 1, 0.0)
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(limits.reserve("edda", 1, 0.0) for _ in range(64)), return_exceptions=True
        )
        took_s = time.monotonic() - began
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert {type(x) for x in outcomes} == {RequestError}
    assert took_s < 5, "the machine may be busy; one by one they would take a minute"


async def test_requests_of_a_key_are_counted_over_servers_and_by_each_when_redis_is_away(
    own_redis: RedisProcess, tmp_path: Any
) -> None:
    database = Database(tmp_path / "keys.db")
    key = keys.create(database, "edda", requests_per_minute=4)
    ring = KeyRing(database, requests=RedisRequests(own_redis.url))
    clients = [
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app(Scripted(), keys=ring, operations=Operations())),
            base_url="http://localhost",
            headers={"authorization": f"Bearer {key}"},
        )
        for _ in range(2)
    ]

    async def statuses() -> list[int]:
        answers = [await clients[i % 2].post("/v1/chat/completions", json=body()) for i in range(6)]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "4"
        return [answer.status_code for answer in answers]

    assert await statuses() == [200] * 4 + [429] * 2
    own_redis.stop()
    assert await statuses() == [200] * 6, "three by each"
    for client in clients:
        await client.aclose()
    database.close()


@pytest.mark.parametrize("address", ["redis://u:hunter2@h:port/0", "http://u:hunter2@h"])
def test_a_wrong_address_is_told_without_its_password(address: str) -> None:
    with pytest.raises(UsageError, match="wanted redis://") as wrong:
        RedisLimits(address, Maxima())
    assert "hunter2" not in str(wrong.value)
