"""Formats are compiled within bounds of time and memory, and what nothing finite fits is refused when compiled."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from demeanor.core.errors import DecodingError
from demeanor.core.types import Decoding, OutputFormat
from demeanor.engine import form_trial, structured
from demeanor.engine.local import LocalEngine, Request
from demeanor.engine.structured import check_schema, is_simple
from demeanor.model import checkpoints
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers

NODE: dict[str, Any] = {"$ref": "#/$defs/n"}
HUNGRY = {"allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]}


def form(schema: Any) -> OutputFormat:
    return OutputFormat("json_schema", json.dumps(schema))


def engine_of() -> LocalEngine:
    tokens = tokenizers.train(["The ferry leaves at 9. {} [] 0"] * 20, specs.TokenizerSpec(vocab_size=400))
    return LocalEngine(
        checkpoints.create(ModelShape(layers=1, width=32, heads=2, context=256), 400, 0), tokens
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with closing(engine_of()) as made:
        yield made


async def ask(engine: LocalEngine, wanted: OutputFormat | None, max_tokens: int = 60) -> str:
    request = Request((300, 301), Decoding(0, max_tokens=max_tokens, form=wanted))
    return "".join([piece.text async for piece in engine.stream(request)])


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {**NODE, "$defs": {"n": NODE}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]},
        {"allOf": [{"type": "object"}, {"$ref": "#"}]},
        {
            "type": "object",
            "properties": {"a": {**NODE}},
            "required": ["a"],
            "$defs": {"n": {"oneOf": [NODE]}},
        },
        {
            "type": ["object", "array"],
            "minItems": 1,
            "items": {"$ref": "#"},
            "required": ["a"],
            "properties": {"a": {"$ref": "#"}},
        },
    ],
    ids=repr,
)
def test_a_schema_that_no_finite_text_fits_is_refused_when_compiled(engine: LocalEngine, schema: Any) -> None:
    with pytest.raises(DecodingError, match="json_schema: no finite text fits") as raised:
        engine.generate([Request((300,), Decoding(0, max_tokens=4, form=form(schema)))])
    assert raised.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {
            "type": "object",
            "properties": {"a": NODE},
            "required": ["a"],
            "$defs": {"n": {"anyOf": [NODE, {"type": "null"}]}},
        },
        {
            "$ref": "#/$defs/a",
            "$defs": {f"{c}": {"$ref": f"#/$defs/{d}"} for c, d in zip("abcde", "bcdef")}
            | {"f": {"const": 1}},
        },
        {"enum": [{"$ref": "#"}]},
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"]},
        {"const": {"$ref": "#"}},
    ],
    ids=repr,
)
def test_a_schema_with_an_end_is_never_taken_for_endless(schema: Any) -> None:
    try:
        check_schema(schema)
        refused = None
    except DecodingError as error:
        refused = str(error)
    assert refused is None


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"const": 123456789012345678901},
        {"enum": ["a", {"b": [-(2**53) - 1]}]},
        {"type": "integer", "minimum": 2**60},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer", "maximum": 10**30}]}}},
    ],
    ids=repr,
)
def test_an_integer_that_would_be_changed_is_refused(engine: LocalEngine, schema: Any) -> None:
    with pytest.raises(DecodingError, match=r"\d{16,} is beyond 2\^53"):
        engine.generate([Request((300,), Decoding(0, max_tokens=4, form=form(schema)))])


@pytest.mark.parametrize("value", [2**53, -(2**53), 0, True, 1e20, 0.1, None], ids=repr)
def test_a_value_that_float64_holds_is_written_exactly(engine: LocalEngine, value: Any) -> None:
    schema = {"const": value, "description": "9", "default": 2**70}
    assert json.loads(asyncio.run(ask(engine, form(schema), 400))) == value


def test_what_is_compiled_without_a_trial_has_only_plain_keywords() -> None:
    assert is_simple({"type": "object", "properties": {"multipleOf": {"type": "string", "title": "t"}}})
    assert is_simple(
        {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"enum": [{"pattern": 1}]}}}
    )
    unusual: list[Any] = [
        HUNGRY,
        {"type": "string", "pattern": "a"},
        {"type": "string", "format": "date"},
        {"properties": {"a": {"allOf": []}}},
        {"items": {"multipleOf": 3}},
        {"anyOf": [{"not": {}}]},
        {"$defs": {"a": HUNGRY}},
        {"$ref": "#", "type": "object"},
        {"type": "object", "anyOf": [{}]},
        {"additionalProperties": HUNGRY},
        {"items": [1, HUNGRY]},
    ]
    assert [is_simple(schema) for schema in unusual] == [False] * len(unusual)


async def test_a_hungry_schema_is_refused_in_bounds_and_nobody_waits_for_it(engine: LocalEngine) -> None:
    await ask(engine, form({"const": 1}))
    started = time.monotonic()
    ended: dict[str, float] = {}

    async def timed(name: str, schema: Any) -> str:
        try:
            return await ask(engine, form(schema))
        finally:
            ended[name] = time.monotonic() - started

    refused, plain = await asyncio.gather(
        timed("hungry", HUNGRY), timed("plain", {"enum": ["other"]}), return_exceptions=True
    )
    assert plain == '"other"'
    assert isinstance(refused, DecodingError)
    assert re.search(r"takes more than 1 s or 512 MiB", str(refused))
    assert ended["plain"] < ended["hungry"]
    again = time.monotonic()
    with pytest.raises(DecodingError, match="takes more than"):
        await ask(engine, form(HUNGRY))
    assert time.monotonic() - again < ended["hungry"] / 2, "a refusal is remembered"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 62615533},
        {"type": "number", "multipleOf": 0.000123457},
        {"type": "number", "multipleOf": 1e300},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(600)}},
        {"type": "number", "minimum": 1e300},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_other_schemas_that_cannot_be_used_are_refused_too(engine: LocalEngine, schema: Any) -> None:
    with pytest.raises(DecodingError, match=r"json_schema: \S"):
        engine.generate([Request((300,), Decoding(0, max_tokens=4, form=form(schema)))])


def test_closing_a_long_answer_costs_a_bounded_number_of_masks(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token near the end of the budget looks for a way to the end; without bounds that is quadratic."""
    names = [f"property_{i}" for i in range(12)]
    wanted = form(
        {
            "type": "object",
            "properties": {n: {"type": "string"} for n in names},
            "required": names,
            "additionalProperties": False,
        }
    )
    asked = Request((300,), Decoding(1.0, max_tokens=250, seed=1, form=wanted))
    guides: list[structured.Guide] = []
    made = structured.Guide.__init__
    monkeypatch.setattr(
        structured.Guide, "__init__", lambda self, *a: (guides.append(self), made(self, *a))[1]
    )
    monkeypatch.setattr(structured, "MOST_MASKS", 1500)
    (pieces,) = engine.generate([asked])
    assert set(json.loads("".join(piece.text for piece in pieces))) == set(names)
    assert 1500 < guides[-1]._num_masks < 1500 + 2 * 250


