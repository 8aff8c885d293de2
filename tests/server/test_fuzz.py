"""Fuzzing: generated requests to every endpoint of one server with a tiny model; nothing falls over and nobody waits.

DEMEANOR_FUZZ=2000 sends as many requests (the default suite 150), DEMEANOR_FUZZ_SEED=N other ones.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from live import live

from demeanor.app import StackRuntime, load_stack
from demeanor.model import checkpoints
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers
from demeanor.training.runs import Runs

REQUESTS = int(os.environ.get("DEMEANOR_FUZZ", "150"))
STALL_S = 0.05
STACK = """
name: fuzz
weights:
  base: base
template: turns
decoding: {temperature: 0, max_tokens: 12}
layers:
  - {kind: record, database: "sqlite:///fuzz.db"}
  - {kind: policy, rules: policy.yaml}
  - {kind: tools, allow: [calculator]}
  - {kind: prompt, system: system.md}
"""
RULES = """
rules:
- {name: pirates, on: input, pattern: '(?i)pretend you are', action: refuse, reason: games, reply: No games.}
- {name: card, on: both, detector: card, action: redact, reason: a card number}
"""


class Watched:
    """An ASGI app whose event loop is watched: `longest_s` is the most processor time between two ticks."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.longest_s = inner, 0.0
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._tick())
        await self.inner(scope, receive, send)

    async def _tick(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            self.longest_s, last = max(self.longest_s, now - last), now


class Server:
    """The address, and what became of the requests so far."""

    def __init__(self, client: httpx.Client, watched: Watched) -> None:
        self.client, self.watched = client, watched
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.slowest = (0.0, b"")

    def plain(self) -> dict[str, Any]:
        """A request of the plainest kind, and all that is deterministic of its answer."""
        body = {"model": "fuzz:base", "messages": [{"role": "user", "content": "When does the ferry leave?"}]}
        asked = {"max_tokens": 24, "logprobs": True, "temperature": 0.8, "seed": 7}
        response = self.client.post("/v1/chat/completions", json=body | asked)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()["choices"][0]
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    texts = ["The ferry leaves at 9. Who is Marla? {} [] \U0001f600 é 1.5 "] * 20
    tokens = tokenizers.train(texts, specs.TokenizerSpec(vocab_size=400))
    shape = ModelShape(layers=1, width=32, heads=2, context=512, init="normal")
    checkpoints.save(checkpoints.create(shape, tokens.vocab_size, seed=3), folder / "base")
    tokens.save(folder / "base")
    for name, text in (("stack.yaml", STACK), ("policy.yaml", RULES), ("system.md", "Be kind.")):
        (folder / name).write_text(text)
    before = Path.cwd()
    os.chdir(folder)  # the database's path starts from the working folder
    try:
        with closing(StackRuntime(load_stack(folder / "stack.yaml"), Runs(folder / "runs"))) as runtime:
            watched = Watched(app(ServedStack(runtime)))
            with live(watched) as url, httpx.Client(base_url=url, timeout=60) as client:
                yield Server(client, watched)
    finally:
        os.chdir(before)


# ---- what is sent ----

NUMBERS = st.sampled_from(
    [
        0,
        1,
        2,
        -1,
        3,
        7,
        0.5,
        1e-39,
        1e-300,
        5e-324,
        1e39,
        1e300,
        2**31,
        2**53,
        2**53 + 1,
        2**63,
        2**64,
        10**21,
        -0.0,
        1.0,
    ]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "a",
            "\x00",
            "\u202e",
            "\U0001f600",
            "é",
            "<|call|>",
            "<|end|>",
            "4111 1111 1111 1111",
            "a" * 3000,
            "\n",
            "\ufffd",
        ]
    ),
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.just([]),
    st.just({}),
    st.just([[[[]]]]),
    st.just({"a": {"b": None}}),
)


