"""What goes wrong is told in OpenAI's shape, what must not be told is not, and who leaves stops paying."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
import pytest
from scripted import Scripted, body

from demeanor.core.types import Decoding, Event, Text, Turn
from demeanor.server.addressing import host_name, is_loopback
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.server.middleware import RequestContextMiddleware
from demeanor.server.streaming import interleaved
from demeanor.store.keys import digest

STREAMED = [False, True]


async def asked(client: httpx.AsyncClient, text: str, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body(text, **fields))


def client_of(assistant: Scripted, host: str = "localhost", **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app(assistant, **options)), base_url=f"http://{host}"
    )


@pytest.mark.parametrize("stream", STREAMED)
async def test_an_unknown_model_is_a_404_with_near_names(client: httpx.AsyncClient, stream: bool) -> None:
    response = await asked(client, "x", model="harbor-desk", stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "Did you mean 'harbour-desk'?" in error["message"]
    assert "harbour-desk:dpo" in error["message"]
    assert (await client.get("/v1/models/nope")).status_code == 404


@pytest.mark.parametrize("stream", STREAMED)
async def test_a_conversation_that_the_template_cannot_write_is_a_400_on_its_message(
    client: httpx.AsyncClient, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    chat = await asked(client, "unwritable", stream=stream)
    items = {"model": "harbour-desk", "input": "unwritable", "stream": stream}
    for answer, param in (
        (chat, "messages[0].content"),
        (await client.post("/v1/responses", json=items), "input"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
        assert "template t: cannot write it" in error["message"]
    assert "unwritable" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("stream", STREAMED)
async def test_a_prompt_longer_than_the_context_is_a_400_even_when_streamed(
    client: httpx.AsyncClient, stream: bool
) -> None:
    response = await asked(client, "a novel", stream=stream)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "The prompt has 600 tokens; the context holds 512.",
        "param": "messages",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize("stream", STREAMED)
async def test_too_many_requests_say_when_to_come_back(client: httpx.AsyncClient, stream: bool) -> None:
    response = await asked(client, "too fast", stream=stream)
    assert (response.status_code, response.headers["retry-after"], response.headers["retry-after-ms"]) == (
        429,
        "1",
        "20",
    )
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("stream", STREAMED)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_failure_inside_is_a_500_with_an_id_that_the_log_explains(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    n: int,
) -> None:
    response = await asked(client, "crash", stream=stream, n=n)
    error = response.json()["error"]
    request_id = response.headers["x-request-id"]
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert request_id in error["message"]
    assert "hunter2" not in response.text
    assert "ZeroDivision" not in response.text
    record = next(r for r in caplog.records if request_id in r.getMessage())
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "ZeroDivisionError" in caplog.text, "its type"
    assert "in crash" in caplog.text, "and its place"
    assert "hunter2" not in str(record.exc_info[1]), "but not its message, which may hold what a client wrote"


@pytest.mark.parametrize("stream", STREAMED)
async def test_an_engine_that_cannot_answer_is_a_503_that_tells_no_address(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    response = await asked(client, "sunk", stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "10.0.0.9" not in response.text
    assert "10.0.0.9" in caplog.text


async def test_a_response_that_failed_halfway_is_not_begun_again() -> None:
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await RequestContextMiddleware(
        inner, hosts=None, operations=Operations(), observers=(), clock=time.monotonic
    )({"type": "http", "headers": []}, send, send)
    assert sent == ["http.response.start"]


@pytest.mark.parametrize(("text", "code"), [("crash later", "internal_error"), ("drain", "cancelled")])
async def test_a_failure_after_the_first_words_ends_the_stream_with_an_error_and_no_done(
    client: httpx.AsyncClient,
    text: str,
    code: str,
) -> None:
    response = await asked(client, text, stream=True)
    frames = response.text.split("\n\n")
    assert response.status_code == 200
    assert orjson.loads(frames[1][6:])["choices"][0]["delta"]["content"].startswith("Half")
    assert orjson.loads(frames[-2][6:])["error"]["code"] == code
    assert "[DONE]" not in response.text
    assert "hunter2" not in response.text


async def test_an_answer_cut_off_by_the_server_is_a_503_and_never_looks_finished(
    client: httpx.AsyncClient,
) -> None:
    response = await asked(client, "drain")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "cancelled")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/assistants", 404, "unknown_url"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/static/../app.py", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("POST", "/openapi.json", 405, "method_not_allowed"),
    ],
)
async def test_an_unknown_address_is_told_in_the_same_shape(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    status: int,
    code: str,
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_a_body_too_long_is_refused_declared_or_not(assistant: Scripted) -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b" " * 100

    async with client_of(assistant, max_body_bytes=1000) as client:
        said = await client.post(
            "/v1/chat/completions", content=b" " * 1001, headers={"content-type": "application/json"}
        )
        unsaid = await client.post(
            "/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}
        )
        fits = await client.post("/v1/chat/completions", json=body())
    assert [r.status_code for r in (said, unsaid, fits)] == [413, 413, 200]
    assert said.json()["error"]["code"] == "body_too_large"


async def test_a_body_that_any_web_page_may_post_is_refused(client: httpx.AsyncClient) -> None:
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = await client.post(
            "/v1/chat/completions", content=orjson.dumps(body()), headers={"content-type": media}
        )
        assert response.status_code == 415


@pytest.mark.parametrize("path", ["/", "/v1/models", "/nothing", "/static/chat.js", "/healthz"])
async def test_every_response_has_an_id_and_the_security_headers(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-request-id"].startswith("req_")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


# ---- keys and hosts ----


KEYS = from_digests({digest("sk-ann"): "ann", digest("sk-bob"): "bob"})


def test_only_digests_are_needed_to_check_a_key() -> None:
    assert (
        digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, B.1
    assert (KEYS("sk-ann"), KEYS("sk-bob"), KEYS("sk-eve"), KEYS(digest("sk-ann"))) == (
        "ann",
        "bob",
        None,
        None,
    )


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer sk-eve", "Basic sk-ann", "sk-ann"])
async def test_with_keys_a_request_without_a_good_one_is_a_401(
    assistant: Scripted, header: str | None
) -> None:
    async with client_of(assistant, keys=KEYS) as client:
        headers = {} if header is None else {"authorization": header}
        answers = [
            await client.post("/v1/chat/completions", json=body(), headers=headers),
            await client.get("/v1/models", headers=headers),
            await client.get("/v1/models/harbour-desk", headers=headers),
        ]
    assert [a.status_code for a in answers] == [401] * 3
    assert {a.json()["error"]["code"] for a in answers} == {"invalid_api_key"}
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert assistant.turns == []
    assert "sk-" not in answers[0].text


async def test_a_good_key_names_the_user(assistant: Scripted) -> None:
    async with client_of(assistant, "desk.example", keys=KEYS) as client:
        response = await client.post(
            "/v1/chat/completions", json=body(), headers={"authorization": "Bearer sk-bob"}
        )
        page = await client.get("/")
    assert (response.status_code, assistant.turns[0].user, page.status_code) == (200, "bob", 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8000", 200),
        ("desk.localhost", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.5", 421),
        ("desk.lan", 200),
    ],
)
async def test_without_keys_only_local_names_and_given_ones_are_answered(
    assistant: Scripted, host: str, status: int
) -> None:
    async with client_of(assistant, hosts=["desk.lan"]) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status


def test_host_names_lose_port_brackets_and_case() -> None:
    assert [host_name(h) for h in ("LocalHost:80", "[::1]:80", "a.b", "")] == ["localhost", "::1", "a.b", ""]
    assert not is_loopback("")
    assert is_loopback("127.8.8.8")


# ---- leaving ----


async def hang_up_after(assistant: Scripted, wait_s: float, **fields: Any) -> list[dict[str, Any]]:
    """Ask over raw ASGI, disconnect after `wait_s` seconds, and return what was sent."""
    sent: list[dict[str, Any]] = []
    content = orjson.dumps(body("forever", **fields))
    inbox = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await asyncio.sleep(wait_s)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "asgi": {"version": "3.0"},
        "root_path": "",
    }
    await asyncio.wait_for(app(assistant)(scope, receive, send), 5)
    return sent


@pytest.mark.parametrize("stream", STREAMED)
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_ends_all_its_turns_at_once(
    assistant: Scripted, stream: bool, n: int
) -> None:
    before = asyncio.all_tasks()
    sent = await hang_up_after(assistant, 0.1, stream=stream, n=n)
    assert (len(assistant.turns), assistant.closed) == (n, n)
    assert asyncio.all_tasks() == before
    assert (len(sent) > 0) == stream


@pytest.mark.parametrize("n", [1, 2])
async def test_closing_a_flow_closes_its_turns_before_it_returns(n: int) -> None:
    kept, closed = [], []

    async def respond(turn: Turn) -> AsyncGenerator[Event, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield Text("on")
        finally:
            closed.append(turn.id)

    def keeping(turn: Turn) -> AsyncGenerator[Event, None]:
        kept.append(respond(turn))
        return kept[-1]

    steps = interleaved(keeping, [Turn((), Decoding(), id=str(i)) for i in range(n)])
    assert (await anext(steps))[1] == Text("on")
    await steps.aclose()
    assert sorted(closed) == [str(i) for i in range(n)]


async def test_a_failing_choice_ends_its_siblings(client: httpx.AsyncClient, assistant: Scripted) -> None:
    async def mixed(turn: Any) -> Any:
        events = assistant._respond(turn)
        if turn.id.endswith("-1"):
            raise ZeroDivisionError
        async for event in events:
            yield event

    assistant.respond = lambda model_id: mixed  # type: ignore[method-assign]
    response = await asyncio.wait_for(asked(client, "forever", n=3), 5)
    assert response.status_code == 500
    assert assistant.closed == 2
