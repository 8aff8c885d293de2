"""Every documented request field is honoured or refused by name; the table below is the contract."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai.types.chat as sdk
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.shared_params import FunctionDefinition
from scripted import Scripted, body

from demeanor.core.errors import RequestError
from demeanor.core.types import Decoding, Message, OutputFormat, ToolCall, ToolSpec, Trust, Turn
from demeanor.server import chat_request, schemas
from demeanor.server.assistant import ModelCard
from demeanor.server.chat_request import ChatRequest, chat_turns, derived_seed
from demeanor.server.schemas import parse_body

CARD = ModelCard("harbour-desk", "", "key", ())
DEFAULTS = Decoding(
    temperature=0.5,
    top_p=0.9,
    max_tokens=99,
    stop=("###",),
    top_k=50,
    min_p=0.02,
    presence_penalty=0.125,
    frequency_penalty=0.25,
)


def turn(**fields: Any) -> Turn:
    return chat_turns(
        parse_body(orjson.dumps(body(**fields)), ChatRequest), CARD, DEFAULTS, user=None, id="id"
    )[0]


TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": {"type": "object"}},
}


def schema(strict: bool | None) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "whole", "schema": {"type": "integer"}, "strict": strict},
    }


Table = dict[str, tuple[list[tuple[Any, Callable[[Turn], object], object]], list[Any]]]
FIELDS: Table = {  # field: (honoured values, what of the Turn shows it, what it should be), refused values
    "model": ([], [3, None]),
    "messages": ([], [[], None, "hi", [3]]),
    "temperature": (
        [
            (0, lambda t: t.decoding.temperature, 0.0),
            (2, lambda t: t.decoding.temperature, 2.0),
            (None, lambda t: t.decoding.temperature, 0.5),
        ],
        ["0.5", -0.1, 2.1, True, [1]],
    ),
    "top_p": (
        [(0.3, lambda t: t.decoding.top_p, 0.3), (None, lambda t: t.decoding.top_p, 0.9)],
        [0, 1.1, "1"],
    ),
    "max_tokens": (
        [(7, lambda t: t.decoding.max_tokens, 7), (None, lambda t: t.decoding.max_tokens, 99)],
        [0, -1, 1.5, "7"],
    ),
    "max_completion_tokens": ([(7, lambda t: t.decoding.max_tokens, 7)], [0, "7", False]),
    "seed": (
        [
            (11, lambda t: t.decoding.seed, 11),
            (-1, lambda t: t.decoding.seed, -1),
            (None, lambda t: t.decoding.seed, None),
        ],
        ["11", 1.5, True],
    ),
    "stop": (
        [
            ("x", lambda t: t.decoding.stop, ("x",)),
            (["x", "yz"], lambda t: t.decoding.stop, ("x", "yz")),
            ([], lambda t: t.decoding.stop, ()),
            (None, lambda t: t.decoding.stop, ("###",)),
        ],
        ["", [""], ["a"] * 5, 3, [3], "x" * 65],
    ),
    "n": ([(1, lambda t: t.id, "id"), (None, lambda t: t.id, "id")], [0, 9, "2", True]),
    "stream": ([(False, lambda t: t.id, "id"), (None, lambda t: t.id, "id")], ["true", 1]),
    "stream_options": ([(None, lambda t: t.id, "id")], [{"include_usage": True}, []]),
    "tools": (
        [
            ([TOOL], lambda t: t.tools, (ToolSpec("weather", "the weather", {"type": "object"}),)),
            ([], lambda t: t.tools, ()),
            (None, lambda t: t.tools, ()),
        ],
        [[TOOL, TOOL], [{"type": "custom"}], [{"type": "function"}], {}, [TOOL] * 129],
    ),
    "tool_choice": (
        [
            ("auto", lambda t: t.tool_choice, "auto"),
            ("none", lambda t: t.tool_choice, "none"),
            (None, lambda t: t.tool_choice, "auto"),
        ],  # what needs tools is tested below
        [
            "required",
            {"type": "function", "function": {"name": "weather"}},
            "any",
            3,
            {"type": "allowed_tools"},
        ],
    ),
    "logprobs": (
        [(True, lambda t: t.decoding.top_logprobs, 0), (False, lambda t: t.decoding.top_logprobs, None)],
        ["true", 1],
    ),
    "top_logprobs": (
        [(None, lambda t: t.decoding.top_logprobs, None)],
        [3, -1, 21],
    ),  # without logprobs: true
    "user": (
        [
            ("ann", lambda t: (t.user, t.metadata["user"]), ("ann", "ann")),
            (None, lambda t: t.user, "anonymous"),
        ],
        ["", 3, "x" * 257],
    ),
    "metadata": (
        [({"a": "b"}, lambda t: t.metadata, {"a": "b"})],
        [{"a": 1}, {"a" * 65: "b"}, {"a": "b" * 513}, {str(i): "x" for i in range(17)}, "a"],
    ),
    "response_format": (
        [
            ({"type": "text"}, lambda t: t.decoding.form, None),
            (None, lambda t: t.decoding.form, None),
            ({"type": "json_object"}, lambda t: t.decoding.form, OutputFormat("json_object")),
            *(
                (
                    schema(strict),
                    lambda t: t.decoding.form,
                    OutputFormat("json_schema", '{"type": "integer"}'),
                )
                for strict in (True, False, None)
            ),
        ],
        [
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
            "text",
            {"type": "grammar"},
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        ],
    ),
    "frequency_penalty": (
        [
            (0.1, lambda t: t.decoding.frequency_penalty, 0.1),
            (-2, lambda t: t.decoding.frequency_penalty, -2.0),
            (None, lambda t: t.decoding.frequency_penalty, 0.25),
        ],
        [2.1, -2.1, False, "0"],
    ),
    "presence_penalty": (
        [
            (2, lambda t: t.decoding.presence_penalty, 2.0),
            (None, lambda t: t.decoding.presence_penalty, 0.125),
        ],
        [2.1, "0"],
    ),
    "logit_bias": (
        [
            ({}, lambda t: t.decoding.logit_bias, ()),
            (None, lambda t: t.decoding.logit_bias, ()),
            ({"5": 1, "0": -100}, lambda t: t.decoding.logit_bias, ((5, 1.0), (0, -100.0))),
        ],
        [{"5": 101}, {"x": 1}, {"-1": 1}, {"5": True}, [], {str(i): 0 for i in range(1025)}],
    ),
    "parallel_tool_calls": ([(True, lambda t: t.id, "id")], [1, "false"]),
    "top_k": (
        [
            (40, lambda t: t.decoding.top_k, 40),
            (0, lambda t: t.decoding.top_k, None),
            (-1, lambda t: t.decoding.top_k, None),
            (None, lambda t: t.decoding.top_k, 50),
        ],
        [-2, 1.5, "40", True],
    ),
    "min_p": (
        [
            (0.1, lambda t: t.decoding.min_p, 0.1),
            (0, lambda t: t.decoding.min_p, 0.0),
            (None, lambda t: t.decoding.min_p, 0.02),
        ],
        [-0.1, 1.1, "0"],
    ),
    "approval": (  # checked and used by server/approvals.py; tests/server/test_server_approvals.py
        [
            (
                {"token": "v1.a.b", "decisions": [{"call_id": "c", "approve": True}]},
                lambda t: t.approvals,
                None,
            )
        ],
        [
            {},
            {"token": "", "decisions": [{"call_id": "c", "approve": True}]},
            {"token": "t", "decisions": []},
            {"token": "t", "decisions": [{"call_id": "c"}]},
            {"token": "t", "decisions": [{"call_id": "c", "approve": "yes"}]},
            {"token": "t", "decisions": [{"call_id": "c", "approve": True, "reason": "x" * 1001}]},
        ],
    ),
    "modalities": ([(["text"], lambda t: t.id, "id")], [["text", "audio"], "text"]),
    "service_tier": ([("auto", lambda t: t.id, "id"), ("default", lambda t: t.id, "id")], ["flex"]),
    **{
        name: ([(None, lambda t: t.id, "id")], [value])
        for name, value in {
            "audio": {"voice": "ash", "format": "wav"},
            "functions": [{"name": "f"}],
            "function_call": "auto",
            "moderation": {},
            "prediction": {"type": "content", "content": ""},
            "prompt_cache_key": "k",
            "prompt_cache_options": {},
            "prompt_cache_retention": "24h",
            "reasoning_effort": "low",
            "safety_identifier": "s",
            "store": False,
            "verbosity": "low",
            "web_search_options": {},
        }.items()
    },
}


OURS = {"top_k", "min_p", "approval"}  # vLLM's names, and our own


def test_the_table_and_the_schema_hold_every_field_that_the_openai_sdk_documents() -> None:
    documented = {*CompletionCreateParamsBase.__annotations__, "stream", *OURS}
    assert set(FIELDS) == documented == set(chat_request.ChatRequest.model_fields)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (chat_request.SystemMessage, sdk.ChatCompletionSystemMessageParam),
        (chat_request.UserMessage, sdk.ChatCompletionUserMessageParam),
        (chat_request.SystemMessage, sdk.ChatCompletionDeveloperMessageParam),
        (chat_request.AssistantMessage, sdk.ChatCompletionAssistantMessageParam),
        (chat_request.ToolMessage, sdk.ChatCompletionToolMessageParam),
        (schemas.TextPart, sdk.ChatCompletionContentPartTextParam),
        (chat_request.FunctionTool, FunctionDefinition),
        (chat_request.OfferedTool, sdk.ChatCompletionFunctionToolParam),
        (chat_request.Call, sdk.ChatCompletionMessageFunctionToolCallParam),
        (schemas.StreamOptions, sdk.ChatCompletionStreamOptionsParam),
    ],
)
def test_no_nested_field_of_the_sdk_is_unknown_here(ours: type[schemas.Body], theirs: Any) -> None:
    assert set(theirs.__annotations__) <= set(ours.model_fields)


HONOURED = [(name, value, shown, want) for name, (good, _) in FIELDS.items() for value, shown, want in good]
REFUSED = [(name, value) for name, (_, bad) in FIELDS.items() for value in bad]


@pytest.mark.parametrize(
    ("name", "value", "shown", "want"), HONOURED, ids=lambda v: "shown" if callable(v) else str(v)[:30]
)
def test_an_accepted_value_shows_in_the_turn(
    name: str, value: Any, shown: Callable[[Turn], object], want: object
) -> None:
    assert shown(turn(**{name: value})) == want


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda v: str(v)[:30])
async def test_any_other_value_is_a_400_that_names_the_field(
    client: httpx.AsyncClient, name: str, value: Any
) -> None:
    response = await client.post("/v1/chat/completions", json={**body(), name: value})
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["param"].startswith(name)
    assert error["message"].startswith(name)


@pytest.mark.parametrize("name", [n for n, (good, bad) in FIELDS.items() if len(good) == 1 and len(bad) == 1])
def test_a_field_nothing_can_honour_says_why(name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}: not supported: .{{8,}}; (leave it out|accepted: )"):
        turn(**{name: FIELDS[name][1][0]})


MISTAKES: list[tuple[dict[str, Any], str, str, str]] = [  # fields, param, code, part of the message
    ({"temprature": 1}, "temprature", "unknown_parameter", "Did you mean 'temperature'?"),
    ({"top_m": 40}, "top_m", "unknown_parameter", "Did you mean 'top_p'?"),
    (
        {"messages": [{"role": "data", "content": "obey"}]},
        "messages[0].role",
        "invalid_value",
        "Known: assistant, developer",
    ),
    (
        {"messages": [{"role": "usr", "content": "x"}]},
        "messages[0].role",
        "invalid_value",
        "Did you mean 'user'?",
    ),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", "field required"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "field required"),
    (
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content",
        "invalid_type",
        "valid string, got null",
    ),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value", "at least 1"),
    (
        {"messages": [{"role": "user", "content": "x", "contnet": "y"}]},
        "messages[0].contnet",
        "unknown_parameter",
        "'content'?",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
        "unknown type 'image_url'",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
        "messages[0].content[0].text",
        "invalid_type",
        "3",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "name": "a b"}]},
        "messages[0].name",
        "invalid_value",
        "pattern",
    ),
    (
        {"messages": [{"role": "assistant"}]},
        "messages[0].content",
        "missing_required_parameter",
        "unless tool_calls",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "missing_required_parameter",
        "field required",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}}
            ]
        },
        "messages[0].function_call",
        "unsupported_parameter",
        "tool_calls",
    ),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
        "messages[0].tool_call_id",
        "invalid_value",
        "'a'",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
        "pattern",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
        "tools[0].function.strict",
        "invalid_type",
        "boolean",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value", "needs tools"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "wether"}}},
        "tool_choice.function.name",
        "invalid_value",
        "Did you mean 'weather'?",
    ),
    (
        {"response_format": {"type": "json"}},
        "response_format.type",
        "invalid_value",
        "Known: json_object, json_schema, text",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "shema": {}}}},
        "response_format.json_schema.shema",
        "unknown_parameter",
        "Did you mean 'schema'?",
    ),
    (
        {"logit_bias": {"ferry": 1}},
        "logit_bias",
        "invalid_value",
        "got the key 'ferry', wanted token ids as text",
    ),
    (
        {"stream": True, "stream_options": {"include_usge": True}},
        "stream_options.include_usge",
        "unknown_parameter",
        "include_usage",
    ),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "unsupported_value",
        "",
    ),
    (
        {"max_tokens": 5, "max_completion_tokens": 6},
        "max_tokens",
        "invalid_value",
        "differs from max_completion_tokens",
    ),
    ({"user": "ann", "metadata": {"user": "bob"}}, "metadata.user", "invalid_value", "already given"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type", "valid string"),
]


@pytest.mark.parametrize(("fields", "param", "code", "part"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_told_with_its_path(fields: dict[str, Any], param: str, code: str, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        turn(**fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert part in str(caught.value)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(RequestError, match=r"^temperature: .*; n: ") as caught:
        turn(temperature=9, n=0)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"temperature": NaN}', b"[" * 5000])
def test_what_is_not_json_is_a_400(raw: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        parse_body(raw, ChatRequest)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("raw", [b"[]", b"3", b"null"])
def test_json_that_is_no_object_is_a_400(raw: bytes) -> None:
    with pytest.raises(RequestError, match="should be a JSON object"):
        parse_body(raw, ChatRequest)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type", "x"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_no_body_whatever_escapes_as_anything_but_a_named_400(fields: dict[str, Any]) -> None:
    error = None
    try:
        parse_body(orjson.dumps({**body(), **fields}), ChatRequest)
    except RequestError as caught:
        error = caught
    assert error is None or (
        error.status == 400 and error.param is not None and error.param.split(".")[0].split("[")[0] in FIELDS
    )


@pytest.mark.parametrize(
    ("choice", "want"),
    [("required", "required"), ({"type": "function", "function": {"name": "weather"}}, "weather")],
)
def test_a_demanded_call_stands_in_the_turn_by_name(choice: Any, want: str) -> None:
    assert turn(tools=[TOOL], tool_choice=choice).tool_choice == want


def test_a_strict_tool_is_strict_in_the_turn() -> None:
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    assert [turn(tools=[t]).tools[0].strict for t in (TOOL, strict)] == [None, True]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("parallel", "want"), [(True, 2), (False, 1), (None, 2)])
async def test_without_parallel_calls_at_most_one_is_returned(
    client: httpx.AsyncClient, parallel: bool | None, want: int, stream: bool
) -> None:
    fields = {"tools": [TOOL], "parallel_tool_calls": parallel, "stream": stream}
    response = await client.post("/v1/chat/completions", json=body("weather?", **fields))
    told = 2  # the trace tells of every call the model made
    assert response.text.count('"id":"call_') == want + told


def test_messages_keep_their_roles_authority_and_calls() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "not json"}}
    made = turn(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "u", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
            {"role": "assistant", "refusal": "no"},
        ]
    ).messages
    assert made == (
        Message("system", "s"),
        Message("developer", "a\nb"),
        Message("user", "u", name="ann"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "f", "not json"),)),
        Message("tool", "r", tool_call_id="c1"),
        Message("assistant", "no"),
    )
    assert [m.authority for m in made] == [
        Trust.SYSTEM,
        Trust.DEVELOPER,
        Trust.USER,
        Trust.NONE,
        Trust.NONE,
        Trust.NONE,
    ]


def test_further_choices_have_their_own_ids_and_seeds_and_the_first_keeps_its_seed() -> None:
    made = chat_turns(
        parse_body(orjson.dumps(body(n=3, seed=5)), ChatRequest), CARD, DEFAULTS, user=None, id="id"
    )
    assert [t.id for t in made] == ["id", "id-1", "id-2"]
    seeds = [t.decoding.seed for t in made]
    assert seeds == [5, derived_seed(5, 1), derived_seed(5, 2)]
    assert len({*seeds, derived_seed(6, 1), derived_seed(4, 2)}) == 5
    assert all(0 <= derived_seed(s, 1) < 2**53 for s in range(-50, 50))


def test_without_a_seed_no_choice_has_one() -> None:
    made = chat_turns(parse_body(orjson.dumps(body(n=2)), ChatRequest), CARD, DEFAULTS, user=None, id="id")
    assert [t.decoding.seed for t in made] == [None, None]


def test_the_owner_of_a_key_is_the_user_whatever_the_request_says() -> None:
    made = chat_turns(
        parse_body(orjson.dumps(body(user="mallory")), ChatRequest), CARD, DEFAULTS, user="ann", id="id"
    )[0]
    assert (made.user, made.metadata) == ("ann", {"user": "mallory"})


async def test_the_turn_is_stamped_with_variant_and_stack_key(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    response = await client.post("/v1/chat/completions", json=body())
    made = assistant.turns[0]
    assert (made.variant, made.stack_key) == ("harbour-desk", "5f0c9a1be47d")
    assert made.id == response.json()["id"]


def test_the_documentation_has_a_row_for_every_field() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(FIELDS) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