def usually(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of these values, and now and then anything."""
    return st.sampled_from(range(30)).flatmap(lambda i: st.one_of(ODD, NUMBERS) if i == 29 else good)


def mostly(*good: Any) -> st.SearchStrategy[Any]:
    return usually(st.sampled_from(good))


SIZES = mostly(0, 1, 2, 3, 1000, 2**31)
NAMES = st.sampled_from(["a", "b", "next", "$ref", "", "é", "x" * 40])
PATTERNS = st.sampled_from(
    [
        "a",
        "^a+$",
        "(",
        "(a|b)*c",
        "a{1000}",
        "(?=a)",
        "\\d+",
        "[",
        "(.*a.{9}){2}",
        "\\p{L}",
        "^(a?){50}a{50}$",
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas of objects, arrays and choices over other schemas."""
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object")},
            optional={
                "properties": st.dictionaries(NAMES, inner, max_size=3),
                "required": st.lists(NAMES, max_size=2),
                "additionalProperties": st.one_of(st.booleans(), inner),
                "minProperties": SIZES,
                "patternProperties": st.dictionaries(PATTERNS, inner, max_size=1),
                "$defs": st.dictionaries(NAMES, inner, max_size=2),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={
                "items": inner,
                "minItems": SIZES,
                "maxItems": SIZES,
                "prefixItems": st.lists(inner, max_size=2),
                "uniqueItems": st.booleans(),
            },
        ),
        st.sampled_from(["anyOf", "oneOf", "allOf"]).flatmap(
            lambda name: st.fixed_dictionaries(
                {name: st.lists(inner, max_size=3)}, optional={"type": st.just("object")}
            )
        ),
        st.fixed_dictionaries({"not": inner}),
    )


LEAVES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean", "null", "thing"])},
        optional={
            "minimum": NUMBERS,
            "maximum": NUMBERS,
            "multipleOf": st.one_of(NUMBERS, st.sampled_from([62615533, 0.01, 7])),
            "minLength": SIZES,
            "maxLength": SIZES,
            "pattern": PATTERNS,
            "format": st.sampled_from(["date", "email", "uri", "ipv6", "nothing"]),
        },
    ),
    st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/nowhere", "http://localhost/x", "#a"]).map(
        lambda ref: {"$ref": ref}
    ),
    st.fixed_dictionaries({"enum": st.lists(ODD, max_size=3)}),
    st.fixed_dictionaries({"const": ODD}),
    st.just({}),
    st.just({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    st.booleans(),
    ODD,
)
SCHEMAS = st.recursive(LEAVES, objects, max_leaves=6).filter(lambda schema: isinstance(schema, dict))

DECODING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": mostly(0, 0.7, 2, 1e-39, 1e-300, 5e-324, 1e-9, -0.0),
        "top_p": mostly(1, 0.5, 1e-300, 5e-324, 1e-39),
        "top_k": mostly(0, 1, -1, 5, 2**53, 2**63 - 1),
        "min_p": mostly(0, 1, 0.1, 1e-300, 0.9999999999),
        "seed": mostly(0, 1, -1, 2**62, -(2**63)),
        "stop": st.one_of(mostly("e", "\n", "\U0001f600", "</"), st.lists(mostly("a", "}"), max_size=4)),
        "n": mostly(1, 1, 2, 3),
        "frequency_penalty": mostly(0, 2, -2, 1e-39),
        "presence_penalty": mostly(0, 2, -2),
        "logit_bias": mostly({}, {"1": 100}, {"0": -100, "399": 1e-39}, {"20": 100.0, "21": 100.0}),
    },
)
LENGTHS = mostly(1, 2, 5, 12, 40, 10**18)
FUNCTION = st.fixed_dictionaries(
    {"name": mostly("f", "g"), "arguments": mostly("{}", "{", "[]", '{"a": 1}', "")}
)
CALLS = st.fixed_dictionaries(
    {"id": mostly("c1", "c2"), "type": st.just("function"), "function": FUNCTION},
    optional={"index": mostly(0)},
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": mostly("text"), "text": TEXTS}),
    st.fixed_dictionaries({"type": mostly("refusal"), "refusal": TEXTS}),
)
CONTENTS = usually(st.one_of(TEXTS, TEXTS, st.lists(PARTS, min_size=1, max_size=2)))
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": mostly("user", "user", "system", "developer"), "content": CONTENTS},
            optional={"name": mostly("edda", "a.b", "é")},
        ),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": CONTENTS},
            optional={
                "tool_calls": usually(st.lists(CALLS, max_size=2)),
                "refusal": usually(TEXTS),
                "parsed": ODD,
                "annotations": mostly([], None),
            },
        ),
        st.fixed_dictionaries(
            {"role": st.just("tool"), "content": CONTENTS, "tool_call_id": mostly("c1", "<|end|>")}
        ),
    ),
    min_size=1,
    max_size=3,
)
HELLO = st.just([{"role": "user", "content": "hello"}])
TOOL = st.fixed_dictionaries(
    {"name": mostly("f", "g", "calculator")},
    optional={"parameters": usually(SCHEMAS), "strict": st.booleans(), "description": TEXTS},
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": usually(TOOL)}), min_size=1, max_size=2
)
CHOICES = mostly("auto", "none", "required", {"type": "function", "function": {"name": "f"}})
NAMED = st.fixed_dictionaries({"name": st.just("a"), "schema": usually(SCHEMAS)})
FORMATS = usually(
    st.one_of(
        mostly({"type": "json_object"}, {"type": "text"}),
        st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": NAMED}),
        st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": NAMED}),
    )
)
STREAM = {"stream": st.booleans()}


