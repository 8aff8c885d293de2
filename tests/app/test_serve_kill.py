"""kill -9 under load: whatever a client was told is finished is in the database, whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import orjson

from demeanor.core.types import Done
from demeanor.stack.stack import Stack
from demeanor.store.database import Database
from demeanor.training.runs import Runs
from tests.app.running import ASK, served

CALLERS = 8


def test_no_acknowledged_record_is_lost_by_kill_9(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    acknowledged: list[tuple[str, str]] = []
    with served(trained[0].path, trained[1], tmp_path) as server:

        def ask(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=120) as client:
                for i in range(10_000):
                    asked = {
                        **ASK,
                        "messages": [
                            {"role": "user", "content": f"{number}, {i}: when does the ferry leave?"}
                        ],
                        "max_tokens": 6,
                    }
                    try:
                        acknowledged.append(plain(client, asked) if number % 2 else streamed(client, asked))
                    except (httpx.HTTPError, orjson.JSONDecodeError, Cut):
                        return

        asking = [threading.Thread(target=ask, args=(n,)) for n in range(CALLERS)]
        for thread in asking:
            thread.start()
        server.waits_for(lambda: len(acknowledged) > 100)
        time.sleep(0.3)
        server.process.kill()
        for thread in asking:
            thread.join(120)
    told = list(acknowledged)
    store = Database(tmp_path / "tiny.db")
    try:
        found = {stored.turn.id: stored for stored in store.turns(limit=100_000)}
        assert len(told) > 100
        assert [id for id, _ in told if id not in found] == []
        assert all(
            found[id].completion.text == text and isinstance(found[id].events[-1], Done) for id, text in told
        )
    finally:
        store.close()


class Cut(Exception):
    """The stream ended before it said that it was done."""


def plain(client: httpx.Client, asked: dict[str, object]) -> tuple[str, str]:
    answer = client.post("/v1/chat/completions", json=asked)
    return answer.json()["id"], answer.json()["choices"][0]["message"]["content"]


def streamed(client: httpx.Client, asked: dict[str, object]) -> tuple[str, str]:
    text, id, done = "", "", False
    with client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif data:
                chunk = orjson.loads(data)
                id, text = chunk["id"], text + (chunk["choices"][0]["delta"].get("content") or "")
    if not done:
        raise Cut
    return id, text
