"""Responses kept by a real stack: what GET shows is what the client was told; and vectors over HTTP against the weights themselves."""

from __future__ import annotations

import asyncio
import base64
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime
from demeanor.model import checkpoints
from demeanor.model.tensors import Segment
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
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
