"""Limits: reserved before, settled after; nobody gets more than the budget, and everybody gets all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_layers import Clock, ask, events_of, kit, says, script
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import RequestError
from demeanor.core.reservations import LimitExceeded, Maxima
from demeanor.core.types import Done, Event, Refusal, Respond, Text, Turn, Usage
from demeanor.layers import limits
from demeanor.layers.limits import Ledgers
from demeanor.store.redis_limits import RedisLimits

Wrap = Callable[..., Respond]


def in_redis(address: str, maxima: Maxima, allow: bool) -> RedisLimits:
    """Limits in Redis by the clock of the test."""
    return RedisLimits(address, maxima, allow_when_away=allow, given_time=True, lease_s=1e6)


@pytest.fixture(params=["memory", "redis"])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    """Wrap an answer in limits that are counted in memory, or in Redis."""
    store = {} if request.param == "memory" else {"store": request.getfixturevalue("redis_url")}

    def wrapped(inner: Respond, clock: Clock | None = None, **settings: Any) -> Respond:
        spec = limits.Spec(**settings, **store)
        return limits.wrap(spec, inner, kit(clock=clock, open_limits=in_redis))

    return wrapped


async def refusal_of(respond: Respond, turn: Turn | None = None) -> RequestError:
    with pytest.raises(RequestError) as error:
        await events_of(respond, turn)
    return error.value


async def test_64_callers_at_once_are_never_admitted_beyond_the_budget(wrap: Wrap) -> None:
    running = most = admitted = 0

    async def inner(turn: Turn) -> AsyncIterator[Event]:
        nonlocal running, most, admitted
        admitted += 1
        running += 104  # 4 words asked, 100 tokens allowed
        most = max(most, running)
        await asyncio.sleep(0.001)
        yield Text("no")
        running -= 104
        yield Usage(9, 100)
        yield Done("stop")

    respond = wrap(inner, tokens_per_minute=1000)
    outcomes = await asyncio.gather(
        *(events_of(respond, ask("one two three four")) for _ in range(64)), return_exceptions=True
    )
    refused = [e for e in outcomes if isinstance(e, RequestError)]
    assert admitted == 9 == 1000 // 104
    assert most <= 1000
    assert len(refused) == 64 - 9
    assert {(e.status, e.code) for e in refused} == {(429, "rate_limit_exceeded")}


async def test_what_was_not_written_is_given_back_so_the_whole_budget_can_be_used(wrap: Wrap) -> None:
    clock = Clock()
    respond = wrap(script([Text("9."), Usage(50, 6), Done("stop")]), clock, tokens_per_minute=200)
    for _ in range(10):  # 4 asked + 6 written = 10 tokens each; 100 + 104 > 200 only at the end
        await events_of(respond, ask("one two three four"))
    error = await refusal_of(respond, ask("one two three four"))
    assert error.retry_after_s == 60.0
    clock.now_s += 60.0
    await events_of(respond, ask("one two three four"))


async def test_the_wait_is_until_enough_has_passed_out_of_the_minute(wrap: Wrap) -> None:
    clock = Clock()
    respond = wrap(says("9."), clock, requests_per_minute=2)
    await events_of(respond)
    clock.now_s += 20.0
    await events_of(respond)
    error = await refusal_of(respond)
    assert error.retry_after_s == pytest.approx(40.0)
    clock.now_s += 39.9
    await refusal_of(respond)
    clock.now_s += 0.2
    await events_of(respond)


async def test_users_do_not_share_a_budget_but_variants_do() -> None:
    shared = kit()
    first, second = (limits.wrap(limits.Spec(requests_per_minute=1), says("9."), shared) for _ in range(2))
    await events_of(first, ask(user="edda"))
    await events_of(first, ask(user="odin"))
    assert (await refusal_of(second, ask(user="edda"))).status == 429


async def test_a_request_larger_than_the_whole_budget_is_told_so_and_not_to_wait(wrap: Wrap) -> None:
    error = await refusal_of(wrap(says("9."), tokens_per_minute=50), ask(max_tokens=100))
    assert (error.status, error.code, error.param, error.retry_after_s) == (
        400,
        "request_too_large",
        "max_tokens",
        None,
    )


async def test_breaking_off_is_no_way_around_the_budget(wrap: Wrap) -> None:
    respond = wrap(says("9.", "10."), tokens_per_minute=210)
    for _ in range(2):
        events = respond(ask("a b c d"))
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
    assert (await refusal_of(respond, ask("a b c d"))).status == 429


async def test_a_refused_request_and_a_failed_one_cost_no_tokens(wrap: Wrap) -> None:
    async def fails(turn: Turn) -> AsyncIterator[Event]:
        yield Text("x")
        raise KeyError("engine")

    refuses = script([Refusal("policy", "r", "why", "No."), Done("content_filter", by="policy")])
    for inner in (refuses, fails):
        respond = wrap(inner, tokens_per_minute=110)
        outcomes = [(await asyncio.gather(events_of(respond), return_exceptions=True))[0] for _ in range(5)]
        assert len(outcomes) == 5
        assert not any(isinstance(e, RequestError) for e in outcomes)  # 5 times 105 tokens would be too many


async def test_a_refused_answer_without_usage_is_charged_in_full(wrap: Wrap) -> None:
    respond = wrap(
        script([Refusal("policy", "r", "why", "No.", "output"), Done("content_filter")]),
        tokens_per_minute=110,
    )
    await events_of(respond)
    assert (await refusal_of(respond)).code == "rate_limit_exceeded"


async def test_more_turns_than_may_be_in_progress_are_refused_at_once(wrap: Wrap) -> None:
    decided, refused = asyncio.Event(), []

    async def inner(turn: Turn) -> AsyncIterator[Event]:
        await decided.wait()
        yield Text("9.")
        yield Done("stop")

    respond = wrap(inner, max_in_progress=3)

    async def one(user: str) -> None:
        try:
            await events_of(respond, ask(user=user))
        except RequestError as error:
            refused.append(error.status)
            if len(refused) == 7:
                decided.set()

    await asyncio.wait_for(asyncio.gather(*(one(str(i)) for i in range(10))), 60)
    assert refused == [429] * 7
    await asyncio.gather(*(events_of(respond, ask(user=str(i))) for i in range(3)))


async def test_the_tools_of_a_request_count_as_its_prompt() -> None:
    seen = []
    counting = kit(count_tokens=lambda messages, tools: seen.append((messages, tools)) or 5)
    await events_of(limits.wrap(limits.Spec(tokens_per_minute=200), says("9."), counting), ask())
    assert seen == [(ask().messages, ())]


async def test_without_limits_nothing_is_counted() -> None:
    uncountable = kit(count_tokens=lambda messages, tools: 1 / 0)
    assert (await events_of(limits.wrap(limits.Spec(), says("9."), uncountable)))[-1] == Done("stop")


steps = st.lists(
    st.tuples(st.sampled_from(["ask", "end", "wait"]), st.integers(1, 60), st.integers(0, 60)), max_size=60
)


@given(steps)
@settings(max_examples=200, deadline=None)
def test_in_no_minute_is_more_used_than_allowed(script: list[tuple[str, int, int]]) -> None:
    """Against a slow twin: every token used is written down with the time at which it was settled."""
    ledgers, now, running, used = Ledgers(5, 100, 3), 0.0, [], []
    asked: list[float] = []
    judged: list[tuple[bool, bool]] = []
    for what, amount, other in script:
        if what == "wait":
            now += amount / 2
        elif what == "end" and running:
            settle, reserved = running.pop(0)
            settle(other, now)
            settle(None, now)  # only the first call counts
            used.append((now, min(other, reserved)))
        elif what == "ask":
            in_window = sum(n for t, n in used if t > now - 60) + sum(r for _, r in running)
            recent = [t for t in asked if t > now - 60]
            room = len(running) < 3 and len(recent) < 5 and in_window + amount <= 100
            try:
                settle = ledgers.reserve("edda", amount, now)
                running.append((settle, amount))
                asked.append(now)
                admitted = True
            except LimitExceeded as full:
                admitted = full.retry_after_s <= 0
            judged.append((admitted, room))
    assert [admitted for admitted, _ in judged] == [room for _, room in judged]
    assert len(judged) == sum(what == "ask" for what, *_ in script)


def test_users_with_nothing_left_to_count_are_forgotten() -> None:
    ledgers = Ledgers(1, 100, None, sweep_users=100)
    for i in range(1000):
        ledgers.reserve(f"user {i}", 1, now=float(i))(1, float(i))
    assert ledgers.num_users <= 201
    with pytest.raises(LimitExceeded):
        ledgers.reserve("user 999", 1, now=999.0)


def test_a_user_whose_tokens_are_reserved_is_not_forgotten_however_long_the_turn_takes() -> None:
    ledgers = Ledgers(None, 100, None, sweep_users=2)
    settle = ledgers.reserve("edda", 100, now=0.0)
    for i in range(10):
        ledgers.reserve(f"user {i}", 1, now=100.0 + i)
    with pytest.raises(LimitExceeded):
        ledgers.reserve("edda", 1, now=120.0)
    settle(0, 121.0)
    ledgers.reserve("edda", 100, now=122.0)  # exactly what a minute has
    with pytest.raises(LimitExceeded) as full:
        ledgers.reserve("other", 101, now=122.0)
    assert full.value.what == "size"
