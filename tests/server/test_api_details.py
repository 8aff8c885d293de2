"""Details of the API on a real engine: exact numbers, bytes and offsets of tokens, cut calls, what SDKs send back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_fuzz import Server
from test_fuzz import server as server  # the fixture

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CYCLE = {"$ref": "#/$defs/n", "$defs": {"n": {"$ref": "#/$defs/n"}}}
EMOJI = "é\U0001f600x"


def ask(server: Server, path: str, **fields: Any) -> Any:
    response = server.client.post(path, json={"model": "fuzz:base", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(server: Server, path: str, **fields: Any) -> tuple[int, str | None, str]:
    response = server.client.post(path, json={"model": "fuzz:base", **fields})
    error = response.json()["error"]
    return response.status_code, error["param"], error["message"]


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def tool(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("model", ["fuzz:base", "fuzz"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_without_a_finite_text_is_a_400_of_its_field_in_every_endpoint(
    server: Server, model: str, stream: bool
) -> None:
    both = {"model": model, "stream": stream}
    tools = [tool({"type": "object"}, "fine"), tool(CYCLE)]
    flat = [{"type": "function", "name": "f", "parameters": CYCLE}]
    found = [
        refused(server, CHAT, messages=HI, response_format=form(CYCLE), **both),
        refused(server, CHAT, messages=HI, tools=tools, tool_choice="required", **both),
        refused(
            server,
            RESPONSES,
            input="hi",
            text={"format": {"type": "json_schema", "name": "a", "schema": CYCLE}},
            **both,
        ),
        refused(server, RESPONSES, input="hi", tools=flat, tool_choice="required", **both),
    ]
    assert [(status, param) for status, param, _ in found] == [
        (400, "response_format"),
        (400, "tools[1].function.parameters"),
        (400, "text.format"),
        (400, "tools[0].parameters"),
    ]
    assert ["no finite text fits" in message for *_, message in found] == [True] * 4


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-39},
        {"temperature": 1e-300},
        {"temperature": 1, "top_p": 1e-300},
        {"temperature": 1, "top_k": 1},
    ],
    ids=repr,
)
@pytest.mark.parametrize("format", [None, {"type": "json_object"}], ids=["text", "json"])
def test_settings_below_what_fp32_holds_give_the_greedy_answer(
    server: Server, settings: dict[str, float], format: Any
) -> None:
    asked = {"messages": HI, "max_tokens": 20, "response_format": format}
    greedy = ask(server, CHAT, temperature=0, **asked)
    assert ask(server, CHAT, **settings, **asked)["choices"] == greedy["choices"]


@pytest.mark.parametrize("number", ["123456789012345678901", "9007199254740993", "-18446744073709551617"])
def test_an_integer_beyond_2_to_53_is_never_changed(server: Server, number: str) -> None:
    body = json.dumps(
        {"model": "fuzz:base", "messages": HI, "max_tokens": 60, "response_format": form({"const": "N"})}
    )
    response = server.client.post(
        CHAT, content=body.replace('"N"', number), headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert number in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    ("path", "field"), [(CHAT, "messages"), (COMPLETIONS, "prompt"), (RESPONSES, "input")]
)
@pytest.mark.parametrize(
    "wrong", ["[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "1" * 5000, "1" * 30]
)
def test_a_wrong_value_of_any_depth_or_length_is_a_400(
    server: Server, path: str, field: str, wrong: str
) -> None:
    given = {"messages": HI} if field == "messages" else {field: "hi"}
    body = json.dumps({"model": "fuzz:base", **given, "temperature": "N"}).replace('"N"', wrong)
    response = server.client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] in ("temperature", None)


def test_a_deep_metadata_or_schema_names_its_field(server: Server) -> None:
    deep: Any = {}
    for _ in range(150):
        deep = {"items": deep}
    status, param, message = refused(server, CHAT, messages=HI, response_format=form(deep))
    assert (status, param) == (400, "response_format")
    assert "nested more than 100 levels" in message


@pytest.mark.parametrize("stream", [False, True])
def test_the_bytes_of_the_tokens_join_to_the_content(server: Server, stream: bool) -> None:
    asked = {
        "messages": HI,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": form({"enum": [EMOJI]}),
    }
    if stream:
        text = server.client.post(CHAT, json={"model": "fuzz:base", "stream": True, **asked}).text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        choices = [chunk["choices"][0] for chunk in chunks]
        content = "".join(c["delta"].get("content") or "" for c in choices)
        tokens = [t for c in choices for t in (c["logprobs"] or {"content": []})["content"]]
    else:
        (choice,) = ask(server, CHAT, **asked)["choices"]
        content, tokens = choice["message"]["content"], choice["logprobs"]["content"]
    assert json.loads(content) == EMOJI
    assert bytes(b for token in tokens for b in token["bytes"]).decode() == content
    assert len(tokens) > 3


def test_the_bytes_join_where_a_stop_string_cuts_a_token(server: Server) -> None:
    asked = {
        "messages": HI,
        "max_tokens": 40,
        "logprobs": True,
        "response_format": form({"enum": ["The ferry leaves"]}),
    }
    (choice,) = ask(server, CHAT, stop=["rry l"], **asked)["choices"]
    assert choice["message"]["content"] == '"The fe'
    assert choice["finish_reason"] == "stop"
    assert bytes(b for token in choice["logprobs"]["content"] for b in token["bytes"]) == b'"The fe'


def test_text_offsets_are_places_in_the_text(server: Server) -> None:
    prompt = f"{EMOJI} The ferry \U0001f600"
    (choice,) = ask(server, COMPLETIONS, prompt=prompt, echo=True, logprobs=1, max_tokens=6, temperature=0)[
        "choices"
    ]
    offsets, tokens, text = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"], choice["text"]
    assert text.startswith(prompt)
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    whole = [(at, token) for at, token in zip(offsets, tokens) if token and "\ufffd" not in token]
    assert len(whole) > 4
    assert [text[at : at + len(token)] for at, token in whole] == [token for _, token in whole]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("model", ["fuzz", "fuzz:base"])
@pytest.mark.parametrize("most", [1, 3, 6, 12])
def test_a_demanded_call_that_is_cut_is_a_cut_call_of_the_clients_tool(
    server: Server, model: str, choice: Any, most: int
) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 60}},
        "required": ["city"],
    }
    asked = {
        "messages": HI,
        "tools": [tool(schema, "get_weather")],
        "tool_choice": choice,
        "max_tokens": most,
    }
    (found,) = ask(server, CHAT, model=model, **asked)["choices"]
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert found["finish_reason"] == "length"
    assert found["message"]["content"] is None
    assert not call["function"]["arguments"] or call["function"]["arguments"].startswith("{")
    flat = [{"type": "function", "name": "get_weather", "parameters": schema}]
    answer = ask(
        server,
        RESPONSES,
        model="fuzz",
        input="hi",
        tools=flat,
        tool_choice="required",
        max_output_tokens=most,
    )
    (item,) = answer["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "get_weather", "incomplete")
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_required_is_met_by_the_clients_tool_and_never_by_the_stacks(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    asked = {
        "model": "fuzz",
        "messages": HI,
        "tools": [tool(schema, "pick")],
        "tool_choice": "required",
        "max_tokens": 60,
    }
    answers = [ask(server, CHAT, temperature=2, seed=seed, **asked) for seed in range(6)]
    names = [c["function"]["name"] for a in answers for c in a["choices"][0]["message"]["tool_calls"]]
    assert names == ["pick"] * 6
    assert [e["kind"] for a in answers for e in a["demeanor"]["events"]].count("tool_result") == 0


def test_what_sdks_send_back_is_accepted(server: Server) -> None:
    call = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
    }
    history = [
        *HI,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}], "parsed": None},
        *HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call],
            "parsed": {"a": 1},
            "refusal": None,
            "annotations": [],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    assert ask(server, CHAT, messages=history, max_tokens=2)["choices"][0]["finish_reason"] in (
        "length",
        "stop",
    )


def test_the_output_of_a_call_may_be_a_list_of_parts(server: Server) -> None:
    items = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
    ]
    listed = ask(server, RESPONSES, input=items, max_output_tokens=5, model="fuzz")
    items[1]["output"] = "sunny"  # type: ignore[assignment]
    plain = ask(server, RESPONSES, input=items, max_output_tokens=5, model="fuzz")
    text = [x["output"][0]["content"][0]["text"] for x in (listed, plain)]
    assert text[0] == text[1]
    counts = [[x["usage"][name] for name in ("input_tokens", "output_tokens")] for x in (listed, plain)]
    assert counts[0] == counts[1]


def test_a_stop_string_cuts_json_as_it_does_elsewhere(server: Server) -> None:
    wanted = form(
        {
            "type": "object",
            "properties": {"a": {"const": 1}, "b": {"const": 2}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    )
    (choice,) = ask(server, CHAT, messages=HI, max_tokens=60, response_format=wanted, stop=[","])["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"a":1', "stop")


def test_thousands_of_calls_are_read_and_written_beside_the_loop(server: Server) -> None:
    """No single step of the loop computes for long: checking, matching with their results, and writing the prompt."""
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": ""}} for i in range(6000)
    ]
    results = [{"role": "tool", "tool_call_id": "c5999", "content": "x"} for _ in range(900)]
    longest = []
    for _ in range(3):  # the collector of garbage may run in the loop's thread once, not each time
        server.watched.longest_s = 0.0
        status, param, message = refused(
            server, CHAT, messages=[*HI, {"role": "assistant", "tool_calls": calls}, *results]
        )
        longest.append(server.watched.longest_s)
    assert (status, param) == (400, "messages"), message
    assert "context" in message
    assert min(longest) < 0.1, "in thread seconds; the same work took 0.4 s on the loop"
