"""A misbehaving upstream before a served stack: what a client gets of it, whole and streamed, as a chat and as a response."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import UpstreamError
from demeanor.core.types import Decoding, Message, Turn, complete
from demeanor.engine import remote as remote_module
from demeanor.engine.remote import remote
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.request_context import charged
from demeanor.serving import ServedStack, StackVersions
from demeanor.training.runs import Runs
from tests.server.live import other_server

KEY = "far-secret-key-1234"


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def sse(*chunks: Any, done: bool = True) -> bytes:
    told = [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks]
    return b"".join(told) + (b"data: [DONE]\n\n" if done else b"")


def called(*calls: tuple[str, str, str]) -> dict[str, Any]:
    parts = [
        {"index": i, "id": id, "function": {"name": name, "arguments": text}}
        for i, (id, name, text) in enumerate(calls)
    ]
    return chunk({"tool_calls": parts})


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HELLO = [chunk({"content": "Hello"}), chunk({}, "stop")]
PLAIN = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": USAGE}
LEAKY = f"bad value at http://10.0.0.7:8000/v1?k=1 for Bearer {KEY}"
SCENARIOS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "ok": (200, sse(*HELLO, {"choices": [], "usage": USAGE}), {}),
    "plainjson": (200, json.dumps(PLAIN).encode(), {"content-type": "application/json"}),
    "nodone": (200, sse(*HELLO, done=False).rstrip(b"\n"), {}),
    "nousage": (200, sse(*HELLO), {}),
    "usagepartial": (200, sse(*HELLO, {"choices": [], "usage": {"total_tokens": 5}}), {}),
    "broken": (200, sse(HELLO[0], done=False), {}),
    "errmid": (200, sse(HELLO[0], {"error": {"message": "engine died", "code": 500}}), {}),
    "errfirst": (200, sse({"error": {"message": "queue full", "code": 429}}), {}),
    "s200err": (200, error("no such model", code=404), {}),
    "html": (200, b"<html>captive portal</html>", {"content-type": "text/html"}),
    "empty": (200, b"", {}),
    "redirect": (307, b"", {"location": "/elsewhere"}),
    "s400": (400, error("too long", code="context_length_exceeded", param="messages"), {}),
    "s422": (422, json.dumps({"detail": LEAKY}).encode(), {}),
    "s413": (413, b"too large", {}),
    "s401": (401, error(f"Incorrect API key provided: {KEY}", code="invalid_api_key"), {}),
    "s404": (404, error("no model m"), {}),
    "s429": (429, error("slow down"), {"retry-after-ms": "20"}),
    "s429late": (429, error("slow down"), {"retry-after": "120"}),
    "s500": (500, b"Internal Server Error", {}),
    "s503": (503, error("loading"), {"retry-after": "0.02"}),
    "s504": (504, b"gateway timeout", {}),
    "calls": (200, sse(called(("c", "get_weather", "{}"), ("c", "get_time", "{}")), chunk({}, "stop")), {}),
    "twice": (200, b"", {}),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    asked: list[tuple[str, dict[str, Any]]] = []
    left = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
            asked.append((name, body))
            status, sent, headers = SCENARIOS.get(name, (200, b"", {}))
            if name == "twice":  # the same id in both rounds
                first = len(body["messages"]) == 1
                tool = (
                    ("call_0", "calculator", '{"expression": "2 * 3"}')
                    if first
                    else ("call_0", "get_weather", "{}")
                )
                sent = sse(called(tool), chunk({}, "tool_calls", usage=USAGE))
            self.send_response(status)
            for key, value in ({"content-type": "text/event-stream"} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if name == "open":
                sent = sse(*HELLO)
            self.wfile.write(sent)
            self.wfile.flush()
            if name in ("pings", "drip", "open"):
                part = b": ping\n\n" if name != "drip" else sse(HELLO[0], done=False)
                while not left.wait(0.05):
                    try:
                        self.wfile.write(part)
                    except OSError:
                        return

        def log_message(self, *args: object) -> None:
            pass

    with other_server(Handler) as url:
        try:
            yield url, asked
        finally:
            left.set()


@pytest.fixture(scope="module")
def runtime(upstream: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackRuntime]:
    yield from opened(upstream[0], tmp_path_factory.mktemp("far"), timeout_s=20, total_s=60)


def opened(url: str, folder: Path, **limits: float) -> Iterator[StackRuntime]:
    base = {"kind": "remote", "url": url, "model": "m", "key_env": "FAR_KEY", "retries": 1, **limits}
    layers = [{"kind": "tools", "allow": ["calculator"]}]
    stack = {"name": "far", "weights": {"base": base}, "decoding": {"temperature": 0}, "layers": layers}
    (folder / "stack.yaml").write_text(yaml.safe_dump(stack))
    made = StackRuntime(load_stack(folder / "stack.yaml"), Runs(folder / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", KEY)
        patch.setattr(remote_module.random, "uniform", lambda low, high: 0.02)
        yield made
    made.close()


@pytest.fixture(scope="module")
def clients(runtime: StackRuntime) -> dict[str, TestClient]:
    return {"far": TestClient(app(ServedStack(runtime)), base_url="http://localhost")}


@pytest.fixture
def client(clients: dict[str, TestClient], upstream: tuple[str, list[Any]]) -> TestClient:
    upstream[1].clear()
    return clients["far"]


@pytest.fixture(scope="module")
def impatient(upstream: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    for made in opened(upstream[0], tmp_path_factory.mktemp("far"), timeout_s=1.0, total_s=2.0):
        yield TestClient(app(ServedStack(made)), base_url="http://localhost")


FUNCTIONS = [{"name": n, "parameters": {"type": "object"}} for n in ("get_weather", "get_time")]


def ask(client: TestClient, said: str, path: str, *, stream: bool = False, **more: Any) -> Any:
    if path == "chat/completions":
        tools = [{"type": "function", "function": f} for f in FUNCTIONS]
        body = {"messages": [{"role": "user", "content": said}], "tools": tools}
    else:
        body = {"input": said, "tools": [{"type": "function", **f} for f in FUNCTIONS]}
    return client.post(f"/v1/{path}", json={"model": "far", "stream": stream, **body, **more})


def streamed(text: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("name", ["ok", "plainjson", "nodone", "nousage", "usagepartial", "open"])
def test_an_answer_is_an_answer_however_it_is_sent(client: TestClient, name: str) -> None:
    told = {"ok": 5, "plainjson": 5}.get(name)
    chat = ask(client, name, "chat/completions").json()
    assert chat["choices"][0]["message"]["content"] == "Hello"
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert (chat["usage"] or {}).get("total_tokens") == told
    estimates = [e.get("estimated") for e in chat["demeanor"]["events"] if e["kind"] == "usage"]
    assert estimates == [None if told else True]
    answer = ask(client, name, "responses").json()
    assert answer["output"][0]["content"][0]["text"] == "Hello"
    assert (answer["usage"] or {}).get("total_tokens") == told
    sent = ask(client, name, "chat/completions", stream=True, stream_options={"include_usage": True}).text
    chunks = streamed(sent)
    assert "".join(c["delta"].get("content") or "" for x in chunks for c in x["choices"]) == "Hello"
    assert (chunks[-1]["usage"] or {}).get("total_tokens") == told
    assert sent.endswith("data: [DONE]\n\n")
    last = streamed(ask(client, name, "responses", stream=True).text)[-1]
    assert last["type"] == "response.completed"
    assert (last["response"]["usage"] or {}).get("total_tokens") == told


REFUSED = {
    "broken": (502, "upstream_error", 1),
    "errmid": (502, "upstream_error", 1),
    "errfirst": (429, "rate_limit_exceeded", 2),
    "s200err": (404, "upstream_model_not_found", 1),
    "html": (502, "upstream_error", 1),
    "empty": (502, "upstream_error", 2),
    "redirect": (502, "upstream_error", 1),
    "s400": (400, "context_length_exceeded", 1),
    "s422": (400, "upstream_invalid_request", 1),
    "s413": (400, "upstream_invalid_request", 1),
    "s401": (502, "upstream_authentication", 1),
    "s404": (404, "upstream_model_not_found", 1),
    "s429": (429, "rate_limit_exceeded", 2),
    "s429late": (429, "rate_limit_exceeded", 1),
    "s500": (502, "upstream_error", 2),
    "s503": (503, "upstream_unavailable", 2),
    "s504": (504, "upstream_timeout", 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_says_whose_fault_it_is_and_shows_no_secret(
    client: TestClient,
    upstream: tuple[str, list[tuple[str, Any]]],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, code, attempts = REFUSED[name]
    with caplog.at_level(logging.DEBUG):
        found = ask(client, name, "chat/completions")
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)
    assert Counter(n for n, _ in upstream[1])[name] == attempts
    assert "Traceback" not in caplog.text
    for text in (found.text, caplog.text):
        assert KEY not in text
    assert not any(place in found.text for place in ("10.0.0.7", "127.0.0.1", upstream[0]))
    if name.startswith("s429"):
        assert float(found.headers["retry-after-ms"]) == {"s429": 20, "s429late": 120_000}[name]
    if name in ("s400", "s429", "s404"):
        assert json.loads(SCENARIOS[name][1])["error"]["message"] in found.json()["error"]["message"]


@pytest.mark.parametrize("name", ["pings", "drip"])
def test_a_server_that_only_pings_or_never_ends_is_a_504(impatient: TestClient, name: str) -> None:
    found = ask(impatient, name, "chat/completions")
    assert (found.status_code, found.json()["error"]["code"]) == (504, "upstream_timeout")
    sent = ask(impatient, name, "responses", stream=True)
    assert sent.status_code == (504 if name == "pings" else 200)
    assert "upstream_timeout" in sent.text


@pytest.mark.parametrize("name", ["broken", "errmid"])
def test_an_error_after_the_first_words_ends_the_stream_with_its_code(client: TestClient, name: str) -> None:
    sent = ask(client, name, "chat/completions", stream=True)
    assert sent.status_code == 200
    assert streamed(sent.text)[-1]["error"]["code"] == REFUSED[name][1]
    assert "[DONE]" not in sent.text
    assert "Hello" in sent.text


@pytest.mark.parametrize("name", ["s400", "s429late", "s401", "errfirst"])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_an_error_before_the_first_words_of_a_stream_is_its_status(
    client: TestClient, name: str, path: str
) -> None:
    assert ask(client, name, path, stream=True).status_code == REFUSED[name][0]


def test_pings_are_no_answer_and_parts_of_one_are_not_for_ever(upstream: tuple[str, Any]) -> None:
    turns = [Turn((Message("user", name),), Decoding()) for name in ("pings", "drip")]
    for turn, wanted, limit in zip(turns, (1.0, 2.0), ("timeout_s", "total_s"), strict=True):
        model, started = remote(upstream[0], "m", timeout_s=1.0, total_s=2.0, retries=3), time.monotonic()
        with pytest.raises(UpstreamError, match=r"silent for 1 s|not ready after 2 s") as error:
            asyncio.run(complete(model, turn))
        assert limit in str(error.value.public)
        assert wanted <= time.monotonic() - started < wanted + 2


@pytest.mark.parametrize(("name", "spent"), [("ok", 5), ("nousage", 7 + 2), ("s400", 0)])
async def test_a_budget_pays_the_usage_or_its_estimate(
    upstream: tuple[str, Any], name: str, spent: int
) -> None:
    told: list[int] = []

    class Budget:
        async def reserve(self, tokens: int) -> str:
            return "today"

        async def settle(self, day: str, reserved: int, used: int) -> None:
            told.append(used)

    model = charged(remote(upstream[0], "m", timeout_s=20), lambda turn: 1000, Budget)  # type: ignore[arg-type]
    turn = Turn((Message("user", name),), Decoding())
    with suppress(UpstreamError):
        await complete(model, turn)
    assert told == [spent]


def test_calls_of_one_id_reach_the_client_as_two(client: TestClient) -> None:
    message = ask(client, "calls", "chat/completions").json()["choices"][0]["message"]
    assert [c["function"]["name"] for c in message["tool_calls"]] == ["get_weather", "get_time"]
    assert len({c["id"] for c in message["tool_calls"]}) == 2


def test_a_server_that_gives_one_id_in_each_round_does_not_hide_the_clients_call(client: TestClient) -> None:
    choice = ask(client, "twice", "chat/completions").json()["choices"][0]
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["get_weather"]
    assert choice["finish_reason"] == "tool_calls"


def test_what_the_client_says_of_its_tools_and_schema_goes_upstream_unchanged(
    client: TestClient, upstream: tuple[str, list[tuple[str, Any]]]
) -> None:
    schema = {"name": "ferry", "description": "When?", "strict": False, "schema": {"type": "object"}}
    tool = {"name": "f", "description": "adds", "strict": True, "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": tool}]
    form = {"type": "json_schema", "json_schema": schema}
    ask(client, "ok", "chat/completions", tools=tools, response_format=form)
    sent = upstream[1][-1][1]
    assert sent["response_format"] == form
    assert sent["tools"][-1] == tools[0]
    text = {"format": {"type": "json_schema", **schema}}
    ask(client, "ok", "responses", text=text, tools=[{"type": "function", **tool}])
    assert upstream[1][-1][1]["response_format"] == form


def test_log_probabilities_that_the_server_does_not_send_are_a_400_on_the_field(client: TestClient) -> None:
    found = ask(client, "ok", "chat/completions", logprobs=True)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "logprobs")


def test_readiness_tells_whether_the_server_behind_it_answers(
    runtime: StackRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "HEALTH_KEPT_S", 0.0)
    versions = StackVersions(lambda: runtime.stack, runtime.runs)
    versions.living.append(runtime)
    ready = TestClient(
        app(ServedStack(runtime), operations=Operations(health=versions.health)), base_url="http://localhost"
    )
    assert ready.get("/readyz").json()["status"] == "ready"
    model = runtime.remote(runtime.stack.spec.weights.base)  # type: ignore[arg-type]
    monkeypatch.setattr(model, "address", model.address.copy_with(port=9))
    found = ready.get("/readyz")
    assert (found.status_code, found.json()["status"]) == (503, "failed")
    assert "does not answer" in found.json()["reason"]
    assert "127.0.0.1" not in found.text
    assert ready.get("/healthz").status_code == 200