async def test_a_compilation_is_cancelled_with_the_last_request_that_waits_for_it(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        form_trial, "_write", lambda child, line: None
    )  # the child gets no work: it never answers
    await ask(engine, form({"const": 1}))
    grammars = engine._grammars
    assert grammars is not None
    hanging = form({"type": "integer", "multipleOf": 77})
    tasks = [asyncio.create_task(ask(engine, hanging)) for _ in range(2)]
    async with asyncio.timeout(120):
        while hanging not in grammars._running or grammars._running[hanging].waiters < 2:
            await asyncio.sleep(0.01)  # it is compiled once for both
    job = grammars._running[hanging]
    tasks[0].cancel()
    async with asyncio.timeout(120):
        while job.waiters == 2:
            await asyncio.sleep(0.01)
    assert not job.stopped.is_set()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert job.stopped.is_set()
    with pytest.raises(DecodingError):
        await asyncio.wait_for(asyncio.wrap_future(job.future), 120)
    assert not grammars._running
    assert hanging not in grammars._done, "it was not tried to its end"


def test_the_cache_is_bounded_in_number_and_memory(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured, "MOST_FORMS", 5)
    grammars = engine._opened_grammars()
    forms = [form({"const": i}) for i in range(8)]
    for each in forms:
        grammars.guide(each)
    assert list(grammars._done)[-5:] == forms[-5:]
    assert len(grammars._done) == 5
    monkeypatch.setattr(structured, "MOST_BYTES", 2 * grammars._done[forms[-1]].num_bytes)  # type: ignore[union-attr]
    grammars.guide(form({"const": 9}))
    assert len(grammars._done) == 2


def test_a_child_that_dies_costs_one_refusal_and_the_next_is_tried_again() -> None:
    with closing(engine_of()) as engine:
        trials = engine._opened_grammars()._trials
        stopped = threading.Event()
        assert trials.refusal("start: /a/\n", stopped)[0] is None
        (child,) = trials._idle
        child.kill()
        child.wait()
        assert trials.refusal("start: /b/\n", stopped)[0] is None
        assert "takes more than" in str(trials.refusal(json_grammar(HUNGRY), stopped)[0])
        assert not trials._idle
        assert trials.refusal("start: (\n", stopped)[0] is not None
        (child,) = trials._idle
    assert child.poll() is not None, "no child outlives its engine"


def json_grammar(schema: Any) -> str:
    return structured.lark(form(schema))


def test_grammars_of_a_tool_call_are_checked_as_formats_are(engine: LocalEngine) -> None:
    cyclic = json.dumps({"$ref": "#"})
    with pytest.raises(DecodingError, match="grammar: no finite text fits"):
        engine._opened_grammars().guide(OutputFormat("grammar", f'start: "a" args\nargs: %json {cyclic}\n'))
