"""/v1/responses with the openai SDK and by hand: items, the order of events, every field, what is kept and for whom."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live import served
from openai import OpenAI
from openai.types.responses import ResponseCreateParams
from pydantic import BaseModel
from scripted import Recording, Scripted

from demeanor.core.types import Decoding, Done, Event, OutputFormat, Respond, Text, TokenLogprob, Turn
from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.server.responses_answer import ResponseAnswer, StreamedResponse, StreamEvent, blank_response
from demeanor.server.responses_request import ResponseRequest
from demeanor.store.keys import digest

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}
LOGPROBS = "message.output_text.logprobs"


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path / "turns.db")
    yield made
    assert made.database is not None
    made.database.close()


def asked(text: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "harbour-desk", "input": text, **fields}


async def events_of(client: httpx.AsyncClient, text: str, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/responses", json=asked(text, stream=True, **fields))
    assert answer.status_code == 200, answer.text
    frames = [frame for frame in answer.text.split("\n\n") if frame]
    assert frames[-1] == "data: [DONE]"
    found = []
    for frame in frames[:-1]:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    return found


# ---- plain ----


async def test_a_response_is_a_message_with_its_text_its_citations_its_usage_and_the_trace(
    client: httpx.AsyncClient,
) -> None:
    answer = (await client.post("/v1/responses", json=asked("When does the ferry leave?"))).json()
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["incomplete_details"], answer["error"]) == (
        "response",
        "completed",
        None,
        None,
    )
    (item,) = answer["output"]
    (part,) = item["content"]
    assert (item["type"], item["role"], part["type"], part["text"]) == (
        "message",
        "assistant",
        "output_text",
        "Jorpel leaves at 17.",
    )
    assert [(a["type"], a["start_index"], a["end_index"]) for a in part["annotations"]] == [
        ("url_citation", 0, 20)
    ]
    assert {k: answer["usage"][k] for k in ("input_tokens", "output_tokens", "total_tokens")} == {
        "input_tokens": 71,
        "output_tokens": 6,
        "total_tokens": 77,
    }
    assert answer["demeanor"]["layers"][0] == "base"


async def test_a_refusal_is_a_refusal_part_and_what_was_said_before_it_stays_apart(
    client: httpx.AsyncClient,
) -> None:
    for question, parts in (
        ("card number?", [("refusal", "I cannot share anybody's card number.")]),
        ("leak", [("output_text", "The secret is"), ("refusal", "I cannot say.")]),
    ):
        answer = (await client.post("/v1/responses", json=asked(question))).json()
        assert (answer["status"], answer["incomplete_details"]) == (
            "incomplete",
            {"reason": "content_filter"},
        )
        assert [
            (p["type"], p.get("text") or p.get("refusal")) for p in answer["output"][0]["content"]
        ] == parts


async def test_calls_are_items_and_their_results_go_back_as_items(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    answer = (await client.post("/v1/responses", json=asked("weather?", tools=[WEATHER]))).json()
    assert [(i["type"], i["call_id"], i["name"]) for i in answer["output"]] == [
        ("function_call", "call_w1", "weather"),
        ("function_call", "call_w2", "weather"),
    ]
    one = (
        await client.post("/v1/responses", json=asked("weather?", tools=[WEATHER], parallel_tool_calls=False))
    ).json()
    assert [i["call_id"] for i in one["output"]] == ["call_w1"]
    back = [
        {"role": "user", "content": "weather?"},
        *answer["output"],
        {"type": "function_call_output", "call_id": "call_w1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_w2", "output": "sun"},
    ]
    said = (await client.post("/v1/responses", json=asked(back, tools=[WEATHER]))).json()
    assert said["output"][0]["content"][0]["text"] == "The tool says sun"
    messages = assistant.turns[-1].messages
    assert [m.role for m in messages] == ["user", "assistant", "tool", "tool"]
    assert [c.id for c in messages[1].tool_calls] == ["call_w1", "call_w2"]


async def test_length_is_incomplete_and_a_cancelled_turn_an_error(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/responses", json=asked("seed"))).json()["incomplete_details"] == {
        "reason": "max_output_tokens"
    }
    assert (await client.post("/v1/responses", json=asked("drain"))).status_code == 503


# ---- fields ----


FIELDS: dict[str, tuple[list[tuple[Any, Callable[[Turn], object], object]], list[Any]]] = {
    "model": ([], [3, None]),
    "input": (
        [
            ("Hi", lambda t: t.messages[0].content, "Hi"),
            (
                [
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
                    }
                ],
                lambda t: t.messages[0].content,
                "a\nb",
            ),
            (
                [
                    {"type": "message", "role": "developer", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                ],
                lambda t: t.messages[0].role,
                "developer",
            ),
        ],
        [
            "",
            [],
            None,
            3,
            [{"role": "tool", "content": "x"}],
            [{"type": "item_reference", "id": "x"}],
            [{"type": "reasoning"}],
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            [{"type": "function_call_output", "call_id": "none", "output": "x"}],
        ],
    ),
    "instructions": (
        [("Be brief.", lambda t: (t.messages[0].role, t.messages[0].content), ("developer", "Be brief."))],
        [3],
    ),
    "max_output_tokens": (
        [(7, lambda t: t.decoding.max_tokens, 7), (None, lambda t: t.decoding.max_tokens, 99)],
        [0, "7"],
    ),
    "temperature": (
        [(0, lambda t: t.decoding.temperature, 0.0), (None, lambda t: t.decoding.temperature, 0.5)],
        [2.1, "0"],
    ),
    "top_p": ([(0.3, lambda t: t.decoding.top_p, 0.3)], [0, 1.1]),
    "include": (
        [([LOGPROBS], lambda t: t.decoding.top_logprobs, 0), ([], lambda t: t.decoding.top_logprobs, None)],
        [["file_search_call.results"], "x"],
    ),
    "top_logprobs": ([], [3, 21]),
    "text": (
        [
            ({"format": {"type": "json_object"}}, lambda t: t.decoding.form, OutputFormat("json_object")),
            (
                {
                    "format": {
                        "type": "json_schema",
                        "name": "a",
                        "schema": {"type": "object"},
                        "strict": True,
                    }
                },
                lambda t: t.decoding.form,
                OutputFormat("json_schema", '{"type": "object"}'),
            ),
            ({"format": {"type": "text"}}, lambda t: t.decoding.form, None),
        ],
        [{"verbosity": "low"}, {"format": {"type": "grammar"}}, {"format": {"type": "json_schema"}}],
    ),
    "tools": (
        [([WEATHER], lambda t: t.tools[0].name, "weather")],
        [[{"type": "web_search"}], [WEATHER, WEATHER], [{"type": "function"}]],
    ),
    "tool_choice": (
        [("none", lambda t: t.tool_choice, "none")],
        ["required", "sometimes", {"type": "function", "name": "x"}],
    ),
    "parallel_tool_calls": ([(True, lambda t: t.tool_choice, "auto")], ["yes"]),
    "stream": ([(False, lambda t: t.id != "", True)], ["yes"]),
    "store": ([(False, lambda t: json.loads(t.metadata["_response"])["store"], False)], [True]),
    "previous_response_id": ([], ["resp_nothing", "", 3]),
    "metadata": ([({"a": "b"}, lambda t: t.metadata["a"], "b")], [{"a": 1}, {"user": "x" * 600}]),
    "user": ([("ann", lambda t: t.user, "ann")], [""]),
    "truncation": ([("disabled", lambda t: True, True)], ["auto"]),
    "service_tier": ([("auto", lambda t: True, True)], ["flex"]),
    "background": ([(False, lambda t: True, True)], [True]),
    "stream_options": ([({"include_obfuscation": False}, lambda t: True, True)], [{"include_usage": True}]),
    **{
        name: ([(None, lambda t: True, True)], ["x", {}])
        for name in (
            "access_programs",
            "background_options",
            "image",
            "context_management",
            "conversation",
            "max_tool_calls",
            "moderation",
            "prompt",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
        )
    },
}


@pytest.mark.parametrize("name", FIELDS)
async def test_every_field_is_honoured_or_refused_by_name(
    name: str, client: httpx.AsyncClient, assistant: Scripted
) -> None:
    good, bad = FIELDS[name]
    assert good or bad
    for value, seen, want in good:
        answer = await client.post("/v1/responses", json=asked() | {name: value})
        assert answer.status_code == 200, (value, answer.text)
        assert seen(assistant.turns[-1]) == want, value
    for value in bad:
        answer = await client.post("/v1/responses", json=asked() | {name: value})
        assert 400 <= answer.status_code < 500, (value, answer.text)
        assert (answer.json()["error"]["param"] or "").startswith(
            name.split("_")[0] if name == "top_logprobs" else name
        ), (value, answer.text)


def test_every_field_of_the_sdk_is_known() -> None:
    ours = set(ResponseRequest.model_fields)
    theirs = {k for kind in ResponseCreateParams.__args__ for k in kind.__annotations__}
    assert theirs - ours == set()


async def test_a_field_nobody_knows_is_refused_with_the_nearest(client: httpx.AsyncClient) -> None:
    error = (await client.post("/v1/responses", json=asked(max_tokens=3))).json()["error"]
    assert (error["param"], "max_output_tokens" in error["message"]) == ("max_tokens", True)


# ---- streamed ----


TEXT_ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]


async def test_a_streamed_text_has_openais_events_in_openais_order(client: httpx.AsyncClient) -> None:
    events = await events_of(client, "When does the ferry leave?", include=[LOGPROBS], top_logprobs=1)
    for event in events:
        assert StreamEvent.model_validate(event).model_dump(mode="json", exclude_unset=True) == event, (
            "as documented in /openapi.json"
        )
    kinds = [e["type"] for e in events]
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert kinds == [
        *TEXT_ORDER,
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e["delta"] for e in deltas) == events[-4]["text"] == "Jorpel leaves at 17."
    assert all(len(e["logprobs"]) == 1 for e in deltas)
    plain = (
        await client.post(
            "/v1/responses", json=asked("When does the ferry leave?", include=[LOGPROBS], top_logprobs=1)
        )
    ).json()
    whole = events[-1]["response"]
    assert [p["text"] for p in whole["output"][0]["content"]] == [
        p["text"] for p in plain["output"][0]["content"]
    ]
    assert whole["usage"] == plain["usage"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


async def test_streamed_calls_and_refusals_have_their_own_events(client: httpx.AsyncClient) -> None:
    kinds = [
        e["type"] for e in await events_of(client, "weather?", tools=[WEATHER], parallel_tool_calls=False)
    ]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    events = await events_of(client, "leak")
    kinds = [e["type"] for e in events]
    assert kinds[kinds.index("response.output_text.done") :] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [e["type"] for e in await events_of(client, "card number")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]


async def test_an_error_before_the_first_word_is_a_status_and_later_one_an_event(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/v1/responses", json=asked("novel", stream=True))).status_code == 400
    answer = await client.post("/v1/responses", json=asked("crash later", stream=True))
    assert answer.status_code == 200
    last = answer.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert "hunter2" not in answer.text


async def test_what_an_inner_layer_says_after_a_refusal_reaches_nobody(client: httpx.AsyncClient) -> None:
    plain = (await client.post("/v1/responses", json=asked("gossip"))).json()
    streamed = (await events_of(client, "gossip"))[-1]["response"]
    for answer in (plain, streamed):
        assert answer["output"][0]["content"] == [{"type": "refusal", "refusal": "Not about people."}]
    whole = (await client.post("/v1/responses", json=asked("gossip", stream=True))).text
    assert "She said" not in whole + json.dumps(plain)


def test_a_token_whose_text_is_held_back_is_told_with_its_log_probability() -> None:
    turn = Turn((), Decoding(), metadata={"_response": "{}"}, id="resp_1", variant="v")
    streamed = StreamedResponse(blank_response(turn, 0), logprobs=True)
    pieces = [Text("", logprobs=(TokenLogprob("a", -1.0),)), Text("ab", logprobs=(TokenLogprob("b", -2.0),))]
    told = [event for piece in pieces for event in streamed.add(piece)]
    assert [(e.delta, [x["token"] for x in e.logprobs or ()]) for e in told if e.type.endswith(".delta")] == [
        ("", ["a"]),
        ("ab", ["b"]),
    ]


async def test_errors_name_the_fields_of_this_address(client: httpx.AsyncClient) -> None:
    for fields in ({}, {"stream": True}):
        error = (await client.post("/v1/responses", json=asked("novel", **fields))).json()["error"]
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    own = (await client.post("/v1/responses", json=asked(metadata={"_response": "x"}))).json()["error"]
    assert own["param"] == "metadata._response"


async def test_an_answer_that_breaks_off_ends_with_an_error_event_in_sequence(
    client: httpx.AsyncClient,
) -> None:
    frames = (await client.post("/v1/responses", json=asked("drain", stream=True))).text.strip().split("\n\n")
    found = [json.loads(frame.split("\ndata: ")[1]) for frame in frames]
    last = found[-1]
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    assert (last["type"], last["code"], last["param"], last["error"]["message"]) == (
        "error",
        "cancelled",
        None,
        last["message"],
    )
    assert StreamEvent.model_validate(last).model_dump(mode="json", exclude_unset=True) == last, (
        "as documented in /openapi.json"
    )


# ---- kept ----


async def test_input_items_come_in_pages_latest_first(recording: Recording) -> None:
    said = [{"role": "user", "content": text} for text in "abcde"]
    transport = httpx.ASGITransport(app(recording))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        id = (await client.post("/v1/responses", json=asked(said))).json()["id"]

        async def page(**query: Any) -> tuple[str, dict[str, Any]]:
            found = (await client.get(f"/v1/responses/{id}/input_items", params=query)).json()
            return "".join(item["content"][0]["text"] for item in found["data"]), found

        assert (await page())[0] == "edcba"
        text, first = await page(limit=2, order="asc")
        assert (text, first["has_more"], first["last_id"]) == ("ab", True, first["data"][1]["id"])
        text, rest = await page(limit=3, order="asc", after=first["last_id"])
        assert (text, rest["has_more"]) == ("cde", False)
        for path, query in (
            ("/input_items", {"limit": 0}),
            ("/input_items", {"limit": "many"}),
            ("/input_items", {"order": "up"}),
            ("/input_items", {"after": "nothing"}),
            ("/input_items", {"before": "x"}),
            ("/input_items", {"include": "x"}),
            ("", {"stream": "true"}),
            ("", {"starting_after": 3}),
            ("", {"include[]": LOGPROBS}),
        ):
            answer = await client.get(f"/v1/responses/{id}{path}", params=query)
            (name,) = query
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name.removesuffix("[]"))
        assert (await client.get(f"/v1/responses/{id}?stream=false")).status_code == 200


async def test_only_calls_that_were_sent_are_gone_on_from(recording: Recording) -> None:
    transport = httpx.ASGITransport(app(recording))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        first = (
            await client.post(
                "/v1/responses", json=asked("weather?", tools=[WEATHER], parallel_tool_calls=False)
            )
        ).json()
        result = {"type": "function_call_output", "call_id": "call_w1", "output": "rain"}
        await client.post("/v1/responses", json=asked([result], previous_response_id=first["id"]))
        assert [c.id for c in recording.turns[-1].messages[1].tool_calls] == ["call_w1"]
        unsent = await client.post(
            "/v1/responses", json=asked([result | {"call_id": "call_w2"}], previous_response_id=first["id"])
        )
        assert (unsent.status_code, unsent.json()["error"]["param"]) == (400, "input")


async def test_a_kept_response_is_read_again_gone_on_from_and_deleted(recording: Recording) -> None:
    transport = httpx.ASGITransport(app(recording))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        first = (
            await client.post(
                "/v1/responses",
                json=asked("weather?", instructions="Be brief.", tools=[WEATHER], metadata={"a": "b"}),
            )
        ).json()
        again = (await client.get(f"/v1/responses/{first['id']}")).json()
        assert ResponseAnswer.model_validate(again).model_dump(mode="json", exclude_unset=True) == again, (
            "as documented in /openapi.json"
        )
        for name in first.keys() - {"demeanor", "created_at"}:
            assert again[name] == first[name], name
        second = (
            await client.post(
                "/v1/responses",
                json=asked(
                    [{"type": "function_call_output", "call_id": "call_w1", "output": "rain"}],
                    previous_response_id=first["id"],
                    instructions="Be kind.",
                ),
            )
        ).json()
        assert [m.role for m in recording.turns[-1].messages] == ["developer", "user", "assistant", "tool"]
        assert recording.turns[-1].messages[0].content == "Be kind.", "instructions are of one response"
        assert second["previous_response_id"] == first["id"]
        third = await client.post("/v1/responses", json=asked("and now?", previous_response_id=second["id"]))
        assert [m.role for m in recording.turns[-1].messages] == [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
        ]
        items = (await client.get(f"/v1/responses/{second['id']}/input_items")).json()
        assert [i["type"] for i in items["data"]] == ["function_call_output"]
        items = (await client.get(f"/v1/responses/{third.json()['id']}/input_items")).json()
        assert [(i["type"], i["content"]) for i in items["data"]] == [
            ("message", [{"type": "input_text", "text": "and now?"}])
        ]
        assert (await client.delete(f"/v1/responses/{first['id']}")).json() == {
            "id": first["id"],
            "object": "response",
            "deleted": True,
        }
        assert (await client.get(f"/v1/responses/{first['id']}")).status_code == 404
        hidden = (await client.post("/v1/responses", json=asked(store=False))).json()
        assert hidden["store"] is False
        assert (await client.get(f"/v1/responses/{hidden['id']}")).status_code == 404
        error = (await client.post("/v1/responses", json=asked(previous_response_id=hidden["id"]))).json()[
            "error"
        ]
        assert (error["param"], error["code"]) == ("previous_response_id", "not_found")


async def test_nobody_reads_or_goes_on_from_what_another_key_was_told(recording: Recording) -> None:
    keys = from_digests({digest("sk-ann"): "ann", digest("sk-bob"): "bob"})
    transport = httpx.ASGITransport(app(recording, keys=keys))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        ann, bob = ({"authorization": f"Bearer sk-{who}"} for who in ("ann", "bob"))
        first = (await client.post("/v1/responses", json=asked(), headers=ann)).json()["id"]
        for call in (
            client.get(f"/v1/responses/{first}", headers=bob),
            client.delete(f"/v1/responses/{first}", headers=bob),
            client.get(f"/v1/responses/{first}/input_items", headers=bob),
            client.post("/v1/responses", json=asked(previous_response_id=first), headers=bob),
        ):
            assert (await call).status_code == 404
        assert (await client.get(f"/v1/responses/{first}", headers=ann)).status_code == 200
        assert (await client.get(f"/v1/responses/{first}")).status_code == 401


async def test_a_stack_without_a_record_says_so_by_name(client: httpx.AsyncClient) -> None:
    for fields in ({"store": True}, {"previous_response_id": "resp_1"}):
        answer = await client.post("/v1/responses", json=asked(**fields))
        assert (answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]) == (
            409,
            next(iter(fields)),
            "no_record_layer",
        )


# ---- the SDK ----


def test_the_openai_sdk_creates_streams_parses_and_reads_again(recording: Recording) -> None:
    class Answer(BaseModel):
        port: str

    with served(recording) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        plain = client.responses.create(model="harbour-desk", input="When does the ferry leave?")
        assert plain.output_text == "Jorpel leaves at 17."
        with client.responses.stream(model="harbour-desk", input="When does the ferry leave?") as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output_text == plain.output_text
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert client.responses.retrieve(plain.id).output_text == plain.output_text
        assert client.responses.input_items.list(plain.id).data[0].type == "message"
        with pytest.raises(
            ValueError, match="Answer"
        ):  # the script speaks no JSON: what it says is parsed, and is none
            client.responses.parse(model="harbour-desk", input="hello", text_format=Answer)
        assert recording.turns[-1].decoding.form is not None
        assert "port" in recording.turns[-1].decoding.form.text
        client.responses.delete(plain.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(plain.id)


def test_the_sdk_parses_what_fits_reads_an_incomplete_end_and_raises_where_an_answer_breaks_off() -> None:
    class Answer(BaseModel):
        port: str

    class Json(Scripted):
        def respond(self, model_id: str) -> Respond:
            usual = super().respond(model_id)

            async def json_only(turn: Turn) -> AsyncIterator[Event]:
                yield Text('{"port": ')
                yield Text('"Corkel"}')
                yield Done("stop")

            return lambda turn: json_only(turn) if turn.decoding.form else usual(turn)

    with served(Json()) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        parsed = client.responses.parse(model="harbour-desk", input="?", text_format=Answer)
        assert parsed.output_parsed == Answer(port="Corkel")
        assert parsed.text is not None
        assert parsed.text.format is not None
        assert (parsed.text.format.type, parsed.text.format.name) == ("json_schema", "Answer")  # type: ignore[union-attr]
        with client.responses.stream(model="harbour-desk", input="?", text_format=Answer) as stream:
            stream.until_done()
            assert stream.get_final_response().output_parsed == Answer(port="Corkel")
        *_, last = client.responses.create(model="harbour-desk", input="leak", stream=True)
        assert last.type == "response.incomplete"
        assert last.response.incomplete_details is not None
        assert last.response.incomplete_details.reason == "content_filter"
        with pytest.raises(openai.APIError, match="cut off"):
            list(client.responses.create(model="harbour-desk", input="drain", stream=True))
        vectors = client.embeddings.create(model="harbour-desk:base", input=["ab", "c"])  # asks for base64
        assert vectors.data[0].embedding == pytest.approx([0.6, 0.8, 0.002])


# ---- embeddings ----


async def test_embeddings_come_as_floats_or_as_the_sdks_base64(client: httpx.AsyncClient) -> None:
    def of(**fields: Any) -> dict[str, Any]:
        return {"model": "harbour-desk:base", "input": ["ab", "c"], **fields}

    floats = (await client.post("/v1/embeddings", json=of())).json()
    assert [(d["index"], d["embedding"]) for d in floats["data"]] == [
        (0, [0.6, 0.8, 0.002]),
        (1, [0.6, 0.8, 0.001]),
    ]
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    coded = (await client.post("/v1/embeddings", json=of(encoding_format="base64"))).json()["data"][0][
        "embedding"
    ]
    assert struct.unpack("<3f", base64.b64decode(coded)) == pytest.approx((0.6, 0.8, 0.002))
    assert (await client.post("/v1/embeddings", json=of(input=[[97, 98], [99]]))).json() == floats
    for fields, param in (
        ({"dimensions": 8}, "dimensions"),
        ({"input": [[999]]}, "input"),
        ({"input": []}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": "harbour-desk"}, "model"),
        ({"size": 3}, "size"),
    ):
        error = (await client.post("/v1/embeddings", json=of(**fields))).json()["error"]
        assert (error["param"] or "").startswith(param), error


def test_two_streams_at_once_do_not_mix(recording: Recording) -> None:
    async def both() -> list[list[dict[str, Any]]]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app(recording)), base_url="http://localhost"
        ) as client:
            return list(await asyncio.gather(events_of(client, "hello"), events_of(client, "the captain")))

    one, two = asyncio.run(both())
    assert one[-1]["response"]["output"][0]["content"][0]["text"] == "Good morning from the harbour desk."
    assert one[-1]["response"]["id"] != two[-1]["response"]["id"]
