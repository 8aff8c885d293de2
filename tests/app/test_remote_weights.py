"""A stack whose weights are on another server: its layers work in front of it, it is measured like any other, and nothing trains."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import CheckpointError, SpecError, UsageError
from demeanor.core.types import Message, Prompted, Turn, complete
from demeanor.engine.adaptive_concurrency import FIRST
from demeanor.stack.stack import decoding_of
from demeanor.training.runs import Runs
from tests.server.live import other_server

RULES = {
    "rules": [
        {
            "name": "pins",
            "on": "input",
            "pattern": "\\bPIN\\b",
            "action": "refuse",
            "reason": "a PIN",
            "reply": "I cannot help with that.",
        }
    ]
}


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(
                {
                    "key": self.headers["authorization"],
                    **json.loads(self.rfile.read(int(self.headers["content-length"]))),
                }
            )
            self.send_response(200)
            self.end_headers()
            for chunk in (
                {
                    "choices": [
                        {"index": 0, "delta": {"content": f"answer {len(asked)}"}, "finish_reason": "stop"}
                    ]
                },
                {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
            ):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", asked
        http.shutdown()
        thread.join()


def write(folder: Path, url: str, **base: Any) -> Path:
    (folder / "policy.yaml").write_text(yaml.safe_dump(RULES))
    stack = {
        "name": "away",
        "weights": {"base": {"kind": "remote", "url": url, "model": "big", **base}},
        "decoding": {"temperature": 0, "max_tokens": 9},
        "layers": [{"kind": "policy"}, {"kind": "prompt", "text": "Be brief."}],
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(stack))
    return folder / "stack.yaml"


def test_layers_work_in_front_of_a_model_that_is_elsewhere(
    server: tuple[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setenv("BIG_KEY", "secret")
    stack = load_stack(write(tmp_path, url, key_env="BIG_KEY"))
    runtime = StackRuntime(stack, Runs(tmp_path / "runs"))

    def ask(text: str) -> Any:
        return asyncio.run(
            complete(runtime.respond(stack), Turn((Message("user", text),), decoding_of(stack)))
        )

    said, refused = ask("When does the ferry leave?"), ask("What is the PIN?")
    runtime.close()
    assert (said.text, said.completion_tokens) == ("answer 1", 2)
    assert any(isinstance(e, Prompted) for e in said.events)
    assert [m["role"] for m in asked[0]["messages"]] == ["system", "user"]
    assert (asked[0]["model"], asked[0]["key"], asked[0]["max_tokens"]) == ("big", "Bearer secret", 9)
    assert refused.refusal is not None
    assert len(asked) == 1, "a refused question never reaches the server"


def test_another_model_is_another_stack_and_a_key_is_not(tmp_path: Path) -> None:
    keys = [
        load_stack(write(tmp_path, "http://127.0.0.1:9/v1", **more)).key()
        for more in ({}, {"key_env": "A", "timeout_s": 5}, {"model": "other"})
    ]
    assert keys[0] == keys[1] != keys[2]


def test_what_cannot_be_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    stack = load_stack(path)
    runtime = StackRuntime(stack, Runs(tmp_path / "runs"))
    with pytest.raises(UsageError, match="NO_SUCH_KEY is not set"):
        runtime.respond(stack)
    with pytest.raises(CheckpointError, match="on another server"):
        runtime.weights("base")
    raw = yaml.safe_load(path.read_text())
    raw["weights"]["stages"] = [{"name": "sft", "objective": "sft", "data": "rows.jsonl"}]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SpecError, match="on another server: nothing can be trained"):
        load_stack(path)
    for url in ("ftp://x/v1", "http://user:secret@x/v1"):
        with pytest.raises(SpecError, match="url"):
            load_stack(write(tmp_path, url))


def test_a_template_that_the_other_server_would_not_use_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "http://127.0.0.1:9/v1")
    path.write_text(path.read_text() + "template: chatml\n")
    with pytest.raises(SpecError, match=r"stack.yaml: template: 'big' is on another server"):
        load_stack(path)


async def test_an_evaluation_asks_few_questions_at_once_until_the_server_has_answered(
    tmp_path: Path,
) -> None:
    inside, go = threading.Semaphore(0), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            inside.release()
            assert go.wait(60)
            self.send_response(200)
            self.end_headers()
            chunk = {"choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def log_message(self, *args: object) -> None:
            pass

    with other_server(Handler) as url:
        stack = load_stack(write(tmp_path, url))
        runtime = StackRuntime(stack, Runs(tmp_path / "runs"), operational=False)
        respond = runtime.respond(stack)
        turns = [Turn((Message("user", f"{n}?"),), decoding_of(stack)) for n in range(12)]
        answers = asyncio.gather(*(complete(respond, turn) for turn in turns))
        for _ in range(FIRST):
            assert await asyncio.to_thread(inside.acquire, timeout=60)
        assert not inside.acquire(blocking=False), "the others wait here"
        go.set()
        assert [answer.text for answer in await answers] == ["Yes"] * 12
        runtime.close()