def merged(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


CHAT = merged(
    st.fixed_dictionaries(
        {
            "model": mostly("fuzz", "fuzz", "fuzz:base"),
            "messages": st.one_of(HELLO, HELLO, MESSAGES),
        }
    ),
    DECODING,
    st.fixed_dictionaries(
        {},
        optional={
            "response_format": FORMATS,
            "tools": TOOLS,
            "tool_choice": CHOICES,
            "max_tokens": LENGTHS,
            "logprobs": mostly(True),
            "top_logprobs": mostly(0, 1, 20),
            "parallel_tool_calls": st.booleans(),
            "user": mostly("edda"),
            **STREAM,
        },
    ),
)
COMPLETIONS = merged(
    st.fixed_dictionaries(
        {
            "model": mostly("fuzz:base"),
            "prompt": usually(
                st.one_of(
                    mostly("The ferry", "\U0001f600 é", [300, 301], ["a", "b"], [[1], [2, 3]]),
                    TEXTS,
                    st.lists(mostly(0, 1, 300, 399), min_size=1, max_size=4),
                )
            ),
        }
    ),
    DECODING,
    st.fixed_dictionaries(
        {}, optional={"max_tokens": LENGTHS, "echo": st.booleans(), "logprobs": mostly(0, 1, 20), **STREAM}
    ),
)
RESPONSES = st.fixed_dictionaries(
    {
        "model": st.just("fuzz"),
        "input": st.one_of(
            TEXTS,
            st.lists(
                st.one_of(
                    st.fixed_dictionaries(
                        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": CONTENTS}
                    ),
                    st.fixed_dictionaries(
                        {
                            "type": st.just("function_call"),
                            "call_id": st.just("c"),
                            "name": st.just("f"),
                            "arguments": TEXTS,
                        }
                    ),
                    st.fixed_dictionaries(
                        {"type": st.just("function_call_output"), "call_id": st.just("c"), "output": CONTENTS}
                    ),
                ),
                max_size=3,
            ),
        ),
    },
    optional={
        "temperature": mostly(0, 0.7, 1e-39),
        "top_p": mostly(1, 0.3, 1e-300),
        "max_output_tokens": LENGTHS,
        "text": st.fixed_dictionaries(
            {
                "format": usually(
                    st.fixed_dictionaries(
                        {"type": st.just("json_schema"), "name": st.just("a"), "schema": usually(SCHEMAS)}
                    )
                )
            }
        ),
        "tools": st.lists(
            st.fixed_dictionaries(
                {"type": st.just("function"), "name": st.just("f")},
                optional={"parameters": SCHEMAS, "strict": st.booleans()},
            ),
            max_size=1,
        ),
        "tool_choice": st.sampled_from(["auto", "required", {"type": "function", "name": "f"}]),
        "metadata": mostly({}, {"a": "b"}),
        "store": st.booleans(),
        **STREAM,
    },
)
INPUTS = st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.lists(st.integers(-1, 401), max_size=3), ODD)
EMBEDDINGS = st.fixed_dictionaries(
    {"model": st.just("fuzz:base"), "input": INPUTS},
    optional={"dimensions": mostly(8, 32), "encoding_format": st.sampled_from(["float", "base64", "x"])},
)
MODERATIONS = st.fixed_dictionaries(
    {"input": INPUTS}, optional={"model": st.sampled_from(["fuzz", "fuzz:base", "x"])}
)
FEEDBACK = st.fixed_dictionaries(
    {"id": TEXTS, "score": mostly(1, -1)}, optional={"comment": TEXTS, "corrected": TEXTS}
)
ENDPOINTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/moderations": MODERATIONS,
    "/v1/feedback": FEEDBACK,
}
WEIGHTED = [*["/v1/chat/completions"] * 5, *["/v1/responses"] * 2, *["/v1/completions"] * 2, *ENDPOINTS]
REQUEST = st.sampled_from(WEIGHTED).flatmap(lambda path: st.tuples(st.just(path), ENDPOINTS[path]))

