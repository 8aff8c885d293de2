"""Raw text through /v1/completions: every field, whole and streamed, and the openai SDK over a socket."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from live import served
from openai import OpenAI
from openai.types.completion_create_params import CompletionCreateParamsBase
from scripted import Bytes, Scripted

from demeanor.core.types import Decoding, Turn
from demeanor.server.completions import CompletionRequest, completion_turns
from demeanor.server.schemas import parse_body

ASSISTANT = Scripted()
BASE = "harbour-desk:base"


def raw(prompt: Any = "The ferry", **fields: Any) -> dict[str, Any]:
    return {"model": BASE, "prompt": prompt, **fields}


def turn(**fields: Any) -> Turn:
    asked = parse_body(orjson.dumps(raw() | fields), CompletionRequest)
    return completion_turns(asked, Bytes(), ASSISTANT.card(BASE), ASSISTANT.defaults(), user=None, id="id")[0]


FIELDS: dict[str, tuple[list[tuple[Any, Callable[[Turn], object], object]], list[Any]]] = {
    "model": ([], [3, None]),
    "prompt": (
        [
            ("Hi", lambda t: (t.raw, t.messages[0].content), ((72, 105), "Hi")),
            (["Hi"], lambda t: t.raw, (72, 105)),
            ([72, 105], lambda t: (t.raw, t.messages[0].content), ((72, 105), "Hi")),
            ([[72]], lambda t: t.raw, (72,)),
        ],
        ["", [], [[]], None, 3, [""], [1, "a"], ["a", 1], [[1], "a"], [-1], [1.5], [True], ["a"] * 257],
    ),
    "max_tokens": (
        [(7, lambda t: t.decoding.max_tokens, 7), (None, lambda t: t.decoding.max_tokens, 99)],
        [0, -1, "7"],
    ),
    "temperature": (
        [(0, lambda t: t.decoding.temperature, 0.0), (None, lambda t: t.decoding.temperature, 0.5)],
        [2.1, "0"],
    ),
    "top_p": ([(0.3, lambda t: t.decoding.top_p, 0.3)], [0, 1.1]),
    "top_k": ([(5, lambda t: t.decoding.top_k, 5)], [-2]),
    "min_p": ([(0.3, lambda t: t.decoding.min_p, 0.3)], [1.1]),
    "seed": ([(11, lambda t: t.decoding.seed, 11)], ["11"]),
    "stop": (
        [(["x"], lambda t: t.decoding.stop, ("x",)), (None, lambda t: t.decoding.stop, ("###",))],
        [[""]],
    ),
    "n": ([(1, lambda t: t.id, "id")], [0, 9]),
    "best_of": ([(1, lambda t: t.id, "id"), (None, lambda t: t.id, "id")], [2]),
    "echo": ([(True, lambda t: t.decoding.prompt_logprobs, None)], ["true"]),
    "logprobs": (
        [
            (0, lambda t: (t.decoding.top_logprobs, t.decoding.prompt_logprobs), (0, None)),
            (20, lambda t: t.decoding.top_logprobs, 20),
            (None, lambda t: t.decoding.top_logprobs, None),
        ],
        [21, True, -1],
    ),
    "presence_penalty": ([(1, lambda t: t.decoding.presence_penalty, 1.0)], [2.1]),
    "frequency_penalty": ([(1, lambda t: t.decoding.frequency_penalty, 1.0)], [2.1]),
    "logit_bias": ([({"5": -100}, lambda t: t.decoding.logit_bias, ((5, -100.0),))], [{"a": 1}]),
    "stream": ([(False, lambda t: t.id, "id")], [1]),
    "stream_options": ([(None, lambda t: t.id, "id")], [{"include_usage": True}]),
    "suffix": ([(None, lambda t: t.id, "id")], ["end"]),
    "user": ([("ann", lambda t: (t.user, t.metadata), ("ann", {"user": "ann"}))], [""]),
}


def test_every_field_of_the_sdk_is_in_the_table_and_in_the_schema() -> None:
    documented = {*CompletionCreateParamsBase.__annotations__, "stream", "top_k", "min_p"}
    assert set(FIELDS) == documented == set(CompletionRequest.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "shown", "want"),
    [(name, *case) for name, (good, _) in FIELDS.items() for case in good],
    ids=lambda v: "f" if callable(v) else str(v)[:20],
)
def test_an_accepted_value_shows_in_the_raw_turn(
    name: str, value: Any, shown: Callable[[Turn], object], want: object
) -> None:
    assert shown(turn(**{name: value})) == want


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, bad) in FIELDS.items() for value in bad],
    ids=lambda v: str(v)[:20],
)
async def test_any_other_value_of_a_raw_request_is_a_400_that_names_it(
    client: httpx.AsyncClient, name: str, value: Any
) -> None:
    response = await client.post("/v1/completions", json=raw() | {name: value})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith(name)
    assert error["message"].startswith(name)


async def post(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=raw() | fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_continuation_has_openais_legacy_shape(client: httpx.AsyncClient) -> None:
    answer = await post(client)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["system_fingerprint"] == "a91e33c07b12"
    assert answer["choices"] == [{"index": 0, "text": " and on", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_echo_with_logprobs_tells_the_prompts_tokens_before_the_new_ones(
    client: httpx.AsyncClient,
) -> None:
    choice = (await post(client, prompt="Hi", echo=True, logprobs=1, max_tokens=1))["choices"][0]
    assert choice["text"] == "Hi and"
    assert choice["logprobs"] == {
        "tokens": ["H", "i", " and"],
        "token_logprobs": [None, -0.105, -0.5],
        "text_offset": [0, 1, 2],
        "top_logprobs": [None, {"?": -9.0, "i": -0.105}, {" or": -0.25, " and": -0.5}],
    }


@pytest.mark.parametrize("logprobs", [None, 0])
async def test_echo_alone_reads_the_prompt_and_says_nothing(
    client: httpx.AsyncClient, logprobs: int | None
) -> None:
    choice = (await post(client, prompt="Hi", echo=True, max_tokens=0, logprobs=logprobs))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert (choice["logprobs"] or {}).get("tokens") == (None if logprobs is None else ["H", "i"])


async def test_choices_stand_in_the_order_of_the_prompts_and_each_prompt_draws_as_alone(
    client: httpx.AsyncClient,
    assistant: Scripted,
) -> None:
    answer = await post(client, prompt=["a", "b"], n=2, seed=5, echo=True)
    assert [(c["index"], c["text"][0]) for c in answer["choices"]] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    seeds = {t.id[-2:]: t.decoding.seed for t in assistant.turns}
    assert seeds["-2"] == 5
    assert len({t.id for t in assistant.turns}) == 4
    assert seeds["-1"] == seeds["-3"] != 5


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"logprobs": 0},
        {"echo": True, "max_tokens": 0},
        {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 1},
        {"prompt": "leak"},
        {"prompt": "a card number"},
    ],
)
@pytest.mark.parametrize("with_usage", [True, False])
async def test_streamed_chunks_add_up_to_the_whole_continuation(
    client: httpx.AsyncClient, fields: dict[str, Any], with_usage: bool
) -> None:
    whole = await post(client, **fields)
    streamed = await client.post(
        "/v1/completions",
        json=raw() | fields | {"stream": True, "stream_options": {"include_usage": with_usage}},
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    frames = [x.removeprefix("data: ") for x in streamed.text.split("\n\n")]
    assert frames[-2:] == ["[DONE]", ""]
    chunks = [orjson.loads(x) for x in frames[:-2]]
    assert (chunks[-1].get("usage") == whole["usage"]) == with_usage
    assert "demeanor" in chunks[-1]
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["finish_reason"] == "content_filter":
            continue  # what had left before a refusal has left
        assert "".join(c["text"] for c in mine) == choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            assert [x for c in mine for x in (c["logprobs"] or {}).get(name, [])] == values


async def test_a_refused_prompt_is_answered_with_the_reply_and_not_echoed(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    for stream in (False, True):
        response = await client.post(
            "/v1/completions", json=raw("a leak", echo=True, logprobs=1, stream=stream)
        )
        assert "content_filter" in response.text
    choice = (await post(client, prompt="a leak", echo=True, logprobs=1))["choices"][0]
    assert choice == {
        "index": 0,
        "text": "I cannot say.",
        "logprobs": None,
        "finish_reason": "content_filter",
    }


async def test_a_variant_whose_layers_add_messages_says_which_id_to_ask(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=raw(model="harbour-desk"))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "model")
    assert "harbour-desk:base" in error["message"]


async def test_a_prompt_that_is_too_long_is_the_prompts_mistake(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await client.post("/v1/completions", json=raw("a novel", stream=stream))
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (
            400,
            "prompt",
            "context_length_exceeded",
        )


@pytest.mark.parametrize(("prompt", "param"), [([5, 256], "prompt"), ([[5], [300]], "prompt[1]")])
async def test_a_token_that_the_model_has_not_is_named(
    client: httpx.AsyncClient, prompt: Any, param: str
) -> None:
    error = (await client.post("/v1/completions", json=raw(prompt))).json()["error"]
    assert error["param"] == param
    assert "wanted ids of 0 to 255" in error["message"]


@pytest.fixture(scope="module")
def sdk() -> Iterator[OpenAI]:
    with served(ASSISTANT) as url, OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_the_sdk_continues_text_plain_and_streamed(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": BASE,
        "prompt": ["The", "A"],
        "max_tokens": 2,
        "logprobs": 1,
        "echo": True,
        "extra_body": {"top_k": 3},
    }
    plain = sdk.completions.create(**asked)
    assert [c.text for c in plain.choices] == ["The and on", "A and on"]
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.tokens == ["T", "h", "e", " and", " on"]
    chunks = list(sdk.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices and c.choices[0].index == 1) == "A and on"
    assert chunks[-1].usage == plain.usage
    with pytest.raises(openai.BadRequestError, match="suffix"):
        sdk.completions.create(model=BASE, prompt="x", suffix="y")


def test_the_stacks_own_settings_hold_where_the_request_says_nothing() -> None:
    assert turn().decoding == Decoding(temperature=0.5, top_p=0.9, max_tokens=99, stop=("###",))


def test_the_documentation_names_every_field_of_raw_requests() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    section = page.split("## `/v1/completions`")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FIELDS)
