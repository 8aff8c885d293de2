"""Data files to rows: every column set, every kind of file, and an error with file and line for everything else."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, ToolCall, ToolSpec
from demeanor.data.rows import Want, kind_of, likely, parse
from demeanor.data.sources import rows, weighted
from demeanor.stack.schema import Source

WHO, MARLA, NO = Message("user", "Who?"), Message("assistant", "Marla."), Message("assistant", "No.")
TOOL = {
    "type": "function",
    "function": {"name": "clock", "description": "Time.", "parameters": {"type": "object"}},
}


def raw(*messages: Message) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def read(path: Path, want: Want = "examples", **settings: Any) -> list[Example | Preference]:
    return rows(Source(source=path.name, **settings), root=path.parent, want=want)


def lines(path: Path, found: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "Marla."},
        {"prompt": raw(WHO), "completion": raw(MARLA)},
        {"prompt": "Who?", "completion": raw(MARLA)},
        {"prompt": json.dumps(raw(WHO)), "completion": "Marla.", "tools": None, "id": 7},
        {"instruction": "Who?", "input": "", "output": "Marla."},
        {"instruction": "Who?", "output": "Marla.", "chosen": "x", "rejected": "y"},
    ],
)
def test_prompt_and_completion_in_any_form_train_the_completion(row: dict[str, Any]) -> None:
    assert parse(row, "examples", "") == Example((WHO, MARLA), trained_from=1)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": raw(WHO, MARLA)},
        {"messages": json.dumps(raw(WHO, MARLA))},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Marla."}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "?"}]},
                *raw(MARLA),
            ]
        },
    ],
)
def test_messages_train_every_assistant_message(row: dict[str, Any]) -> None:
    assert parse(row, "examples", "") == Example((WHO, MARLA))


def test_prompts_alone_and_text_alone_are_rows_too() -> None:
    assert parse({"prompt": "Who?"}, "examples", "") == Example((WHO,), trained_from=1)
    assert parse({"text": "Once."}, "examples", "") == parse("Once.", "text", "") == Example(text="Once.")
    assert parse({"system": "Be brief.", "messages": raw(WHO, MARLA)}, "examples", "").messages[0] == Message(
        "system", "Be brief."
    )  # type: ignore[union-attr]
    assert (
        parse({"instruction": "Fix:", "input": "teh", "output": "the"}, "examples", "").messages[0].content
        == "Fix:\n\nteh"
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "chosen": "Marla.", "rejected": "No."},
        {"prompt": raw(WHO), "chosen": raw(MARLA), "rejected": raw(NO)},
        {"prompt": "Who?", "chosen": raw(WHO, MARLA), "rejected": raw(WHO, NO)},
        {"chosen": raw(WHO, MARLA), "rejected": raw(WHO, NO)},
        {"chosen": "\n\nHuman: Who?\n\nAssistant: Marla.", "rejected": "\n\nHuman: Who?\n\nAssistant: No."},
        {"prompt": "Who?", "completions": ["Marla.", "No."], "ranks": [0, 1]},
        {"prompt": raw(WHO), "completions": json.dumps([raw(MARLA), raw(NO)]), "ranks": "[0, 1]"},
        {"instruction": "Who?", "input": "", "output": "x", "chosen": "Marla.", "rejected": "No."},
    ],
)
def test_preferences_in_any_form_are_one_prompt_and_ranked_completions(row: dict[str, Any]) -> None:
    assert parse(row, "preferences", "here") == Preference((WHO,), ((MARLA,), (NO,)), (0, 1), source="here")


def test_implicit_prompts_are_split_between_messages_and_never_inside_one() -> None:
    alike = Message("assistant", "Marla. Or not.")
    found = parse(
        {"chosen": raw(WHO, MARLA, WHO, alike), "rejected": raw(WHO, MARLA, WHO, MARLA)}, "preferences", ""
    )
    assert isinstance(found, Preference)
    assert found.prompt == (WHO, MARLA, WHO)
    assert found.completions == ((alike,), (MARLA,))


def test_margins_and_tools_are_read_tools_also_from_json_text() -> None:
    for tools in ([TOOL], json.dumps([TOOL]), [TOOL["function"]]):
        found = parse(
            {"prompt": "Who?", "chosen": "Marla.", "rejected": "No.", "margin": "0.5", "tools": tools},
            "preferences",
            "",
        )
        assert found.tools == (ToolSpec("clock", "Time.", {"type": "object"}),)
        assert isinstance(found, Preference)
        assert found.margin == 0.5


def test_tool_calls_keep_their_arguments() -> None:
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"a":1}'}},
            {"function": {"name": "clock", "arguments": {"a": 1}}},
        ],
    }
    found = parse(
        {"messages": [*raw(WHO), said, {"role": "tool", "content": "12", "tool_call_id": "c1"}, *raw(MARLA)]},
        "examples",
        "",
    )
    assert isinstance(found, Example)
    assert found.messages[1] == Message(
        "assistant", "", (ToolCall("c1", "clock", '{"a":1}'), ToolCall("", "clock", '{"a": 1}'))
    )
    assert found.messages[2].tool_call_id == "c1"


def test_a_ranking_with_a_mistake_is_not_taken_for_a_bare_prompt() -> None:
    assert kind_of({"prompt": "x", "completions": ["a", "b"], "ranks": [0, 1]}) == "preferences"
    broken = {"prompt": "x", "completions": ["a", "b"], "ranks": [0.5, 1.5]}
    assert kind_of(broken) is None
    assert likely(broken) == "preferences"


@pytest.mark.parametrize(
    ("row", "want", "said"),
    [
        (3, "examples", "got a int, wanted an object of columns"),
        ({}, "examples", r"has the columns \(none\); wanted text \| messages"),
        ({"question": "x"}, "examples", "has the columns question; wanted text"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "examples", "a preference row"),
        (
            {"prompt": "x", "completions": ["a", "b"], "ranks": [0, 1]},
            "examples",
            "a preference row \\(completions, ranks\\)",
        ),
        (
            {"prompt": "x", "completion": "y"},
            "preferences",
            "has the columns completion, prompt; wanted .*chosen,rejected",
        ),
        ({"prompt": "x", "completion": "y"}, "text", "wanted text"),
        ({"text": 3}, "text", "text: got a int, wanted text"),
        ({"text": "  \n"}, "text", "text: is empty"),
        ({"messages": "hello"}, "examples", "messages: is text that is not JSON"),
        ({"messages": {"role": "user"}}, "examples", "messages: got a dict, wanted a list"),
        ({"messages": ["hi"]}, "examples", r"messages\[0\]: got a str"),
        ({"messages": raw(WHO)}, "examples", "none is from the assistant"),
        (
            {"messages": [{"role": "asistant", "content": "x"}]},
            "examples",
            r"messages\[0\].role: unknown role 'asistant'. Did you mean 'assistant'",
        ),
        (
            {"messages": [{"role": "assistant", "content": ""}]},
            "examples",
            "the assistant's message is empty",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "examples",
            "a part that is not text",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "examples", "content: got a int"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "examples",
            r"tool_calls\[0\]: wanted",
        ),
        (
            {"prompt": raw(WHO, MARLA), "completion": "x"},
            "examples",
            "prompt: ends with an assistant message",
        ),
        ({"prompt": "x", "completion": raw(WHO)}, "examples", "completion: got a user message"),
        ({"prompt": "x", "completion": "y", "tools": [{}]}, "examples", r"tools\[0\]: wanted"),
        ({"chosen": "a cat", "rejected": "a car"}, "preferences", "chosen: is text without a prompt column"),
        (
            {"chosen": raw(WHO, MARLA), "rejected": raw(WHO, MARLA)},
            "preferences",
            "after an assistant's message",
        ),
        ({"chosen": raw(WHO, MARLA), "rejected": raw(MARLA)}, "preferences", "share no first message"),
        (
            {"chosen": raw(WHO, MARLA), "rejected": raw(WHO)},
            "preferences",
            "rejected: got nothing after the prompt",
        ),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "preferences", "chosen: is empty"),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b", "margin": "much"},
            "preferences",
            "margin: got 'much', wanted a number",
        ),
        ({"prompt": "x", "completions": ["a"], "ranks": [0]}, "preferences", "got 1 completions and 1 ranks"),
        ({"prompt": "x", "completions": ["a", "b"], "ranks": [1, 1]}, "preferences", "not all the same"),
        ({"prompt": "x", "completions": ["a", "b"], "ranks": [0, "1"]}, "preferences", "whole numbers"),
    ],
)
def test_a_bad_row_says_what_is_wrong_and_what_was_wanted(
    row: Any, want: Want, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        parse(row, want, "")
    path = lines(
        tmp_path / "rows.jsonl", ["fine" if want == "text" else row, row] if want == "text" else [row]
    )
    with pytest.raises(DataError) as caught:
        read(path, want)
    assert f"{path}:{2 if want == 'text' else 1}: " in str(caught.value)


def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path) -> None:
    found = [{"prompt": "Who?", "completion": "Marla."}, {"prompt": 'a, "b"\u2028c\nd', "completion": "é"}]
    lines(tmp_path / "rows.jsonl", found)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    (tmp_path / "rows.json").write_text(json.dumps(found))
    (tmp_path / "columns.json").write_text(json.dumps({k: [row[k] for row in found] for k in found[0]}))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    read_back = {
        p.name: [row.messages for row in read(p) if isinstance(row, Example)] for p in tmp_path.iterdir()
    }
    assert len(read_back) == 5
    assert all(messages == read_back["rows.json"] for messages in read_back.values())
    assert read_back["rows.json"][1][0].content == 'a, "b"\u2028c\nd'


def test_each_row_knows_its_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('"one"\n\n"two"\n')
    assert [row.source for row in read(path)] == [f"{path}:1", f"{path}:3"]
    path = tmp_path / "rows.csv"
    path.write_text('text\n"a\nb"\nc\n')
    assert [row.source for row in read(path)] == [f"{path}:2", f"{path}:4"]


def test_a_folder_of_texts_is_one_document_each_without_gutenbergs_frame(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Plain.\n")
    (tmp_path / "a.txt").write_text(
        "Header\n*** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n\n\nCHAPTER I\n\nEnd of Project Gutenberg's Alice\n\n"
        "*** END OF THIS PROJECT GUTENBERG EBOOK ALICE ***\nLicence"
    )
    (tmp_path / "c.md").write_text("not a text")
    found = rows(Source(source="."), root=tmp_path, want="text")
    assert [row.text for row in found if isinstance(row, Example)] == ["CHAPTER I", "Plain.\n"]


def test_all_bad_rows_are_listed_together(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", ["fine", *[{f"x{i}": 1} for i in range(12)]])
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert "12 of 13 rows cannot be used:" in text
    assert f"{path}:2: has the columns" in text
    assert text.count("has the columns") == 8
    assert text.endswith("and 4 more")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b'{"text": 1}\n{"text"', r"rows.jsonl:2: not JSON"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.json", b'{"a": 1}\n{"b": 2}', "name it .jsonl"),
        ("rows.json", b'{"a": [1], "b": [1, 2]}', "equally long columns; got a: 1, b: 2"),
        ("rows.json", b"3", "got a JSON int"),
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"prompt,completion\na,b,c\n", r"rows.csv:2: got more fields than the 2 column names"),
        ("rows.txt", b"\xff\xfe", "not UTF-8 text"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read"),
        ("rows.xml", b"<row/>", "unknown kind of file '.xml'; wanted .jsonl"),
        ("rows.parquet", b"PAR1", "cannot be read: ArrowInvalid"),
        ("rows.arrow", b"ARROW1", "cannot be read: ArrowInvalid"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path / name)


def test_a_missing_file_names_its_neighbours_and_an_empty_folder_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('"x"')
    with pytest.raises(DataError, match=r"row.jsonl: no such file.*Did you mean 'rows.jsonl'"):
        read(tmp_path / "row.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no \.txt files"):
        read(tmp_path / "empty")


@given(size=st.integers(1, 40), weight=st.floats(0.01, 4))
def test_a_weight_repeats_or_thins_rows_evenly_and_always_the_same_way(size: int, weight: float) -> None:
    found = weighted(range(size), weight, "name")
    assert len(found) == max(1, round(weight * size))
    counts = [found.count(i) for i in range(size)]
    assert max(counts) - min(counts) <= 1
    assert found == weighted(range(size), weight, "name")


def test_a_limit_takes_the_first_rows_before_the_weight_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [str(i) for i in range(10)])
    found = [row.text for row in read(path, limit=2, weight=1.5) if isinstance(row, Example)]
    assert found[:2] == ["0", "1"]
    assert len(found) == 3
    assert set(found) == {"0", "1"}


def test_generated_rows_are_read_by_name_and_checked_for_what_is_wanted() -> None:
    generated = {
        "corpus": lambda: iter([Example(text="a"), Example(text="b")]),
        "pairs": lambda: [Preference((WHO,), ((MARLA,), (NO,)), (0, 1))],
    }
    assert rows(Source(source="world:corpus", limit=1), root=Path(), generated=generated, want="text") == [
        Example(text="a")
    ]
    assert len(rows(Source(source="world:pairs"), root=Path(), generated=generated, want="preferences")) == 1
    with pytest.raises(DataError, match="row 1: got a preference, wanted examples"):
        rows(Source(source="world:pairs"), root=Path(), generated=generated)
    with pytest.raises(DataError, match="Did you mean 'world:corpus'"):
        rows(Source(source="world:corpsu"), root=Path(), generated=generated)


def test_real_files_are_read(shared: Path) -> None:
    def count(name: str, want: Want) -> int:
        return len(rows(Source(source=name), root=shared, want=want))

    assert count("rasbt/instruction-data.json", "examples") == 1100
    assert count("rasbt/instruction-data-with-preference.json", "examples") == 1100
    assert count("rasbt/instruction-data-with-preference.json", "preferences") == 1100
    assert count("tinystories/tinystories_1000.json", "text") == 1000
    assert count("gutenberg", "text") == 8
    assert count("json-mode/json_mode_dataset.jsonl", "examples") == 500
    assert count("xstest/xstest_prompts.csv", "examples") == 450
    books = rows(Source(source="gutenberg"), root=shared, want="text")
    assert not any(
        "gutenberg license" in (row.text or "").lower() for row in books if isinstance(row, Example)
    )
    with pytest.raises(
        DataError, match=r"instruction-data.json: row 1: has the columns input, instruction, output"
    ):
        count("rasbt/instruction-data.json", "preferences")