# ---- what comes back ----

NO_FIELD = {
    "invalid_json",
    "invalid_type",
    "unsupported_media_type",
    "body_too_large",
    "no_record_layer",
    "not_found",
}


def check(path: str, response: httpx.Response) -> None:
    """An answer, or an error of the client's in OpenAI's shape that names the field."""
    assert response.status_code in (200, 400, 404, 409), (path, response.status_code, response.text)
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            data = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
            assert data, response.text
            broken = [
                found["error"]
                for found in map(json.loads, data)
                if isinstance(found, dict) and found.get("error")
            ]
            assert [e["type"] for e in broken] in ([], ["invalid_request_error"]), broken
        else:
            assert json.loads(response.content)
        return
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["type"] == "invalid_request_error", error
    assert error["param"] or error["code"] in NO_FIELD, error


def send(server: Server, path: str, body: Any) -> httpx.Response:
    content = json.dumps(body).encode()  # also what is no JSON: NaN, half surrogates as escapes
    response = server.client.post(path, content=content, headers={"content-type": "application/json"})
    server.statuses[path, response.status_code] += 1
    if server.watched.longest_s > server.slowest[0]:
        server.slowest = server.watched.longest_s, content[:2000]
    return response


def test_fuzz_of_every_endpoint_leaves_the_server_as_it_was(server: Server) -> None:
    plain = server.plain()
    server.watched.longest_s, server.slowest = 0.0, (0.0, b"")

    @seed(int(os.environ.get("DEMEANOR_FUZZ_SEED", "12")))
    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(REQUEST)
    def attack(request: tuple[str, Any]) -> None:
        check(request[0], send(server, *request))

    gc.collect()
    gc.disable()  # a collection over hypothesis's own objects would run in any thread, and count as the server's
    try:
        attack()
    finally:
        gc.enable()
    print(
        f"\n{sum(server.statuses.values())} requests: {dict(server.statuses)}; stall {1000 * server.watched.longest_s:.1f} ms"
    )
    assert sum(server.statuses.values()) >= REQUESTS
    answered = {path for path, status in server.statuses if status == 200}
    assert answered >= {"/v1/chat/completions", "/v1/completions", "/v1/responses"}, server.statuses
    assert server.plain() == plain
    assert server.watched.longest_s < STALL_S, server.slowest
    started = time.monotonic()
    assert server.client.get("/healthz").status_code == 200
    assert time.monotonic() - started < 5
