"""Responses kept by a real stack: what GET shows is what the client was told; and vectors over HTTP against the weights themselves."""

from __future__ import annotations

import asyncio
import base64
import shutil
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime, load_stack
from demeanor.model import checkpoints
from demeanor.model.tensors import Segment
from demeanor.server.application import app
from demeanor.server.auth import KeyRing, from_digests
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
from demeanor.store import keys, turn_lines
from demeanor.store.database import Database
from demeanor.store.keys import digest
from demeanor.training.runs import Runs


def test_a_real_stack_keeps_a_response_and_goes_on_from_it(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(StackRuntime(*trained)) as runtime:
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        first = client.post(
            "/v1/responses", json={"model": "tiny-desk", "input": "When does the ferry leave?"}
        ).json()
        assert first["store"] is True
        again = client.get(f"/v1/responses/{first['id']}").json()
        assert {k: again[k] for k in ("output", "usage", "status", "model")} == {
            k: first[k] for k in ("output", "usage", "status", "model")
        }
        second = client.post(
            "/v1/responses",
            json={"model": "tiny-desk:dpo", "input": "And then?", "previous_response_id": first["id"]},
        ).json()
        chat = client.post(
            "/v1/chat/completions",
            json={
                "model": "tiny-desk:dpo",
                "messages": [
                    {"role": "user", "content": "When does the ferry leave?"},
                    {"role": "assistant", "content": first["output"][0]["content"][0]["text"]},
                    {"role": "user", "content": "And then?"},
                ],
            },
        ).json()
        assert second["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"], (
            "the same conversation, greedily"
        )
        assert second["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
        items = client.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
        assert [item["content"][0]["text"] for item in items] == ["And then?"], (
            "the system prompt of an inner layer is nobody's to read"
        )


def test_a_record_inside_of_what_changes_answers_is_read_by_nobody(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    record, limits, policy, *rest = stack.layers
    with closing(StackRuntime(replace(stack, layers=(limits, record, policy, *rest)), runs)) as runtime:
        assert ServedStack(runtime).turn_store() is not None, "limits change no answer"
    with closing(StackRuntime(replace(stack, layers=(policy, record, limits, *rest)), runs)) as runtime:
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        asked = {"model": "tiny-desk", "input": "Hello"}
        assert client.post("/v1/responses", json=asked).json()["store"] is False
        refused = client.post("/v1/responses", json=asked | {"store": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_record_layer")


def test_vectors_over_http_are_the_mean_of_the_weights_states(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(StackRuntime(*trained)) as runtime:
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        tokens = runtime.weights("dpo").tokenizer.encode("The ferry to Jorpel leaves at 17.")
        model = checkpoints.load(trained[1].model(trained[0].stage_key("dpo")))
        with torch.no_grad():
            mean_D = model.hidden(
                torch.tensor(tokens), torch.arange(len(tokens)), (Segment(0, len(tokens)),)
            ).mean(0)
        asked = {
            "model": "tiny-desk:dpo",
            "input": [list(tokens), list(tokens[:3])],
            "encoding_format": "base64",
        }
        answer = client.post("/v1/embeddings", json=asked).json()
        vector = struct.unpack(f"<{len(mean_D)}f", base64.b64decode(answer["data"][0]["embedding"]))
        assert vector == pytest.approx((mean_D / mean_D.norm()).tolist(), abs=1e-5)
        assert answer["usage"]["prompt_tokens"] == len(tokens) + 3
        refused = client.post("/v1/embeddings", json=asked | {"dimensions": 3}).json()["error"]
        assert refused["param"] == "dimensions"


async def test_weights_stay_while_they_embed_however_little_memory_there_is(
    trained: tuple[Stack, Runs],
) -> None:
    texts = [tuple(range(n, n + 100)) for n in range(10)]
    with closing(StackRuntime(*trained)) as roomy, closing(StackRuntime(*trained, budget_bytes=1)) as tight:
        wanted = [await roomy.vectors(stage, texts) for stage in ("sft", "dpo")]
        found = await asyncio.gather(*(tight.vectors(stage, texts) for stage in ("sft", "dpo", "sft", "dpo")))
        assert found == [*wanted, *wanted]
        assert len(tight._weights.stages) == 1, "what nobody uses has gone"


SECRET, ANN = "ZQ-4711-KX", {"authorization": "Bearer k"}
HIDING = (
    "rules:\n- {name: code, on: [input, retrieved, tool_definition, tool_result, tool_call, output],"
    " pattern: 'ZQ-[0-9]{4}-KX', action: redact, reason: a code, reply: '[code]'}\n"
)


def test_what_the_policy_hides_is_on_no_page_in_no_export_and_in_no_file(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat, streams, raw text, responses that go on, replays, operators' pages, conversations, exports, the files of the database."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0].root, tmp_path / "desk", ignore=shutil.ignore_patterns("runs", "*.db*"))
    (tmp_path / "desk" / "policy.yaml").write_text(HIDING)
    stack = load_stack(tmp_path / "desk" / trained[0].path.name)
    asked = {"role": "user", "content": f"Is {SECRET} right?"}
    tool = {"type": "function", "function": {"name": "look", "description": f"Finds {SECRET}"}}
    told: list[str] = []
    with closing(StackRuntime(stack, trained[1])) as runtime:
        served = ServedStack(runtime)
        client = TestClient(app(served), base_url="http://localhost", client=("127.0.0.1", 9))
        ring = from_digests({digest("k"): "ann"})
        ann = TestClient(app(served, keys=ring), base_url="http://localhost")

        def said(response: httpx.Response) -> httpx.Response:
            assert response.status_code == 200, response.text
            told.append(response.text)
            return response

        chat: dict[str, Any] = {"model": "tiny-desk", "messages": [asked], "max_tokens": 8}
        first = said(client.post("/v1/chat/completions", json=chat)).json()
        said(client.post("/v1/chat/completions", json=chat | {"stream": True}))
        said(client.post("/v1/chat/completions", json=chat | {"tools": [tool], "metadata": {"a": SECRET}}))
        response = {"model": "tiny-desk", "input": SECRET, "instructions": "Be brief."}
        kept = said(client.post("/v1/responses", json=response | {"max_output_tokens": 8})).json()
        said(client.get(f"/v1/responses/{kept['id']}/input_items"))
        again = {"model": "tiny-desk", "input": "And?", "previous_response_id": kept["id"]}
        said(client.post("/v1/responses", json=again | {"max_output_tokens": 8}))
        said(client.get("/v1/demeanor/turns"))
        detail = said(client.get(f"/v1/demeanor/turns/{first['id']}")).json()
        assert detail["messages"][0]["content"] == "Is [code] right?"
        replay = {"model": "tiny-desk"}
        said(client.post(f"/v1/demeanor/turns/{first['id']}/replay", json=replay))
        entry = {"title": SECRET, "words": SECRET, "conversation": {"id": "c-1", "text": asked}}
        for asked_of in (
            ann.put("/v1/history/c-1", json=entry, headers=ANN),
            ann.get("/v1/history/c-1", headers=ANN),
        ):
            said(asked_of)
        said(client.post("/v1/feedback", json={"id": first["id"], "score": -1}))
        assert turn_lines.write(runtime.databases[0], tmp_path / "turns.jsonl") == 5
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"tiny.db", "turns.jsonl"} <= {path.name for path in files}
    told += [path.read_bytes().decode("latin-1") for path in files]
    hidden = [text[max(0, text.index(SECRET) - 300) :][:400] for text in told if SECRET in text]
    assert hidden == []


def test_a_replay_costs_the_operators_key_tokens_and_requests(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(StackRuntime(*trained)) as runtime:
        served = ServedStack(runtime)
        database = served.turn_database()
        assert database is not None
        key = keys.create(database, "ann", tokens_per_day=1_000, scopes=["chat", "operator"])
        client = TestClient(app(served, keys=KeyRing(database)), base_url="http://localhost")
        client.headers["authorization"] = f"Bearer {key}"
        asked = {"model": "tiny-desk", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        id = client.post("/v1/chat/completions", json=asked).json()["id"]
        address, spent = (
            f"/v1/demeanor/turns/{id}/replay",
            [keys.spent(database, digest(key), today(database))],
        )
        statuses = []
        while 429 not in statuses and len(statuses) < 200:
            statuses.append(client.post(address, json={"model": "tiny-desk"}).status_code)
            spent.append(keys.spent(database, digest(key), today(database)))
        assert statuses[0] == 200
        assert statuses[-1] == 429, "the day's tokens are spent"
        assert spent[0] < spent[1] <= 1_000
        assert spent[-1] <= 1_000


def today(database: Database) -> str:
    return keys.day_of(database.now())
