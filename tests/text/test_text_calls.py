"""Tool calls as text: written and read back verbatim, with ids that depend on the answer alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from conversations import arguments
from hypothesis import given
from hypothesis import strategies as st

from demeanor.core.types import Text, ToolCall, ToolCalled, ToolSpec
from demeanor.text.tool_calls import CallReader, call_text, parse_call, signature


@given(name=st.text(min_size=1), written=st.one_of(arguments, st.text()))
def test_a_call_is_read_back_as_it_was_written(name: str, written: str) -> None:
    found = parse_call(call_text(ToolCall("", name, written)), 0)
    assert found is not None
    assert found.name == name
    assert found.arguments in (written, written.strip())


def test_arguments_are_passed_on_exactly_as_the_model_wrote_them() -> None:
    raw = '{"expression":  "1 + 2",   "x": [1 ,2]}'
    for body in (
        f'{{"name": "calculator", "arguments": {raw}}}',
        f'\n {{"arguments":{raw} , "name":"calculator"}}\n',
        f'{{"name": "calculator", "parameters": {raw}}}',
    ):
        found = parse_call(body, 0)
        assert found is not None
        assert (found.name, found.arguments) == ("calculator", raw)


def test_the_same_call_has_the_same_id_and_the_next_one_another() -> None:
    body = '{"name": "clock", "arguments": {}}'
    first, again, second = (parse_call(body, i) for i in (0, 0, 1))
    assert first is not None
    assert first == again != second
    assert first.id.startswith("call_")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "[1]",
        "{",
        '{"name": 3, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "x"',
        '{"name" "x"}',
        '{"name": "x", "arguments": {}} and more',
        "{" * 5000,
        '{"name": "x", "arguments": }',
    ],
)
def test_what_is_no_call_is_passed_on_as_text(body: str) -> None:
    assert parse_call(body, 0) is None
    reader = CallReader("<call>", "</call>")
    events = [*reader.feed(0, f"So<call>{body}</call>"), *reader.finish()]
    assert "".join(e.text for e in events if isinstance(e, Text)) == f"So{body}"


@given(cuts=st.lists(st.integers(0, 200), max_size=12))
def test_however_a_turn_is_cut_into_pieces_it_reads_the_same(cuts: list[int]) -> None:
    turn = 'Well <tool\n\n<tool_call>\n{"name": "a", "arguments": {"x": "<"}}\n</tool_call>\n<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    ends = sorted({*(c % len(turn) for c in cuts), 0, len(turn)})
    reader = CallReader("<tool_call>", "</tool_call>")
    events = [e for a, b in pairwise(ends) for e in reader.feed(0, turn[a:b])] + reader.finish()
    assert "".join(e.text for e in events if isinstance(e, Text)) == "Well <tool\n"
    assert [(e.call.name, e.call.arguments) for e in events if isinstance(e, ToolCalled)] == [
        ("a", '{"x": "<"}'),
        ("b", "{}"),
    ]


def test_where_a_token_opens_a_call_its_spelling_does_not() -> None:
    body = '{"name": "clock", "arguments": {}}'
    reader = CallReader("<|call|>", opening_id=7)
    assert reader.feed(1, f"Say <|call|>{body}") == [Text(f"Say <|call|>{body}")]
    assert reader.feed(7, "<|call|>") == []
    assert reader.feed(1, body) == []
    (event,) = reader.finish()
    assert isinstance(event, ToolCalled)


def test_text_is_passed_on_at_once_unless_it_may_begin_a_call() -> None:
    reader = CallReader("<tool_call>", "</tool_call>")
    assert reader.feed(0, "Hello <") == [Text("Hello ")]
    assert reader.feed(0, "b>\n") == [Text("<b>")]
    assert reader.feed(0, "x") == [Text("\nx")]
    assert reader.finish() == []


def test_a_signature_lists_the_parameters() -> None:
    assert signature(ToolSpec("fare", "", {"properties": {"port": {}, "day": {}}})) == "fare(port, day)"
    assert signature(ToolSpec("now", "", {})) == "now()"


def test_equal_calls_of_one_answer_have_ids_of_their_own() -> None:
    reader = CallReader("<tool_call>", "</tool_call>")
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    events = [*reader.feed(1, call), *reader.feed(2, f"\n{call}"), *reader.finish()]
    ids = [event.call.id for event in events if isinstance(event, ToolCalled)]
    assert len(ids) == len(set(ids)) == 2
