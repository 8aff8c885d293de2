"""The tools layer: calls are checked, run, bounded and answered; the caller's own are the caller's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from fake_layers import ask, events_of, kit, only, script, text_of
from pydantic import ValidationError

from demeanor.core.json_schema import mistakes
from demeanor.core.types import (
    Citation,
    Decoding,
    Done,
    Event,
    Message,
    Passage,
    Prompted,
    Refusal,
    Respond,
    Text,
    ToolCall,
    ToolCalled,
    ToolResult,
    ToolSpec,
    Trust,
    Turn,
    Usage,
    fold,
)
from demeanor.layers import tools
from demeanor.layers.tools import LoadedTool, ToolThreads, calls, load

MAIL = ToolSpec(
    "mail", "Sends mail.", {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
)


def call(expression: str = "37*12", id: str = "1", name: str = "calculator") -> ToolCalled:
    return ToolCalled(ToolCall(id, name, json.dumps({"expression": expression})))


def wrap(
    inner: Respond, run: Callable[[Mapping[str, Any]], Awaitable[str]] | None = None, **settings: Any
) -> Respond:
    found = load(["calculator"])
    given = {"calculator": LoadedTool(found["calculator"].spec, run)} if run else found
    return tools.wrap(tools.Spec(allow=("calculator",), **settings), inner, kit(tools=given))


async def test_a_call_is_run_and_the_model_goes_on_with_its_result() -> None:
    seen: list[Turn] = []
    inner = script(
        [call(), Usage(5, 7), Done("tool_calls")], [Text("444."), Usage(9, 2), Done("stop")], seen=seen
    )
    events = await events_of(wrap(inner), ask("What is 37 times 12?"))
    assert fold(events).text == "444."
    assert fold(events).tool_calls == ()
    assert only(events, ToolResult) == [ToolResult("1", "calculator", "444")]
    assert only(events, Done) == [events[-1]] == [Done("stop")]
    assert [t.name for t in seen[0].tools] == ["calculator"]
    said, heard = seen[1].messages[1:]
    assert said == Message("assistant", "", tool_calls=(call().call,))
    assert (heard.role, heard.content, heard.tool_call_id, heard.authority) == (
        "tool",
        "444",
        "1",
        Trust.NONE,
    )


async def test_a_call_is_announced_before_it_is_run_so_that_a_policy_can_stop_it() -> None:
    ran = []

    async def run(arguments: Mapping[str, Any]) -> str:
        ran.append(arguments)
        return "1"

    events = wrap(script([call(), Done("tool_calls")]), run)(ask())
    while not isinstance(await anext(events), ToolCalled):
        pass
    await events.aclose()  # type: ignore[attr-defined]
    assert ran == []


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            ToolCall("1", "calculater", "{}"),
            "error: unknown tool 'calculater'. Did you mean 'calculator'? Known: calculator.",
        ),
        (ToolCall("1", "calculator", '{"expression": '), "error: arguments are not JSON"),
        (ToolCall("1", "calculator", "[" * 100_000), "error: arguments are not JSON"),
        (ToolCall("1", "calculator", "37*12"), "error: arguments are not JSON"),
        (ToolCall("1", "calculator", '"37*12"'), 'error: arguments should be object, got "37*12"'),
        (
            ToolCall("1", "calculator", '{"expr": "1"}'),
            "error: arguments.expression is missing; arguments.expr is unknown; known: expression",
        ),
        (
            ToolCall("1", "calculator", '{"expression": 12}'),
            "error: arguments.expression should be string, got 12",
        ),
        (ToolCall("1", "calculator", '{"expression": "1/0"}'), "error: division by zero"),
        (ToolCall("1", "calculator", '{"expression": "import os"}'), "error: not arithmetic"),
        (ToolCall("1", "calculator", ""), "error: arguments.expression is missing"),
    ],
)
async def test_a_mistaken_call_is_told_to_the_model_and_the_turn_goes_on(made: ToolCall, told: str) -> None:
    seen: list[Turn] = []
    events = await events_of(
        wrap(script([ToolCalled(made), Done("tool_calls")], [Text("Sorry."), Done("stop")], seen=seen))
    )
    result = only(events, ToolResult)[0]
    assert result.error
    assert result.content.startswith(told)
    assert seen[1].messages[-1].content == result.content
    assert fold(events).text == "Sorry."


def test_both_limits_of_time_say_the_same() -> None:
    """The thread's own limit may end a call before the loop's does."""

    async def hangs(arguments: Mapping[str, Any]) -> str:
        await asyncio.sleep(60)
        return ""

    async def gives_up(arguments: Mapping[str, Any]) -> str:
        raise TimeoutError("/etc/secret")

    spec = ToolSpec("slow", "", {})
    made = ToolCall("1", "slow", "{}")
    told = [calls._result(made, LoadedTool(spec, run), {}, 0.01, 100).content for run in (hangs, gives_up)]
    assert told == ["error: no answer within 0.01 s", "error: TimeoutError"]


async def test_a_tool_that_hangs_or_breaks_or_babbles_is_bounded() -> None:
    async def hangs(arguments: Mapping[str, Any]) -> str:
        await asyncio.sleep(60)
        return ""

    async def breaks(arguments: Mapping[str, Any]) -> str:
        raise KeyError("/etc/secret")

    async def babbles(arguments: Mapping[str, Any]) -> str:
        return "a" * 50

    answers = [Text("ok"), Done("stop")]
    told = {}
    for run in (hangs, breaks, babbles):
        respond = wrap(
            script([call(), Done("tool_calls")], answers),
            run,
            timeout_s=0.01 if run is hangs else 30,
            max_result_chars=10,
        )
        told[run.__name__] = only(await events_of(respond), ToolResult)[0].content
    assert told == {
        "hangs": "error: no answer within 0.01 s",
        "breaks": "error: KeyError",
        "babbles": "aaaaaaaaaa [40 more characters]",
    }


async def result_of(run: Callable[[Mapping[str, Any]], Any], **settings: Any) -> ToolResult:
    """What the model reads of a tool; the turn ends with its own answer."""
    events = await events_of(
        wrap(script([call(), Done("tool_calls")], [Text("ok"), Done("stop")]), run, **settings)
    )
    assert (fold(events).text, fold(events).finish_reason) == ("ok", "stop")
    (result,) = only(events, ToolResult)
    return result


class Opaque:
    def __str__(self) -> str:
        return "a thing"


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("", ""),
        ({"b": [1, "é"], "a": None}, '{"b": [1, "é"], "a": null}'),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ({"raw": b"x"}, '{"raw": "x"}'),
        (Opaque(), '"a thing"'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (CIRCLE, "[[...]]"),
        ("half \ud83d of one, \ud83d\ude00 whole", "half \ufffd of one, \U0001f600 whole"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_value_of_any_type_becomes_text_by_one_rule(value: Any, text: str, is_async: bool) -> None:
    async def later(arguments: Mapping[str, Any]) -> Any:
        return value

    result = await result_of(later if is_async else lambda arguments: value)
    assert (result.content, result.error) == (text, False)


class Unprintable(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(3), "error: SystemExit"),
        (KeyboardInterrupt(), "error: KeyboardInterrupt"),
        (asyncio.CancelledError(), "error: CancelledError"),
        (TimeoutError("its own"), "error: TimeoutError"),
        (ValueError("wanted a \udcff"), "error: wanted a \ufffd"),
        (Unprintable(), "error: Unprintable"),
        (RecursionError("deep"), "error: RecursionError"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_whatever_a_tool_raises_is_its_result(error: BaseException, told: str, is_async: bool) -> None:
    def now(arguments: Mapping[str, Any]) -> Any:
        raise error

    async def later(arguments: Mapping[str, Any]) -> Any:
        raise error

    result = await result_of(later if is_async else now)
    assert (result.content, result.error) == (told, True)


async def test_a_huge_value_is_written_no_further_than_it_is_read() -> None:
    result = await result_of(lambda arguments: [0] * 5_000_000, max_result_chars=10)
    assert result.content == "[0, 0, 0,  [more characters]"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_that_blocks_stops_neither_the_loop_nor_its_own_turn(is_async: bool) -> None:
    free = threading.Event()

    def now(arguments: Mapping[str, Any]) -> str:
        free.wait(20)
        return "late"

    async def later(arguments: Mapping[str, Any]) -> str:
        return now(arguments)

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking, before = asyncio.create_task(tick()), tools.THREADS.abandoned
    result = await result_of(later if is_async else now, timeout_s=0.3)
    ticking.cancel()
    assert result.content == "error: no answer within 0.3 s"
    assert ticks > 5, "others went on meanwhile"
    assert tools.THREADS.abandoned == before + 1, "a thread cannot be killed, but it is counted"
    free.set()
    for _ in range(200):
        if tools.THREADS.abandoned == before:
            break
        await asyncio.sleep(0.01)
    assert tools.THREADS.abandoned == before


async def test_calls_that_hang_hold_a_bounded_number_of_threads_and_none_of_another_tool() -> None:
    threads, free, begun = ToolThreads(2), threading.Event(), []

    def hang() -> ToolResult:
        begun.append(1)
        free.wait(20)
        return ToolResult("1", "hangs", "")

    waits = [threads.run("hangs", hang, 0.1) for _ in range(5)]
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(e) for e in ended] == [TimeoutError] * 5
    assert (len(begun), threads.abandoned) == (2, 2)
    fine = ToolResult("2", "other", "ok")
    assert await threads.run("other", lambda: fine, 5) == fine
    free.set()
    assert (await threads.run("hangs", hang, 5)).name == "hangs", "and it works again when they have ended"
    assert len(begun) == 3, "calls that nobody waits for are not begun"


async def test_a_tool_that_is_async_is_cancelled_in_its_own_loop() -> None:
    ended = threading.Event()

    async def waits(arguments: Mapping[str, Any]) -> str:
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()
        return ""

    assert (await result_of(waits, timeout_s=0.1)).error
    assert await asyncio.to_thread(ended.wait, 5)


async def test_a_model_that_never_stops_calling_is_stopped_and_its_calls_are_not_handed_out() -> None:
    seen: list[Turn] = []
    events = await events_of(wrap(script([call(), Done("tool_calls")], seen=seen), max_rounds=2))
    assert len(seen) == 3
    assert [r.error for r in only(events, ToolResult)] == [False, False, True]
    assert events[-1] == Done("length", by="tools")
    assert fold(events).tool_calls == ()


async def test_all_rounds_together_keep_to_max_tokens() -> None:
    seen: list[Turn] = []
    inner = script(
        [call(), Usage(5, 30), Done("tool_calls")],
        [call("1+1", "2"), Usage(9, 70), Done("tool_calls")],
        seen=seen,
    )
    events = await events_of(wrap(inner), ask(max_tokens=100))
    assert [t.decoding.max_tokens for t in seen] == [100, 70]
    assert events[-1] == Done("length", by="tools")


async def test_calls_to_the_callers_tools_are_returned_and_not_run() -> None:
    mine, theirs = call(), ToolCalled(ToolCall("2", "mail", '{"to": "edda"}'))
    seen: list[Turn] = []
    events = await events_of(wrap(script([mine, theirs, Done("tool_calls")], seen=seen)), ask(tools=(MAIL,)))
    assert [t.name for t in seen[0].tools] == ["calculator", "mail"]
    assert fold(events).tool_calls == (theirs.call,)
    assert fold(events).finish_reason == "tool_calls"
    assert len(seen) == 1


async def test_a_callers_tool_of_the_same_name_takes_the_place_of_ours() -> None:
    own = replace(MAIL, name="calculator")
    events = await events_of(wrap(script([call(), Done("tool_calls")])), ask(tools=(own,)))
    assert not only(events, ToolResult)
    assert fold(events).tool_calls == (call().call,)


async def test_tool_choice_none_offers_nothing_and_a_demanded_call_is_demanded_once() -> None:
    for choice, offered, then in (("none", 0, "none"), ("required", 1, "auto"), ("auto", 1, "auto")):
        seen: list[Turn] = []
        await events_of(
            wrap(script([call(), Done("tool_calls")], [Done("stop")], seen=seen)), ask(tool_choice=choice)
        )
        assert [len(t.tools) for t in seen] == [offered, offered]
        assert [t.tool_choice for t in seen] == [choice, then]


@pytest.mark.parametrize("end", [Done("cancelled"), Done("content_filter", by="policy")])
async def test_nothing_is_run_after_a_refusal_or_a_break(end: Done) -> None:
    events = await events_of(wrap(script([call(), Refusal("policy", "r", "w", "No."), end])))
    assert not only(events, ToolResult)
    assert events[-1] == end


async def test_words_before_a_call_stay_and_citations_move_behind_them() -> None:
    passage, prompted = Passage("a#1", "It is 444.", 1.0, "a"), Prompted((Message("system", "Be brief."),))
    around: list[Event] = [prompted, passage]
    inner = script(
        [*around, Text("Let me see."), call(), Done("tool_calls")],
        [*around, Text("It is 444."), Citation(6, 9, "a#1"), Done("stop")],
    )
    events = await events_of(wrap(inner))
    assert text_of(events) == "Let me see.\nIt is 444."
    cited = only(events, Citation)[0]
    assert text_of(events)[cited.start : cited.end] == "444"
    assert only(events, Passage) == [passage]
    assert only(events, Prompted) == [prompted]


async def test_decoding_is_otherwise_the_callers() -> None:
    seen: list[Turn] = []
    decoding = Decoding(temperature=0.0, seed=7, stop=("x",), max_tokens=50)
    await events_of(
        wrap(script([call(), Done("tool_calls")], [Done("stop")], seen=seen)),
        replace(ask(), decoding=decoding),
    )
    assert [t.decoding for t in seen] == [decoding, decoding]


def test_an_unknown_tool_in_the_stack_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'calculator'"):
        tools.Spec(allow=("calculater",))


OBJECT = {
    "type": "object",
    "required": ["n"],
    "additionalProperties": False,
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
        "mode": {"enum": ["fast", "slow", 1]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}},
        "x": {"type": ["number", "null"]},
    },
}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"n": 1}, []),
        ({"n": 1.0}, []),
        ({"n": 9, "mode": "slow", "tags": ["abc"], "x": None}, []),
        ({"n": 2, "x": 1.5}, []),
        ({}, ["a.n is missing"]),
        ({"n": True}, ["a.n should be integer, got true"]),
        ({"n": 0}, ["a.n should be at least 1, got 0"]),
        ({"n": 10}, ["a.n should be at most 9, got 10"]),
        ({"n": 1.5}, ["a.n should be integer, got 1.5"]),
        ({"n": 1, "m": 2}, ["a.m is unknown; known: n, mode, tags, x"]),
        ({"n": 1, "mode": True}, ['a.mode should be one of "fast", "slow", 1, got true']),
        (
            {"n": 1, "tags": ["abcd", 5]},
            ["a.tags[0] in characters should be at most 3, got 4", "a.tags[1] should be string, got 5"],
        ),
        ({"n": 1, "x": "1"}, ['a.x should be number or null, got "1"']),
        ([], ["a should be object, got []"]),
    ],
)
def test_arguments_are_checked_against_the_schema(value: Any, wrong: list[str]) -> None:
    assert mistakes(value, OBJECT, "a") == wrong


@pytest.mark.parametrize(
    ("schema", "value", "wrong"),
    [
        ({}, 5, []),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, {}, []),
        ({"minItems": 1}, [], ['a should be valid by {"minItems": 1}, got []']),
        ({"properties": {"x": False}}, {"x": 5}, ["a holds 5 where the schema allows nothing"]),
        ({"const": "a"}, "b", ['a should be valid by {"const": "a"}, got "b"']),
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            5,
            ['a should be valid by {"anyOf": [{"type": "string"}, {"type": "null"}]}, got 5'],
        ),
        ({"pattern": "^[a-z]+$"}, "Ab", ['a should be valid by {"pattern": "^[a-z]+$"}, got "Ab"']),
        ({"pattern": "^[a-z]+$"}, "ab", []),
        ({"additionalProperties": False}, {"x": 1}, ["a.x is unknown; known: none"]),
        (
            {"patternProperties": {"^x": {}}, "additionalProperties": False},
            {"xy": 1, "z": 2},
            ['a should be valid by {"additionalProperties": false}, got {"xy": 1, "z": 2}'],
        ),
        ({"required": ["x", "y"]}, {}, ["a.x is missing", "a.y is missing"]),
        ({"minLength": 2}, "\U0001f600", ["a in characters should be at least 2, got 1"]),
        (
            {"$defs": {"t": {"items": {"$ref": "#/$defs/t"}, "type": "array"}}, "$ref": "#/$defs/t"},
            [[], [[5]]],
            ["a[1][0][0] should be array, got 5"],
        ),
    ],
)
def test_every_keyword_of_the_draft_is_checked(schema: dict[str, Any], value: Any, wrong: list[str]) -> None:
    assert mistakes(value, schema, "a") == wrong


DOUBLING: dict[str, Any] = {
    f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)
}


@pytest.mark.parametrize(
    ("schema", "value", "why"),
    [
        ({"$ref": "#"}, 5, "RecursionError"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            5,
            "Recursion",
        ),
        ({"$defs": DOUBLING | {"d40": False}, "$ref": "#/$defs/d0"}, 5, "more than 10000 references"),
        ({"$ref": "#/$defs/none"}, 5, "none"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, 5, "Unresolvable: http://127.0.0.1:9/schema.json"),
        ({"$ref": "file:///etc/passwd"}, 5, "Unresolvable: file:///etc/passwd"),
        ({"type": "thing"}, 5, "$.type: 'thing' is not valid"),
        (
            {"properties": {"n": {"minimum": "1"}}},
            {"n": 5},
            "$.properties.n.minimum: '1' is not of type 'number'",
        ),
        ({"pattern": "("}, "a", "missing )"),
        ({"multipleOf": 0.5}, float("nan"), "Error"),
    ],
)
def test_a_schema_that_cannot_be_used_is_a_mistake_that_says_why(
    schema: dict[str, Any], value: Any, why: str
) -> None:
    (said,) = mistakes(value, schema)
    assert said.startswith("arguments cannot be checked, the tool's schema cannot be used: ")
    assert why in said
    assert len(said) < 400


def test_a_pattern_takes_time_linear_in_the_text() -> None:
    started = time.thread_time()
    (said,) = mistakes("a" * 100_000 + "!", {"pattern": "^(a+)+$"})
    assert said == 'arguments should be valid by {"pattern": "^(a+)+$"}, got "' + "a" * 56 + "..."
    assert time.thread_time() - started < 2


async def test_a_long_list_of_mistakes_is_shortened_as_a_result_is() -> None:
    async def run(arguments: Mapping[str, Any]) -> str:
        raise AssertionError("is not called")

    spec = ToolSpec("list", "", {"type": "object", "additionalProperties": False})
    sent = ToolCall("1", "list", json.dumps({f"x{n}": n for n in range(1000)}))
    result = await calls.called(sent, {"list": LoadedTool(spec, run)}, 1.0, 100)
    assert result.content.startswith("error: arguments.x0 is unknown; known: none; arguments.x1")
    assert result.content.endswith("more characters]")
    assert len(result.content) < 150


async def test_a_copy_of_a_request_runs_only_tools_that_change_nothing_outside() -> None:
    """A dry run (a shadow, a replay): the calculator is run, a tool that may have effects is not, and the model is told."""
    ran: list[object] = []

    async def send(arguments: Mapping[str, Any]) -> str:
        ran.append(arguments)
        return "sent"

    token = calls.DRY_RUN.set(True)
    try:
        pure = await calls.called(call().call, load(["calculator"]), 5.0, 100)
        mail = ToolCall("1", "mail", '{"to": "edda"}')
        effect = await calls.called(mail, {"mail": LoadedTool(MAIL, send)}, 5.0, 100)
    finally:
        calls.DRY_RUN.reset(token)
    assert (pure.content, pure.error) == ("444", False)
    assert effect.error
    assert "not run" in effect.content
    assert ran == []


def test_schemas_that_were_checked_before_are_judged_as_the_first_time() -> None:
    """What is remembered of a schema is its text: neither another schema nor an unusable one passes for it."""
    for minimum, wrong in [
        (1, ["a should be at least 1, got 0"]),
        (0, []),
        (True, None),
        (1, ["a should be at least 1, got 0"]),
    ]:
        said = mistakes(0, {"minimum": minimum}, "a")
        assert said == wrong if wrong is not None else "cannot be used" in said[0]
    chain = {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    for _ in range(3):  # each check has all references to itself
        assert mistakes([[]] * 6000, chain) == []
    (said,) = mistakes([[]] * 12_000, chain)
    assert "references" in said
