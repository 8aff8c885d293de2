"""The real openai SDK over a real socket against the scripted assistant."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest
from live import served
from openai import OpenAI
from scripted import Scripted

ASSISTANT = Scripted()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "weather at a port",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def sdk() -> Iterator[OpenAI]:
    """A client of a server on a free port."""
    with served(ASSISTANT) as url, OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_plain_answer(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="harbour-desk", messages=user("hello"), temperature=0, max_tokens=20
    )
    assert answer.choices[0].message.content == "Good morning from the harbour desk."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 30
    assert answer.model_extra is not None
    assert answer.model_extra["demeanor"]["stack_key"] == "5f0c9a1be47d"
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


def test_a_streamed_answer_with_usage(sdk: OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model="harbour-desk", messages=user("hello"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
        == "Good morning from the harbour desk."
    )
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["demeanor"]["ms"] >= 0


@pytest.mark.parametrize("text", ["hello", "the ferry?", "weather"])
def test_the_sdks_own_accumulator_gives_the_plain_answer(sdk: OpenAI, text: str) -> None:
    asked = {"model": "harbour-desk", "messages": user(text), "tools": [WEATHER], "logprobs": True}
    with sdk.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    plain = sdk.chat.completions.create(**asked)
    ours, theirs = plain.choices[0], streamed.choices[0]
    assert (theirs.message.content or None) == (ours.message.content or None)
    assert theirs.finish_reason == ours.finish_reason
    assert [(c.id, c.function.name, c.function.arguments) for c in theirs.message.tool_calls or ()] == [
        (c.id, c.function.name, c.function.arguments) for c in ours.message.tool_calls or ()
    ]
    tokens = [[t.token for t in (c.logprobs.content if c.logprobs else None) or ()] for c in (ours, theirs)]
    assert tokens[0] == tokens[1]


def test_a_refusal_reaches_the_sdk_in_both_forms(sdk: OpenAI) -> None:
    plain = sdk.chat.completions.create(model="harbour-desk", messages=user("a card number")).choices[0]
    assert plain.message.refusal == plain.message.content == "I cannot share anybody's card number."
    assert plain.finish_reason == "content_filter"
    with (
        sdk.chat.completions.stream(model="harbour-desk", messages=user("a card number")) as stream,
        pytest.raises(openai.ContentFilterFinishReasonError) as caught,
    ):
        stream.get_final_completion()
    assert caught.value.completion.choices[0].message.refusal == plain.message.refusal


def test_a_tools_round_trip(sdk: OpenAI) -> None:
    messages = user("weather, please")
    first = sdk.chat.completions.create(model="harbour-desk", messages=messages, tools=[WEATHER])
    assert first.choices[0].finish_reason == "tool_calls"
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    assert [c.function.arguments for c in calls] == ['{"port": "Corkel"}', '{"port": "Jorpel"}']
    history = [
        *messages,
        first.choices[0].message,
        *({"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in calls),
    ]
    second = sdk.chat.completions.create(model="harbour-desk", messages=history, tools=[WEATHER])
    assert second.choices[0].message.content == "The tool says rain"
    seen = ASSISTANT.turns[-1].messages
    assert [m.role for m in seen] == ["user", "assistant", "tool", "tool"]
    assert [c.id for c in seen[1].tool_calls] == [m.tool_call_id for m in seen[2:]] == ["call_w1", "call_w2"]


def test_logprobs_n_stop_and_seed_reach_the_turn(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="harbour-desk",
        messages=user("hello"),
        logprobs=True,
        top_logprobs=2,
        n=2,
        seed=7,
        stop=["\n", "END"],
        top_p=0.4,
        user="ann",
        metadata={"run": "1"},
    )
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[1].logprob == -1.75
    turn = next(t for t in ASSISTANT.turns if t.id == answer.id)
    assert (turn.decoding.seed, turn.decoding.stop, turn.decoding.top_p) == (7, ("\n", "END"), 0.4)
    assert (turn.decoding.top_logprobs, turn.user, turn.metadata) == (2, "ann", {"run": "1", "user": "ann"})


@pytest.mark.parametrize(
    ("text", "fields", "error", "code"),
    [
        ("hello", {"temperature": 7}, openai.BadRequestError, "invalid_value"),
        ("hello", {"verbosity": "low"}, openai.BadRequestError, "unsupported_parameter"),
        ("hello", {"extra_body": {"top_m": 3}}, openai.BadRequestError, "unknown_parameter"),
        ("hello", {"model": "harbour"}, openai.NotFoundError, "model_not_found"),
        ("a novel", {}, openai.BadRequestError, "context_length_exceeded"),
        ("too fast", {}, openai.RateLimitError, "rate_limit_exceeded"),
        ("crash", {}, openai.InternalServerError, "internal_error"),
        ("drain", {}, openai.InternalServerError, "cancelled"),
    ],
)
def test_errors_are_the_sdks_own_classes(
    sdk: OpenAI,
    text: str,
    fields: dict[str, object],
    error: type[openai.APIStatusError],
    code: str,
) -> None:
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(**{"model": "harbour-desk", "messages": user(text), **fields})
    assert caught.value.code == code
    assert caught.value.request_id is not None
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_an_error_in_mid_stream_is_raised_by_the_sdk(sdk: OpenAI) -> None:
    stream = sdk.chat.completions.create(model="harbour-desk", messages=user("crash later"), stream=True)
    said = [next(stream).choices[0].delta.content for _ in range(2)]
    assert said == ["", "Half an "]
    with pytest.raises(openai.APIError, match="under req_"):
        next(stream)


def test_the_sdk_waits_as_told_and_tries_again(sdk: OpenAI) -> None:
    before = len(ASSISTANT.turns)
    with pytest.raises(openai.RateLimitError):
        sdk.with_options(max_retries=2).chat.completions.create(
            model="harbour-desk", messages=user("too fast")
        )
    assert len(ASSISTANT.turns) - before == 3


def test_a_stream_that_the_client_closes_ends_the_turn(sdk: OpenAI) -> None:
    before = ASSISTANT.closed
    with sdk.chat.completions.create(model="harbour-desk", messages=user("forever"), stream=True) as stream:
        for _, _chunk in zip(range(3), stream):
            pass
    until = time.monotonic() + 120
    while ASSISTANT.closed == before and time.monotonic() < until:
        time.sleep(0.01)
    assert ASSISTANT.closed == before + 1


def test_models_are_listed_and_retrieved(sdk: OpenAI) -> None:
    assert [m.id for m in sdk.models.list()][:2] == ["harbour-desk", "harbour-desk:base"]
    assert sdk.models.retrieve("harbour-desk:sft+prompt").id == "harbour-desk:sft+prompt"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nothing")
