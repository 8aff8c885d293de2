"""Plain and streamed answers: shapes, framing, and that both say the same."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted import Scripted, body

from demeanor.core.types import Done, Text, Usage, fold
from demeanor.server.chat import trace_entries, usage
from demeanor.server.request_context import RequestContext
from demeanor.server.responses_answer import _usage

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]
SAYINGS = [
    "hello",
    "the ferry?",
    "37 times 12",
    "a card number",
    "weather, please",
    "seed",
    "the captain",
    "gossip",
    "misquote",
]


async def plain(client: httpx.AsyncClient, text: str, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json=body(text, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def streamed(client: httpx.AsyncClient, text: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, its framing checked."""
    response = await client.post("/v1/chat/completions", json=body(text, stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames[:-2])
    return [orjson.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client that adds up deltas ends with."""
    message: dict[str, Any] = {
        "content": "",
        "refusal": None,
        "tool_calls": [],
        "annotations": [],
        "finish_reason": None,
    }
    for choice in [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]:
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        message["refusal"] = delta.get("refusal") or message["refusal"]
        message["tool_calls"] += [
            {k: v for k, v in call.items() if k != "index"} for call in delta.get("tool_calls", [])
        ]
        message["annotations"] += delta.get("annotations", [])
        message["finish_reason"] = choice["finish_reason"] or message["finish_reason"]
    return message


@pytest.mark.parametrize("text", SAYINGS)
async def test_a_stream_adds_up_to_the_plain_answer(client: httpx.AsyncClient, text: str) -> None:
    whole = await plain(client, text, tools=TOOLS, seed=3)
    chunks = await streamed(client, text, tools=TOOLS, seed=3, stream_options={"include_usage": True})
    choice = whole["choices"][0]
    parts = joined(chunks)
    assert parts["content"] == (choice["message"]["content"] or "")
    for name in ("refusal", "annotations"):
        assert parts[name] == choice["message"][name], name
    assert parts["tool_calls"] == choice["message"].get("tool_calls", [])
    assert parts["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["demeanor"]["events"] == whole["demeanor"]["events"]


@pytest.mark.parametrize("text", SAYINGS)
async def test_both_forms_are_what_the_sdk_declares(client: httpx.AsyncClient, text: str) -> None:
    ChatCompletion.model_validate(await plain(client, text, logprobs=True), strict=True)
    for chunk in await streamed(client, text, logprobs=True, stream_options={"include_usage": True}):
        ChatCompletionChunk.model_validate(chunk, strict=True)


async def test_a_stream_is_role_then_text_then_finish_then_usage(client: httpx.AsyncClient) -> None:
    chunks = await streamed(client, "hello", stream_options={"include_usage": True})
    first, *texts, finish, usage = chunks
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert (
        "".join(c["choices"][0]["delta"]["content"] for c in texts) == "Good morning from the harbour desk."
    )
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 24,
        "completion_tokens": 6,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert all(c["usage"] is None for c in chunks[:-1])
    assert [c for c in chunks if "demeanor" in c] == [usage]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1


async def test_without_include_usage_there_is_no_usage_and_the_finish_chunk_tells_what_the_layers_did(
    client: httpx.AsyncClient,
) -> None:
    chunks = await streamed(client, "hello")
    assert not any("usage" in c for c in chunks)
    assert [c for c in chunks if "demeanor" in c] == [chunks[-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_plain_answer_has_every_field_and_the_stack_key(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=body())
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert (answer["created"], answer["model"], answer["system_fingerprint"]) == (
        1_700_000_000,
        "harbour-desk",
        "5f0c9a1be47d",
    )
    assert answer["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": "Good morning from the harbour desk.",
                "refusal": None,
                "annotations": [],
            },
        }
    ]
    assert response.headers["x-demeanor-stack"] == answer["demeanor"]["stack_key"] == "5f0c9a1be47d"
    assert float(response.headers["x-demeanor-ms"]) == answer["demeanor"]["ms"] >= 0
    assert response.headers["x-request-id"].removeprefix("req_") == answer["id"].removeprefix("chatcmpl-")


async def test_the_trace_tells_what_every_layer_did_in_order(client: httpx.AsyncClient) -> None:
    told = (await plain(client, "the ferry?"))["demeanor"]
    assert told["model"] == "harbour-desk"
    assert told["layers"][:3] == ["base", "sft", "dpo"]
    assert [(e["by"], e["kind"]) for e in told["events"]] == [
        ("retrieval", "passage"),
        ("retrieval", "passage"),
        ("retrieval", "timing"),
        ("prompt", "prompted"),
        ("weights", "text"),
        ("retrieval", "citation"),
        ("weights", "usage"),
        ("weights", "timing"),
        ("policy", "timing"),
        ("prompt", "timing"),
        ("weights", "done"),
    ]
    assert told["events"][3]["messages"][0]["role"] == "system"
    assert told["events"][4] == {"choice": 0, "by": "weights", "kind": "text", "start": 0, "end": 20}


async def test_a_tool_that_a_layer_ran_is_told_but_not_handed_to_the_client(
    client: httpx.AsyncClient,
) -> None:
    answer = await plain(client, "37 times 12")
    assert answer["choices"][0]["message"]["content"] == "It is 444."
    assert "tool_calls" not in answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    call, result = [e for e in answer["demeanor"]["events"] if e["kind"].startswith("tool_")]
    assert (call["name"], call["arguments"], result["content"]) == (
        "calculator",
        '{"expression": "37 * 12"}',
        "444",
    )
    assert answer["usage"] == {
        "prompt_tokens": 104,
        "completion_tokens": 15,
        "total_tokens": 119,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert not any("tool_calls" in c["choices"][0]["delta"] for c in await streamed(client, "37 times 12"))


async def test_a_refusal_is_content_and_refusal_and_ends_as_content_filter(client: httpx.AsyncClient) -> None:
    answer = await plain(client, "a card number", logprobs=True)
    choice = answer["choices"][0]
    assert (
        choice["message"]["content"]
        == choice["message"]["refusal"]
        == "I cannot share anybody's card number."
    )
    assert choice["finish_reason"] == "content_filter"
    assert choice["logprobs"]["content"] == []
    assert {
        "choice": 0,
        "by": "policy",
        "kind": "refusal",
        "rule": "no-card-numbers",
        "reason": "asks for a payment card number",
        "text": "I cannot share anybody's card number.",
        "stage": "input",
    } in answer["demeanor"]["events"]


async def test_an_answer_stopped_halfway_ends_there_and_says_so(client: httpx.AsyncClient) -> None:
    assert (await plain(client, "a leak"))["choices"][0]["message"]["content"] == "I cannot say."
    parts = joined(await streamed(client, "a leak"))
    assert (parts["content"], parts["refusal"], parts["finish_reason"]) == (
        "The secret is",
        "I cannot say.",
        "content_filter",
    )


async def test_after_a_refusal_nothing_more_is_said_and_the_first_one_counts(
    client: httpx.AsyncClient,
) -> None:
    choice = (await plain(client, "gossip"))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Not about people.", "content_filter")
    parts = joined(await streamed(client, "gossip"))
    assert (parts["content"], parts["refusal"], parts["finish_reason"]) == (
        "Not about people.",
        "Not about people.",
        "content_filter",
    )


async def test_log_probabilities_of_a_withheld_answer_are_withheld_too(client: httpx.AsyncClient) -> None:
    assert (await plain(client, "a leak", logprobs=True))["choices"][0]["logprobs"] == {
        "content": [],
        "refusal": None,
    }


async def test_calls_for_the_client_end_as_tool_calls_and_one_chunk_only_has_the_trace(
    client: httpx.AsyncClient,
) -> None:
    chunks = await streamed(client, "weather", tools=TOOLS)
    role, calls, finish = chunks
    assert [c["index"] for c in calls["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    assert ["demeanor" in c for c in (role, calls, finish)] == [False, False, True]


def test_neighbouring_texts_of_one_layer_are_one_span_counted_in_characters() -> None:
    texts = [
        Text("🐟 at", by="weights"),
        Text(" 9", by="weights"),
        Text("", by="tools"),
        Text("!", by="policy"),
        Text("?", by="weights"),
    ]
    assert trace_entries(texts) == [
        {"by": "weights", "kind": "text", "start": 0, "end": 6},
        {"by": "policy", "kind": "text", "start": 6, "end": 7},
        {"by": "weights", "kind": "text", "start": 7, "end": 8},
    ]


async def test_citations_are_annotations_with_character_offsets(client: httpx.AsyncClient) -> None:
    message = (await plain(client, "the ferry?"))["choices"][0]["message"]
    assert message["annotations"] == [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": 0,
                "end_index": 20,
                "title": "notices/ferries.md",
                "url": "passage:ferries%232",
            },
        }
    ]
    assert message["content"][0:20] == "Jorpel leaves at 17."


async def test_logprobs_cover_exactly_the_text_with_their_bytes_and_alternatives(
    client: httpx.AsyncClient,
) -> None:
    choice = (await plain(client, "hello", logprobs=True, top_logprobs=2))["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens) == choice["message"]["content"]
    assert bytes(b for t in tokens for b in t["bytes"]).decode() == choice["message"]["content"]
    assert tokens[0]["logprob"] == -0.25
    assert [t["token"] for t in tokens[0]["top_logprobs"]] == ["Good", " perhaps"]
    chunks = await streamed(client, "hello", logprobs=True)
    assert [
        t["token"] for c in chunks for t in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ] == [t["token"] for t in tokens]


async def test_without_logprobs_none_are_sent(client: httpx.AsyncClient) -> None:
    assert (await plain(client, "hello"))["choices"][0]["logprobs"] is None


async def test_n_choices_are_n_turns_with_their_own_seeds(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    answer = await plain(client, "seed", n=3, seed=5)
    seeds = [t.decoding.seed for t in sorted(assistant.turns, key=lambda t: t.id)]
    assert [c["message"]["content"] for c in answer["choices"]] == [f"seed {seed}" for seed in seeds]
    assert [c["finish_reason"] for c in answer["choices"]] == ["length"] * 3
    assert answer["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 6,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert {e["choice"] for e in answer["demeanor"]["events"]} == {0, 1, 2}


async def test_n_streamed_choices_are_told_apart_by_their_index(client: httpx.AsyncClient) -> None:
    whole = await plain(client, "seed", n=3, seed=5)
    chunks = await streamed(client, "seed", n=3, seed=5)
    assert [c["choices"][0]["index"] for c in chunks[:3]] == [0, 1, 2]
    assert all(c["choices"][0]["delta"].get("role") == "assistant" for c in chunks[:3])
    assert [joined(chunks, i)["content"] for i in range(3)] == [
        c["message"]["content"] for c in whole["choices"]
    ]
    assert [c for c in chunks if "demeanor" in c] == [chunks[-1]]


async def test_tool_choice_none_reaches_the_turn(client: httpx.AsyncClient) -> None:
    assert (await plain(client, "weather", tools=TOOLS))["choices"][0]["finish_reason"] == "tool_calls"
    assert (await plain(client, "weather", tools=TOOLS, tool_choice="none"))["choices"][0][
        "finish_reason"
    ] == "stop"


async def test_a_message_of_a_response_can_be_sent_back_as_it_came(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    for text in SAYINGS:
        message = (await plain(client, text, tools=TOOLS))["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "sun"}
            for call in message.get("tool_calls", [])
        ]
        asked = [{"role": "user", "content": text}, message, *results, {"role": "user", "content": "hello"}]
        assert (await client.post("/v1/chat/completions", json=body(messages=asked))).status_code == 200
        assert assistant.turns[-1].messages[1].content == (message["content"] or "")


async def test_models_are_listed_with_their_stack_keys_and_layers(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == [
        "harbour-desk",
        "harbour-desk:base",
        "harbour-desk:dpo",
        "harbour-desk-policy",
    ]
    assert listed["data"][1] == {
        "id": "harbour-desk:base",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "demeanor",
        "demeanor": {
            "description": "Pretrained weights alone.",
            "stack_key": "a91e33c07b12",
            "layers": ["base"],
        },
    }
    assert listed["demeanor"]["name"] == "harbour-desk"
    assert len(listed["demeanor"]["examples"]) == 4


@pytest.mark.parametrize("model_id", ["harbour-desk", "harbour-desk:dpo", "harbour-desk:sft+prompt"])
async def test_one_model_can_be_asked_for_listed_or_not(client: httpx.AsyncClient, model_id: str) -> None:
    response = await client.get(f"/v1/models/{model_id}")
    assert response.json()["id"] == model_id
    assert response.headers["x-demeanor-stack"] == response.json()["demeanor"]["stack_key"]


async def test_an_unlisted_variant_is_stamped_with_its_own_stack_key(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=body(model="harbour-desk:sft+prompt"))
    assert response.headers["x-demeanor-stack"] == response.json()["demeanor"]["stack_key"] == "77aa"


async def test_health_names_what_is_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {
        "status": "ok",
        "name": "harbour-desk",
        "stack_key": "5f0c9a1be47d",
    }


def test_usage_tells_the_tokens_that_were_known() -> None:
    """Of two model calls in one turn, and of all choices."""
    events = [Usage(9, 2, cached_tokens=5), Usage(20, 3, cached_tokens=16), Done("stop")]
    told = usage([fold(events), fold([Usage(9, 2, cached_tokens=8), Done("stop")])])
    assert told is not None
    assert (told.prompt_tokens, told.prompt_tokens_details.cached_tokens) == (38, 29)
    response = _usage(fold(events))
    assert response is not None
    assert (response.input_tokens, response.input_tokens_details.cached_tokens) == (29, 21)
    request = RequestContext("id", "id")
    for event in events:
        request.add(event)
    assert request.cached_tokens == 21
