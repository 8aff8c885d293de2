"""What an operator sets is kept: ids, deadlines, bounded queues, CORS, sizes; and what is going on can be read."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from live import served
from scripted import Scripted, body

from demeanor.server import json_logs
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.store.keys import digest
from tests.conftest import eventually

ASKS = "/v1/chat/completions"


def client_of(assistant: Scripted, operations: Operations | None = None, **options: Any) -> httpx.AsyncClient:
    made = app(assistant, operations=operations or Operations(), **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://localhost")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("job-7:a.b_c", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False), ("é", False)],
)
async def test_a_sane_request_id_is_kept_and_another_is_made(given: str, kept: bool) -> None:
    async with client_of(Scripted()) as client:
        answer = await client.post(ASKS, json=body(), headers={"x-request-id": given.encode()})  # type: ignore[dict-item]
    shown = answer.headers["x-request-id"]
    assert (shown == given) is kept
    assert kept or shown.startswith("req_")


async def test_two_requests_with_one_id_are_two_completions() -> None:
    async with client_of(Scripted()) as client:
        made = [
            (await client.post(ASKS, json=body(), headers={"x-request-id": "same"})).json()["id"]
            for _ in range(2)
        ]
    assert made[0] != made[1]


async def test_milliseconds_per_layer_and_the_stack_key_are_headers_of_a_whole_answer() -> None:
    async with client_of(Scripted()) as client:
        answer = await client.post(ASKS, json=body("ferry"))
    assert (
        answer.headers["server-timing"]
        == "retrieval;dur=0.610, weights;dur=36.400, policy;dur=0.180, prompt;dur=0.030"
    )
    assert (
        answer.headers["x-demeanor-layers"] == "retrieval=0.610, weights=36.400, policy=0.180, prompt=0.030"
    )
    assert answer.headers["x-demeanor-stack"] == "5f0c9a1be47d"


async def test_at_its_deadline_a_request_is_a_504_and_its_turn_is_closed() -> None:
    assistant, run = Scripted(), Operations(deadline_s=0.05)
    async with client_of(assistant, run) as client:
        late = await client.post(ASKS, json=body("forever"), timeout=httpx.Timeout(60, read=0.3))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert (assistant.closed, run.load.in_progress, run.load.turns) == (1, 0, 0)
        assert (await client.post(ASKS, json=body("hello"))).status_code == 200


async def test_in_a_stream_the_deadline_is_the_last_event() -> None:
    assistant, run = Scripted(), Operations(deadline_s=0.5)
    async with client_of(assistant, run) as client:
        late = await client.post(ASKS, json=body("forever", stream=True))
    frames = late.text.strip().split("\n\n")
    assert late.status_code == 200
    assert json.loads(frames[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert len(frames) > 1
    assert (assistant.closed, run.load.in_progress, run.load.turns) == (1, 0, 0)


async def test_more_than_may_wait_are_told_at_once_to_come_back() -> None:
    assistant, run = Scripted(pause_s=0.1), Operations(slots=2, max_waiting=1)
    async with client_of(assistant, run) as client:
        answers = await asyncio.gather(*[client.post(ASKS, json=body()) for _ in range(8)])
        refused = [a for a in answers if a.status_code != 200]
        assert [a.status_code for a in answers].count(200) == 3
        assert {(a.status_code, a.json()["error"]["code"], a.headers["retry-after"]) for a in refused} == {
            (429, "server_busy", "1")
        }
        assert len(assistant.turns) == 3, "the others cost no work"
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post(ASKS, json=body())).status_code == 200


async def test_answers_that_wait_in_the_engines_count_too() -> None:
    waiting = [3]
    run = Operations(slots=2, max_waiting=3, engine_load=lambda: (2, waiting[0]))
    async with client_of(Scripted(), run) as client:
        assert (await client.post(ASKS, json=body())).status_code == 200
        waiting[0] = 4
        assert (await client.post(ASKS, json=body())).json()["error"]["code"] == "server_busy"


async def test_a_body_that_is_too_long_is_a_413() -> None:
    async with client_of(Scripted(), max_body_bytes=1000) as client:
        assert (await client.post(ASKS, json=body("x" * 1000))).status_code == 413
        assert (await client.post(ASKS, json=body("x" * 100))).status_code == 200


async def test_cors_is_off_unless_an_origin_is_named_and_then_for_that_one_only() -> None:
    ask = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    keys = from_digests({digest("k"): "edda"})
    for origins, origin, allowed in (
        ((), "https://a.example", None),
        (("https://a.example",), "https://a.example", "https://a.example"),
        (("https://a.example",), "https://b.example", None),
    ):
        async with client_of(Scripted(), Operations(cors=origins), keys=keys) as client:
            before = await client.options(ASKS, headers={"origin": origin, **ask})
            assert before.headers.get("access-control-allow-origin") == allowed
            assert (before.status_code == 200) is (allowed is not None)
            refused = await client.post(ASKS, json=body(), headers={"origin": origin})
            assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (
                401,
                allowed,
            ), "a page can read its error"


async def test_readiness_ends_before_life_does() -> None:
    draining: list[bool] = []
    async with client_of(Scripted(), Operations(ready=lambda: not draining)) as client:
        assert ((await client.get("/readyz")).status_code, (await client.get("/healthz")).status_code) == (
            200,
            200,
        )
        draining.append(True)
        gone = await client.get("/readyz")
        assert ((gone.status_code, gone.json()["status"]), (await client.get("/healthz")).status_code) == (
            (503, "draining"),
            200,
        )


async def test_a_log_line_tells_what_it_cost_and_nothing_that_was_said() -> None:
    stream = io.StringIO()
    run = Operations(observers=(json_logs.to(stream, lambda: datetime(2026, 11, 23, tzinfo=UTC)),))
    async with client_of(Scripted(), run, keys=from_digests({digest("hunter2"): "edda"})) as client:
        await client.post(
            ASKS,
            json=body("Tell me the card number", user="secret-user"),
            headers={"authorization": "Bearer hunter2", "x-request-id": "job-1"},
        )
        await client.post(ASKS, json=body("crash"), headers={"authorization": "Bearer wrong-hunter3"})
    answered, refused = map(json.loads, stream.getvalue().splitlines())
    assert {
        k: answered[k]
        for k in ("request_id", "route", "status", "model", "stack_key", "refusals", "layers_ms", "time")
    } == {
        "request_id": "job-1",
        "route": ASKS,
        "status": 200,
        "model": "harbour-desk",
        "stack_key": "5f0c9a1be47d",
        "refusals": [{"by": "policy", "rule": "no-card-numbers"}],
        "layers_ms": {"policy": 0.21},
        "time": "2026-11-23T00:00:00.000+00:00",
    }
    assert (refused["status"], "model" in refused) == (401, False)
    assert not [
        word
        for word in ("hunter2", "hunter3", "card number", "secret-user", "cannot share")
        if word in stream.getvalue()
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_slot(stream: bool) -> None:
    seen: list[int] = []
    assistant, run = Scripted(), Operations(observers=(lambda call: seen.append(call.status),))
    with served(assistant, operations=run) as url, httpx.Client(base_url=url, timeout=60) as client:
        if stream:
            with client.stream("POST", ASKS, json=body("forever", stream=True)) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(ASKS, json=body("forever"), timeout=httpx.Timeout(60, read=0.3))
        assert eventually(lambda: (run.load.in_progress, run.load.turns, assistant.closed) == (0, 0, 1))
        assert eventually(lambda: bool(seen))
        assert seen == [200 if stream else 499], "a stream has begun with its status"
        assert client.post(ASKS, json=body("hello")).status_code == 200


async def test_an_observer_that_fails_does_not_fail_the_request() -> None:
    def broken(call: object) -> None:
        raise OSError("disk full")

    seen: list[object] = []
    async with client_of(Scripted(), Operations(observers=(broken, seen.append))) as client:
        assert (await client.post(ASKS, json=body())).status_code == 200
    assert len(seen) == 1


async def test_readiness_tells_of_a_failed_engine_and_liveness_does_not() -> None:
    why: list[str | None] = [None]

    async def health() -> str | None:
        return why[0]

    run = Operations(health=health)
    async with client_of(Scripted(), run) as client:
        assert (await client.get("/readyz")).json()["status"] == "ready"
        why[0] = "sft: the decode loop stopped: RuntimeError: no memory"
        failed = await client.get("/readyz")
        assert failed.status_code == 503
        assert failed.json() | {"stack_key": ""} == {
            "status": "failed",
            "name": failed.json()["name"],
            "stack_key": "",
            "reason": why[0],
        }
        assert (await client.get("/healthz")).status_code == 200
