"""What other servers really send: each shape is read, or is an UpstreamError; nothing else is raised, and nothing hangs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import UpstreamError
from demeanor.core.types import (
    Completion,
    Decoding,
    Message,
    Refusal,
    ToolCall,
    ToolSpec,
    Turn,
    Usage,
    complete,
)
from demeanor.engine.chat_stream import ServerSent, json_object, server_sent, told_error
from demeanor.engine.remote import RemoteModel, remote

USER = (Message("user", "Hello"),)
TURN = Turn(USER, Decoding(temperature=0))
URL = "http://127.0.0.1:9/v1"


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def call(id: Any, name: Any, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls(*parts: Any) -> dict[str, Any]:
    return chunk({"tool_calls": list(parts)})


def sse(*chunks: Any, done: bool = True) -> bytes:
    told = [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks]
    return b"".join(told) + (b"data: [DONE]\n\n" if done else b"")


class Canned(RemoteModel):
    """A remote model whose server sends given bytes."""

    sent: bytes = b""

    async def _received(self, body: bytes) -> AsyncGenerator[ServerSent, None]:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(self.sent), 97):
                yield self.sent[at : at + 97]

        async for event in server_sent(pieces(), self.url):
            yield event


def answer(sent: bytes, turn: Turn = TURN) -> Completion:
    plain = remote(URL, "m", timeout_s=5)
    canned = Canned(plain.url, plain.model, plain.address, None, 5.0, 5.0, 0)
    canned.sent = sent
    return asyncio.run(asyncio.wait_for(complete(canned, turn), 10))


def read(*chunks: Any, turn: Turn = TURN) -> Completion:
    return answer(sse(*chunks), turn)


HELLO = [chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop")]


@pytest.mark.parametrize(
    "sent",
    [
        sse(*HELLO),
        sse(*HELLO).replace(b"data: ", b"data:"),
        sse(*HELLO).replace(b"\n", b"\r\n"),
        sse(*HELLO).replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + sse(*HELLO),
        b": OPENROUTER PROCESSING\n\n: ping\n\n" + sse(*HELLO),
        b"event: message\nid: 1\nretry: 10\n" + sse(*HELLO),
        b"data:\n\ndata\n\n" + sse(*HELLO),
        sse(*HELLO).replace(b'"choices"', b'\ndata: "choices"'),
        sse(*HELLO, done=False),
        sse(*HELLO[:2]),
        sse(*(c | {"error": None} for c in HELLO)),
        sse(*(c | {"usage": None} for c in HELLO)),
        sse({"id": "x"}, {"choices": []}, {"type": "ping"}, *HELLO),
        sse({"choices": [{"delta": None}]}, {"choices": None}, *HELLO),
        sse(*HELLO[:2], {**chunk({}, "stop"), "choices": []}),
        sse(chunk({"content": "Hello"}, ""), chunk({}, "stop")),
        sse(chunk({"content": [{"type": "text", "text": "Hel"}, "lo"]}), chunk({}, "stop")),
        sse(chunk({"reasoning_content": "so", "content": None}), *HELLO),
        sse(chunk({"content": [{"type": "thinking", "thinking": "so"}]}), *HELLO),
        sse({"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}),
        sse({"choices": [{"text": "Hello", "finish_reason": "stop"}]}),
        sse(
            {
                "choices": [
                    {"index": i, "delta": {"content": t}, "finish_reason": "stop"}
                    for i, t in ((0, "Hello"), (1, "Bye"))
                ]
            }
        ),
        sse(
            {
                "choices": [
                    {"delta": {"content": "Hello"}, "finish_reason": "stop"},
                    {"delta": {"content": "Bye"}},
                ]
            }
        ),
        sse(*HELLO, done=False) + b"data: {broken\n\n",
    ],
)
def test_every_way_of_writing_a_stream_is_the_same_answer(sent: bytes) -> None:
    found = answer(sent)
    assert (found.text, found.finish_reason) == ("Hello", "stop")


PARIS, LIMA = '{"city": "Paris"}', '{"city": "Lima"}'
F, G = "get_weather", "get_time"


@pytest.mark.parametrize(
    ("chunks", "want"),
    [
        ([calls(call("a", F, PARIS))], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS, index=None))], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS, index="0"))], [("a", F, PARIS)]),
        ([calls(call("a", F, {"city": "Paris"}, index=0))], [("a", F, PARIS)]),
        ([calls(call("a", F, None, index=0)), calls({"index": 0, "function": {"arguments": PARIS}})], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS[:8], index=0)), calls(call("a", F, PARIS[8:], index=0))], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS[:8])), calls(call(None, F, PARIS[8:]))], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS[:8], index=0)), calls(call("b", F, PARIS[8:], index=0))], [("a", F, PARIS)]),
        ([calls(call("a", "get_", "", index=0)), calls(call("a", "weather", PARIS, index=0))], [("a", F, PARIS)]),
        ([calls(call("a", F, PARIS, index=0)), calls(call("a", F, PARIS, index=0))], [("a", F, PARIS)]),
        ([calls(call("a", F, "", index=0))], [("a", F, "{}")]),
        ([calls(call("a", F, PARIS, index=0), call("b", G, "{}", index=0))], [("a", F, PARIS), ("b", G, "{}")]),
        ([calls(call("a", F, PARIS, index=0)), calls(call("b", F, LIMA, index=0))], [("a", F, PARIS), ("b", F, LIMA)]),
        ([calls(call("a", F, PARIS)), calls(call("b", F, LIMA))], [("a", F, PARIS), ("b", F, LIMA)]),
        ([calls(call(None, F, PARIS), call(None, F, LIMA))], [("call_0", F, PARIS), ("call_1", F, LIMA)]),
        ([calls(call("", F, PARIS, index=0)), calls(call("", G, "{}", index=1))], [("call_0", F, PARIS), ("call_1", G, "{}")]),
        ([calls(call("c", F, PARIS, index=0), call("c", F, LIMA, index=1))], [("c", F, PARIS), ("call_1", F, LIMA)]),
        ([calls(call("c", F, PARIS, index=0)), calls(call("c", F, LIMA, index=0))], [("c", F, PARIS), ("call_1", F, LIMA)]),
        ([calls(call("a", F, "", index=3), call("b", G, "", index=1)), calls({"index": 3, "function": {"arguments": PARIS}})], [("a", F, PARIS), ("b", G, "{}")]),
        ([calls(call("x" * 200, F, PARIS))], [("call_0", F, PARIS)]),
        ([calls(call(7, F, PARIS))], [("7", F, PARIS)]),
        ([calls(call("a", F, "", index=0)), calls({"index": 0, "function": {"arguments": PARIS}}), calls(call("b", F, "", index=0)), calls({"index": 0, "function": {"arguments": LIMA}})], [("a", F, PARIS), ("b", F, LIMA)]),
        ([calls(call("a", F, PARIS, index=0)), calls(call("a", F, "", index=0))], [("a", F, PARIS)]),
        ([calls({"function": {"name": F, "arguments": ""}}), calls({"function": {"arguments": PARIS}})], [("call_0", F, PARIS)]),
        ([calls({"id": "a", "name": F, "arguments": PARIS})], [("a", F, PARIS)]),
        ([chunk({"tool_calls": call("a", F, PARIS)})], [("a", F, PARIS)]),
        ([chunk({"function_call": {"name": F, "arguments": PARIS[:8]}}), chunk({"function_call": {"arguments": PARIS[8:]}})], [("call_0", F, PARIS)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("finish", ["tool_calls", "stop", "function_call"])
def test_calls_keep_their_number_names_arguments_and_ids(
    chunks: list[Any], want: list[tuple[str, str, str]], finish: str
) -> None:
    found = read(*chunks, chunk({}, finish))
    assert [(c.id, c.name, c.arguments) for c in found.tool_calls] == want
    assert found.finish_reason == "tool_calls"


def test_an_id_of_an_earlier_call_of_the_conversation_is_replaced() -> None:
    asked = Message("assistant", "", (ToolCall("call_0", F, PARIS),))
    turn = Turn((*USER, asked, Message("tool", "9", tool_call_id="call_0")), Decoding())
    found = read(calls(call("call_0", F, LIMA, index=0)), chunk({}, "stop"), turn=turn)
    assert [c.id for c in found.tool_calls] == ["call_1"]


@pytest.mark.parametrize(
    ("told", "want"),
    [
        *((name, "stop") for name in ("end_turn", "eos", "STOP", "stop_sequence", "COMPLETE", "FinishReason.STOP")),
        *((name, "length") for name in ("max_tokens", "MAX_TOKENS", "model_length")),
        *((name, "content_filter") for name in ("SAFETY", "refusal", "recitation")),
        *((name, "stop") for name in ("tool_use", "function_call")),
    ],
)  # fmt: skip
def test_reasons_to_finish_of_other_servers_are_mapped(told: str, want: str) -> None:
    assert read(chunk({"content": "Hello"}), chunk({}, told)).finish_reason == want


@pytest.mark.parametrize("told", ["error", "network_error", "aborted", "cancelled", "bored"])
def test_an_answer_that_its_server_did_not_finish_is_an_error(told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        read(chunk({"content": "Hello"}), chunk({}, told))


@pytest.mark.parametrize(
    ("usage", "want"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2)),
        ({"prompt_tokens": "3", "completion_tokens": 2.0}, Usage(3, 2)),
        ({"prompt_tokens": 3, "total_tokens": 5}, Usage(3, 2)),
        ({"completion_tokens": 2, "total_tokens": 5}, Usage(3, 2)),
        ({"total_tokens": 5}, Usage(6, 2, estimated=True)),
        ({"prompt_tokens": 3}, Usage(3, 2, estimated=True)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(6, 2, estimated=True)),
        ({"prompt_tokens": -3, "completion_tokens": True}, Usage(6, 2, estimated=True)),
        ({"prompt_tokens": 10**400, "completion_tokens": float("nan")}, Usage(6, 2, estimated=True)),
        ({}, Usage(6, 2, estimated=True)),
        ("none", Usage(6, 2, estimated=True)),
        (None, Usage(6, 2, estimated=True)),
    ],
)
def test_usage_that_is_not_told_is_estimated_and_counted_as_unknown(usage: Any, want: Usage) -> None:
    found = read(*HELLO, {"choices": [], "usage": usage})
    assert [e for e in found.events if isinstance(e, Usage)] == [want]
    assert (found.prompt_tokens, found.completion_tokens) == ((0, 0) if want.estimated else (3, 2))


@pytest.mark.parametrize(
    ("pieces", "want"),
    [
        (["\ud83d", "\ude00"], "😀"),
        (["a\ud83d", "", "\ude00b"], "a😀b"),
        (["\ud83d", "x"], "\ufffdx"),
        (["\ude00", "\ud83d"], "\ufffd\ufffd"),
        (["\ud83d\ude00"], "😀"),
    ],
)
def test_halves_of_a_character_in_two_chunks_are_one_character(pieces: list[str], want: str) -> None:
    found = read(*(chunk({"content": piece}) for piece in pieces), chunk({}, "stop"))
    assert found.text == want
    called = read(
        *(calls(call("a", "f", f'"{p}', index=0) | {"id": p}) for p in pieces[:1]), chunk({}, "stop")
    )
    assert json.dumps(called.tool_calls[0].arguments).isascii()
    assert called.tool_calls[0].arguments.encode()


def test_wrong_bytes_become_replacement_characters() -> None:
    found = answer(
        sse(chunk({"content": "X"}), chunk({}, "stop")).replace(b"X", b"a\xf0\x9f\x98\xed\xa0\xbd")
    )
    assert (found.text[0], set(found.text[1:])) == ("a", {"\ufffd"})


def logprobs(*tokens: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "A"}, "logprobs": {"content": list(tokens)}, "finish_reason": "stop"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "want"),
    [
        (-0.5, [-0.5]),
        ("-0.5", [-0.5]),
        (None, []),
        (float("nan"), []),
        (float("-inf"), [-9999.0]),
        (True, []),
    ],
)
def test_log_probabilities_that_are_not_told_are_left_out(told: Any, want: list[float]) -> None:
    turn = Turn(USER, Decoding(top_logprobs=1))
    found = read(logprobs({"token": "A", "logprob": told, "top_logprobs": None}), turn=turn)
    seen = [t.logprob for e in found.events for t in getattr(e, "logprobs", ())]
    assert (found.text, seen) == ("A", want)


def test_bytes_of_a_token_that_is_a_part_of_a_character_are_kept() -> None:
    half = [
        {"token": "\\xf0\\x9f", "bytes": [240, 159], "logprob": -1},
        {"token": "?", "bytes": [152, 128], "logprob": -1},
    ]
    told = [
        *half,
        {"token": "A", "bytes": [65], "logprob": -1},
        {"token": "B", "bytes": [300], "logprob": -1},
    ]
    found = read(logprobs(*told), turn=Turn(USER, Decoding(top_logprobs=0)))
    seen = [t.bytes for e in found.events for t in getattr(e, "logprobs", ())]
    assert seen == [(240, 159), (152, 128), None, None]


def test_what_the_server_cannot_do_is_refused_and_not_left_out() -> None:
    with pytest.raises(UpstreamError, match="no log-probabilities") as error:
        read(*HELLO, turn=Turn(USER, Decoding(top_logprobs=1)))
    assert (error.value.status, error.value.param) == (400, "logprobs")
    demanded = Turn(USER, Decoding(), (ToolSpec(F, "", {}),), "required")
    with pytest.raises(UpstreamError, match="tool_choice") as error:
        read(*HELLO, turn=demanded)
    assert error.value.status == 502
    assert read(calls(call("a", F, "{}")), chunk({}, "stop"), turn=demanded).tool_calls


def test_a_refusal_in_parts_is_a_refusal() -> None:
    found = read(chunk({"refusal": "I "}), chunk({"refusal": "will not."}), chunk({}, "stop"))
    assert [e.text for e in found.events if isinstance(e, Refusal)] == ["I will not."]


@pytest.mark.parametrize(
    "sent",
    [
        sse({"error": {"message": "engine died", "code": 500}}),
        sse({"error": "engine died"}),
        sse({"object": "error", "message": "engine died"}),
        sse({"message": "engine died"}),
        sse({"detail": "engine died"}),
        sse(chunk({"content": "Hel"}), {"error": {"message": "engine died"}}),
        sse(chunk({"content": "Hel"}), chunk({}, "error", error={"message": "engine died"})),
        sse(chunk({"content": "Hel"}), done=False)
        + b'event: error\ndata: {"message": "engine died", "object": "x"}\n\n',
        sse(chunk({"content": "Hel"}), done=False) + b"event: error\ndata: engine died\n\n",
    ],
)
def test_an_error_inside_a_stream_is_an_error(sent: bytes) -> None:
    with pytest.raises(UpstreamError, match="engine died") as error:
        answer(sent)
    assert error.value.status == 502


@pytest.mark.parametrize(
    ("status", "error", "want"),
    [
        (400, {"message": "too long", "code": "context_length_exceeded", "param": "messages"}, (400, "context_length_exceeded")),
        (413, {"message": "too big"}, (400, "upstream_invalid_request")),
        (422, [{"msg": "bad stop"}], (400, "upstream_invalid_request")),
        (401, {"message": "bad key sk-abcdefgh", "code": "invalid_api_key"}, (502, "upstream_authentication")),
        (403, {}, (502, "upstream_authentication")),
        (404, {"message": "no model m"}, (404, "upstream_model_not_found")),
        (429, {"message": "slow down"}, (429, "rate_limit_exceeded")),
        (500, "oops", (502, "upstream_error")),
        (503, {"message": "loading"}, (503, "upstream_unavailable")),
        (529, {"message": "overloaded"}, (503, "upstream_unavailable")),
        (504, "late", (504, "upstream_timeout")),
        (402, "pay", (502, "upstream_error")),
        (200, {"message": "queue full", "code": 429}, (429, "rate_limit_exceeded")),
        (200, {"message": "no", "code": "400"}, (400, "upstream_invalid_request")),
        (200, {"message": "no", "type": "invalid_request_error"}, (400, "upstream_invalid_request")),
        (200, {"message": "no", "code": None}, (502, "upstream_error")),
    ],
)  # fmt: skip
def test_an_error_keeps_its_status_where_the_client_can_mend_it(
    status: int, error: Any, want: tuple[int, str]
) -> None:
    told = told_error("http://far", error, status)
    assert (told.status, told.code) == want
    assert told.again == (
        status in (500, 503, 504, 529, 429)
        or "queue" in str(error)
        or error == {"message": "no", "code": None}
    )


def test_what_a_client_reads_of_an_error_holds_no_address_no_key_and_no_control_character() -> None:
    told = told_error(
        "http://far/v1",
        {
            "message": "bad\n\x1b[31m at http://10.0.0.7:8000/x?k=1 with key sk-live-abcdefghij and Bearer abc.def "
            + "x" * 900
        },
        400,
    )
    public = str(told.public)
    assert public.isprintable()
    assert len(public) <= 500
    assert public.startswith("bad")
    assert not any(secret in public for secret in ("10.0.0.7", "sk-live", "abc.def"))


def test_no_control_character_of_a_stream_stands_in_an_error() -> None:
    evil = "x\x1b[31m\n\u2028ERROR: forged"
    streams = [
        [chunk({}, evil)],
        [{"error": {"message": evil}}],
        [chunk({"content": {"type": evil}})],
        [{"choices": evil}],
    ]
    found = [outcome(sse(*chunks)) for chunks in streams] + [outcome(b"data: " + evil.encode() + b"\n\n")]
    assert [isinstance(error, UpstreamError) and str(error).isprintable() for error in found] == [True] * 5


def test_deep_nesting_and_long_numbers_are_errors() -> None:
    for text in (b"[" * 100_000, b'{"a": ' * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe{\x00}\x00"):
        with pytest.raises(UpstreamError, match="no JSON"):
            json_object(text, URL)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["stop", "0", "\ud83d", "error"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "id", "function", "name", "message", "content", "delta", "error", "type", "text", "token"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
WHOLE = [
    chunk({"role": "assistant", "content": "", "refusal": None, "reasoning_content": "x"}),
    {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "Hello"}]}, "logprobs": {"content": [{"token": "lo", "logprob": -0.5, "bytes": [108], "top_logprobs": [{"token": "lo", "logprob": -0.5}]}]}}]},
    calls(call("a", F, PARIS[:8], index=0), call("b", G, {}, index=1)),
    calls({"index": 0, "function": {"arguments": PARIS[8:]}}),
    chunk({"function_call": {"name": F, "arguments": "{}"}}),
    chunk({}, "tool_calls", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}),
    {"error": None, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]  # fmt: skip
ASKED = Turn(USER, Decoding(top_logprobs=1), (ToolSpec(F, "", {}),))


def outcome(sent: bytes) -> Completion | UpstreamError:
    """The answer, or the only exception that may be raised."""
    try:
        return answer(sent, ASKED)
    except UpstreamError as error:
        return error


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = places(WHOLE)[1:]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), ANY, st.sampled_from(["set", "drop", "twice"])), max_size=4)
)
def test_no_value_in_any_place_of_a_stream_raises_anything_but_an_upstream_error(
    edits: list[tuple[tuple[Any, ...], Any, str]],
) -> None:
    changed = json.loads(json.dumps(WHOLE))
    for path, value, how in edits:
        target = changed
        try:
            for key in path[:-1]:
                target = target[key]
            if how == "set":
                target[path[-1]] = value
            elif how == "drop":
                del target[path[-1]]
            else:
                target.insert(path[-1], target[path[-1]])
        except (LookupError, TypeError, AttributeError):
            continue  # an earlier edit removed the place
    found = outcome(sse(*changed))
    if isinstance(found, UpstreamError):
        assert str(found).startswith(URL)
        return
    assert found.finish_reason in ("stop", "length", "tool_calls", "content_filter")
    assert found.text.encode() is not None
    assert len({c.id for c in found.tool_calls}) == len(found.tool_calls)
    assert all(c.name.encode() and c.arguments.encode() for c in found.tool_calls)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=6)), max_size=4))
def test_no_bytes_of_a_stream_raise_anything_but_an_upstream_error(
    edits: list[tuple[int, int, bytes]],
) -> None:
    sent = sse(*WHOLE)
    for at, size, new in edits:
        sent = sent[:at] + new + sent[at + size :]
    found = outcome(sent)
    assert str(found).startswith(URL) if isinstance(found, UpstreamError) else found.text.encode() is not None


def test_the_stream_that_is_changed_is_read_whole() -> None:
    found = read(*WHOLE, turn=ASKED)
    assert found.text == "Hello"
    assert [(c.id, c.name, c.arguments) for c in found.tool_calls] == [("a", F, PARIS), ("b", G, "{}")]
    assert (found.prompt_tokens, found.completion_tokens) == (3, 2)
    assert len(PLACES) > 60


def test_a_call_in_many_parts_takes_time_in_proportion_to_them() -> None:
    def cpu_s(number: int) -> float:
        parts = [calls(call("a", F, '{"x": "', index=0)), *[calls(call("a", F, "}]{[ ", index=0))] * number]
        sent = sse(*parts, calls(call("a", F, '"}', index=0)), chunk({}, "stop"))
        started = time.thread_time()
        found = answer(sent)
        assert [len(c.arguments) for c in found.tool_calls] == [9 + 5 * number]
        return time.thread_time() - started

    cpu_s(100)
    small, large = min(cpu_s(1500) for _ in range(3)), min(cpu_s(6000) for _ in range(3))
    assert large < 8 * small


def test_more_calls_than_an_answer_can_mean_are_an_error() -> None:
    with pytest.raises(UpstreamError, match="more than 512 tool calls"):
        read(*(calls(call(f"c{n}", F, "{}", index=n)) for n in range(600)))
