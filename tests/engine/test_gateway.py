"""Several scripted upstreams on 127.0.0.1 behind one gateway: who is asked, in which order, and what a caller sees."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from pydantic import ValidationError

from demeanor.core.errors import UpstreamError, UsageError
from demeanor.core.types import Decoding, Done, Message, Text, Turn, Upstream, Usage, complete
from demeanor.engine.gateway import Circuit, Gateway, RetryBudget, model_of
from demeanor.stack.schema import Breaker, Fallback, Remote
from tests.server.live import other_server

TURN = Turn((Message("user", "Who is the harbour master?"),), Decoding(temperature=0))


@dataclass
class Scripted:
    """An upstream that does what its plan says, one step per request; after its end it answers."""

    plan: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if script.plan[:1] != ["away"] else 503)
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                script.asked.append(body)
                step = script.plan.pop(0) if script.plan else "ok"
                if isinstance(step, tuple):
                    status, headers = step
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.end_headers()
                if step == "silent":
                    time.sleep(1.5)
                    return
                self._part({"choices": [{"index": 0, "delta": {"content": body["model"]}}]})
                if step == "breaks":
                    return
                self._part({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self._part({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})

            def _part(self, chunk: dict[str, Any]) -> None:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


Servers = Callable[..., list[Scripted]]


@pytest.fixture
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:

        def start(*plans: Sequence[Any]) -> list[Scripted]:
            started = [Scripted(list(plan)) for plan in plans]
            for each in started:
                each.url = stack.enter_context(other_server(each.handler()))
            return started

        yield start


def remote_of(servers: Sequence[Scripted], **settings: Any) -> Remote:
    first, *rest = servers
    fallbacks = [Fallback(url=each.url, model=f"m{i}") for i, each in enumerate(rest, 1)]
    return Remote(url=first.url, model="m0", fallbacks=tuple(fallbacks), **{"retries": 0, **settings})


def gateway(servers: Sequence[Scripted], **settings: Any) -> Gateway:
    found = model_of(remote_of(servers, **settings))
    assert isinstance(found, Gateway)
    return found


async def test_the_first_upstream_answers_and_the_answer_says_so(servers: Servers) -> None:
    two = servers([], [])
    events = [event async for event in gateway(two)(TURN)]
    assert events == [Upstream("m0"), Text("m0"), Usage(9, 2), Done("stop")]
    assert len(two[1].asked) == 0


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503])
async def test_a_failure_before_the_first_event_is_answered_by_the_next_with_its_own_model_id(
    servers: Servers, status: int
) -> None:
    two = servers([(status, {})], [])
    done = await complete(gateway(two), TURN)
    told = [event for event in done.events if isinstance(event, Upstream)]
    seen = {401: 502, 500: 502}.get(status, status)
    assert (done.text, told) == ("m1", [Upstream("m1", (("m0", seen),))])
    assert two[1].asked[0]["model"] == "m1"


async def test_a_request_that_is_wrong_in_itself_is_not_asked_elsewhere(servers: Servers) -> None:
    two = servers([(400, {})], [])
    with pytest.raises(UpstreamError) as caught:
        await complete(gateway(two), TURN)
    assert (caught.value.status, len(two[1].asked)) == (400, 0)


async def test_an_answer_that_breaks_off_after_its_first_text_is_never_asked_again(servers: Servers) -> None:
    two = servers(["breaks"], [])
    seen: list[object] = []

    async def read() -> None:
        async for event in gateway(two, retries=3)(TURN):
            seen.append(event)

    with pytest.raises(UpstreamError, match="broke off"):
        await read()
    assert seen == [Upstream("m0"), Text("m0")]
    assert (len(two[0].asked), len(two[1].asked)) == (1, 0)


async def test_a_silent_upstream_is_left_after_first_s_and_not_asked_again(servers: Servers) -> None:
    two = servers(["silent"], [(503, {}), (503, {})])
    started = time.monotonic()
    with pytest.raises(UpstreamError, match=r"m0: .*silent for 0.2 s.*m1: "):
        await complete(gateway(two, first_s=0.2, retries=1), TURN)
    assert (len(two[0].asked), len(two[1].asked)) == (1, 2)
    assert time.monotonic() - started < 1.5 + 10  # one silence, and one pause


async def test_all_attempts_together_take_total_s(servers: Servers) -> None:
    two = servers(["silent", "silent"], ["silent", "silent"])
    with pytest.raises(UpstreamError, match=r"the time is up \(total_s\)") as caught:
        await complete(gateway(two, first_s=0.3, total_s=0.4, retries=5), TURN)
    assert caught.value.status == 504
    assert max(len(server.asked) for server in two) <= 1


@pytest.mark.parametrize(
    ("plans", "want"),
    [
        ([(503, {}), (429, {"retry-after": "77"})], (429, 77)),
        ([(429, {"retry-after": "77"}), (503, {})], (503, None)),
        ([(500, {}), (500, {})], (502, None)),
        ([(401, {}), (404, {})], (404, None)),
    ],
)
async def test_when_all_fail_the_last_failure_keeps_its_status_and_all_are_told(
    servers: Servers, plans: list[Any], want: tuple[int, int | None]
) -> None:
    two = servers(*([plan] for plan in plans))
    with pytest.raises(UpstreamError, match=r"no upstream answered: m0: .*; m1: ") as caught:
        await complete(gateway(two), TURN)
    wait_s = caught.value.retry_after_s
    if plans[0][0] == 503:  # m0 may be asked at once
        assert (caught.value.status, wait_s) == (429, 77.0)
    else:
        assert (caught.value.status, wait_s) == want


async def test_an_upstream_that_names_a_time_is_not_asked_before_it_by_any_request(servers: Servers) -> None:
    two = servers([(429, {"retry-after": "60"})], [])
    model = gateway(two)
    answers = [(await complete(model, TURN)).text for _ in range(3)]
    assert answers == ["m1"] * 3
    assert len(two[0].asked) == 1
    last = [event async for event in model(TURN)]
    assert last[0] == Upstream("m1", (), ("m0",))
    assert [model.counts["m0", outcome] for outcome in ("busy", "skipped")] == [1, 3]


async def test_after_a_short_retry_after_another_round_is_asked(servers: Servers) -> None:
    two = servers([(429, {"retry-after-ms": "10"})], [(503, {}), (503, {})])
    done = await complete(gateway(two, retries=1), TURN)
    assert done.text == "m0"
    assert next(e for e in done.events if isinstance(e, Upstream)).tried == (("m0", 429), ("m1", 503))


async def test_a_circuit_opens_after_failures_in_a_row_and_one_probe_closes_it(servers: Servers) -> None:
    two = servers([(503, {})] * 3, [])
    now = [0.0]
    found = model_of(remote_of(two, breaker=Breaker(failures=2, open_s=10)), clock=lambda: now[0])
    assert isinstance(found, Gateway)
    for _ in range(4):
        assert (await complete(found, TURN)).text == "m1"
    assert (len(two[0].asked), found.circuits()) == (2, {"m0": "open", "m1": "closed"})
    now[0] = 10.0
    assert found.circuits()["m0"] == "half-open"
    await complete(found, TURN)  # the probe fails: open again
    assert (len(two[0].asked), found.circuits()["m0"]) == (3, "open")
    now[0] = 20.0
    assert (await complete(found, TURN)).text == "m0"
    assert found.circuits()["m0"] == "closed"


def test_a_half_open_circuit_lets_one_request_through_and_a_client_that_leaves_is_no_verdict() -> None:
    now = [0.0]
    circuit = Circuit(Breaker(failures=1, open_s=5), lambda: now[0])
    circuit.fail()
    now[0] = 5.0
    assert [circuit.enter(), circuit.enter()] == [True, False]
    circuit.leave()
    assert [circuit.enter(), circuit.enter()] == [True, False]


def test_failures_are_counted_in_a_row_so_a_success_begins_anew() -> None:
    circuit = Circuit(Breaker(failures=2, open_s=5), lambda: 0.0)
    for _ in range(3):
        circuit.fail()
        circuit.succeed()
    circuit.fail()
    assert circuit.state == "closed"


async def test_a_reader_who_leaves_frees_the_probe(servers: Servers) -> None:
    two = servers([(503, {})], [])
    now = [0.0]
    found = model_of(remote_of(two, breaker=Breaker(failures=1, open_s=5)), clock=lambda: now[0])
    assert isinstance(found, Gateway)
    await complete(found, TURN)
    now[0] = 5.0
    async with aclosing(found(TURN)) as events:
        assert await anext(events) == Upstream("m0")
    assert not found.members[0].circuit.probing


async def test_with_every_circuit_open_a_request_fails_at_once_and_says_when_to_come_back(
    servers: Servers,
) -> None:
    two = servers([(503, {})] * 2, [(503, {})] * 2)
    model = gateway(two, breaker=Breaker(failures=1, open_s=60), retries=3)
    with pytest.raises(UpstreamError):
        await complete(model, TURN)
    with pytest.raises(UpstreamError, match="left alone") as caught:
        await complete(model, TURN)
    assert caught.value.status == 503
    assert 0 < (caught.value.retry_after_s or 0) <= 60
    assert (len(two[0].asked), len(two[1].asked)) == (1, 1)


async def test_a_retry_budget_ends_the_tries(servers: Servers) -> None:
    two = servers([(503, {})] * 40, [])
    model = gateway(two, retry_budget=0.0, breaker=Breaker(failures=100))
    answers = [(await complete(model, TURN)).text for _ in range(10)]
    assert answers == ["m1"] * 10
    with pytest.raises(UpstreamError, match="no retry is left in retry_budget"):
        await complete(model, TURN)


def test_a_retry_budget_is_refilled_by_requests() -> None:
    budget = RetryBudget(0.5, left=0.0)
    assert not budget.withdraw()
    budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()


async def test_weights_decide_who_is_asked_first(servers: Servers) -> None:
    three = servers([], [], [])
    base = remote_of(three)
    others = tuple(x.model_copy(update={"weight": w}) for x, w in zip(base.fallbacks or (), (2.0, 7.0)))
    model = model_of(base.model_copy(update={"fallbacks": others, "weight": 1.0}))
    assert isinstance(model, Gateway)
    points = iter([0.05, 0.0, 0.0, 0.15, 0.0, 0.0, 0.95, 0.5, 0.0])
    model.draw = lambda: next(points)
    assert [[m.name for m in model.ordered()] for _ in range(3)] == [
        ["m0", "m1", "m2"],
        ["m1", "m0", "m2"],
        ["m2", "m1", "m0"],
    ]


async def test_many_at_once_open_one_circuit_and_every_caller_is_answered(servers: Servers) -> None:
    two = servers([(503, {})] * 40, [])
    model = gateway(two)
    done = await asyncio.gather(
        *(complete(model, TURN) for _ in range(4))
    )  # the stand-in queues 5 connections
    assert [d.text for d in done] == ["m1"] * 4
    assert model.circuits()["m0"] == "open"


async def test_it_is_healthy_while_one_upstream_is(servers: Servers) -> None:
    assert await gateway(servers(["away"], [])).health() is None
    told = await gateway(servers(["away"], ["away"])).health()
    assert [name in (told or "") for name in ("m0: ", "m1: ")] == [True, True]


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"weight": 1.0}, "weight is for a base with fallbacks"),
        ({"breaker": {}}, "breaker is for a base with fallbacks"),
        ({"fallbacks": [{"url": "http://b/v1", "model": "m"}]}, "two upstreams are called 'm'"),
        ({"weight": 1, "fallbacks": [{"url": "http://b/v1", "model": "n"}]}, "some upstreams have a weight"),
        ({"fallbacks": []}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], want: str) -> None:
    with pytest.raises(ValidationError, match=want):
        Remote.model_validate({"url": "http://a/v1", "model": "m", **fields})


def test_a_missing_key_names_the_fallback_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARE_KEY", raising=False)
    spare = Fallback(url="http://b/v1", model="n", key_env="SPARE_KEY")
    with pytest.raises(UsageError, match=r"weights.base.fallbacks\[0\].key_env: .*SPARE_KEY"):
        model_of(Remote(url="http://a/v1", model="m", fallbacks=(spare,)))
