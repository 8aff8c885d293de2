"""Rows of public bug reports: what counts as a repeat, what is no text, files of other programs, and doubts that are told."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from harbour import template, tokenizer

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, TrainingRow
from demeanor.data.batches import assemble
from demeanor.data.rows import parse
from demeanor.data.similarity import as_columns, duplicates, words
from demeanor.data.sources import Doubts, read, rows
from demeanor.data.trees import example_tree
from demeanor.stack.schema import Source

HALF = '{"prompt": "What?", "completion": "a face \\ud83d"}\n{"prompt": "And this?", "completion": "a cat"}\n'
LONG = "The ferry to Corkel leaves the old pier in the early morning and comes back in the late evening with the mail"


def call(arguments: Any, id: str = "c1") -> dict[str, Any]:
    tool = {"id": id, "function": {"name": "book", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "Book."},
            {"role": "assistant", "content": "", "tool_calls": [tool]},
        ]
    }


def pair(prompt: str, completion: str = "fine", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (call({"day": 3}), call({"day": 9})),
        (call({"day": 3}), call({"night": 3})),
        (call({"day": True}), call({"day": False})),
        (call('{"day": 3}'), call('{"day": 4}')),
        (pair("Is 7 < 5 ?"), pair("Is 7 = 5 ?")),
        (pair("Sum: 3 + 3 - 2"), pair("Sum: -3 + 3 + 2")),
        (pair("I write C."), pair("I write C++.")),
        (pair("😀"), pair("🎉")),
        (pair("Which sign?", "?"), pair("Which sign?", "!")),
        (pair("कि"), pair("का")),
        (pair("x̂"), pair("x̌")),
        (pair(f"{LONG}, for 3.50 crowns."), pair(f"{LONG}, for 35.0 crowns.")),
        (pair(f"{LONG} €5"), pair(f"{LONG} $5")),
        (pair(LONG, label=True), pair(LONG, label=False)),
        (pair(LONG, chat_template_kwargs={"thinking": True}), pair(LONG)),
        (pair(f"{LONG} 12:30"), pair(f"{LONG} 12:45")),
        (
            {"chosen": [{"role": "user", "content": LONG}]},
            {"chosen": [{"role": "assistant", "content": LONG}]},
        ),
    ],
)
def test_rows_that_differ_in_data_are_never_repeats(first: Any, second: Any) -> None:
    for threshold in (None, 0.5, 0.8):
        assert duplicates([first, second], threshold) == []
    assert [d.row for d in duplicates([first, first], None)] == [1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pair("Who runs it?", id=1), pair("who runs it", id=2)),
        (call({"a": 1, "b": 2}), call('{"b": 2, "a": 1}', id="c2")),
    ],
)
def test_rows_that_say_the_same_are_repeats(first: Any, second: Any) -> None:
    assert [d.row for d in duplicates([first, second], None)] == [1]


def test_a_near_repeat_has_the_same_numbers() -> None:
    assert len(duplicates([pair(f"{LONG}, for 5 crowns."), pair(f"{LONG}, only for 5 crowns!")], 0.6)) == 1


def test_combining_marks_belong_to_their_word() -> None:
    assert words("Der कि शब्द, Cafe\u0301") == ["der", "कि", "शब्द", "café"]


@pytest.mark.parametrize(
    "command",
    [["show", "IN"], ["dedup", "IN", "out.jsonl"], ["filter", "IN", "out.jsonl", "--min-chars", "1"]],
)
@pytest.mark.parametrize(
    ("name", "content"),
    [("in.jsonl", HALF.encode()), ("in.jsonl", HALF.encode().replace(b"\\ud83d", b"\xff"))],
)
def test_a_row_that_is_no_unicode_names_its_line_and_is_skipped_on_demand(
    command: list[str], name: str, content: bytes, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    given = ["data", *[name if part == "IN" else part for part in command]]
    assert main(given) == 2
    assert "in.jsonl:1:" in capsys.readouterr().err
    assert main([*given, "--skip-bad"]) == 0
    assert "skipped 1 of 2 rows" in capsys.readouterr().out


def test_a_row_nested_without_end_or_a_number_without_end_is_a_row_error(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    (tmp_path / "a.jsonl").write_text(
        f'{{"prompt": "x", "completion": "y", "z": {deep}}}\n{"[" * 99999}\n"fine"\n'
    )
    (tmp_path / "b.json").write_text("[" + "1" * 9999 + "]")
    with pytest.raises(DataError, match=r"2 of 3 rows(.|\n)*a.jsonl:1:(.|\n)*a.jsonl:2:"):
        rows(Source(source="a.jsonl"), root=tmp_path)
    with pytest.raises(DataError, match=r"b\.json: not JSON"):
        rows(Source(source="b.json"), root=tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"prompt,completion\rHi,there\rYo,you\r", ["there", "you"]),
        (b'\xef\xbb\xbfprompt,completion\r\nHi,"two\r\nlines"\r\n', ["two\nlines"]),
        (b"prompt,completion\nHi,the\x00re\n", ["the\x00re"]),
        ("prompt,completion\nHi,a\u2028b\u0085c\n".encode(), ["a\u2028b\u0085c"]),
        (b"prompt,completion\nHi," + b"x" * 200_000 + b"\n", ["x" * 200_000]),
        (b'prompt,completion\nHi,"[{""port"": 1}]"\n', ['[{"port": 1}]']),
    ],
)
def test_csv_of_any_line_end_and_length_is_read(content: bytes, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    found = [row for row in rows(Source(source="in.csv"), root=tmp_path) if isinstance(row, Example)]
    assert [row.messages[-1].content for row in found] == expected


def test_a_quotation_mark_that_nothing_closes_swallows_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('prompt,completion\nHi,5" pipe\nYo,"you\nA,b\nC,d\n')
    with pytest.raises(DataError, match=r"in\.csv:3: a quotation mark opens 3 lines"):
        rows(Source(source="in.csv"), root=tmp_path)
    assert len(rows(Source(source="in.csv", skip_bad=True), root=tmp_path, say=lambda said: None)) == 1


def test_unicode_line_separators_do_not_end_a_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a\u2028b\u0085c"\n"d"\n', encoding="utf-8")
    assert [r.text for r in rows(Source(source="in.jsonl"), root=tmp_path) if isinstance(r, Example)] == [
        "a\u2028b\u0085c",
        "d",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_utf16_is_refused_with_its_name_or_its_lines(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes('{"prompt": "é", "completion": "ü"}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"in\.jsonl:1: "):
        rows(Source(source="in.jsonl"), root=tmp_path)


def test_parquet_values_that_json_lacks_become_text_or_name_their_column(
    tmp_path: Path, monkeypatch: Any
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "prompt": ["a", "b"],
            "completion": [b"x", b"y"],
            "when": [datetime.datetime(2024, 1, 2, 3), None],
            "price": [Decimal("1.5"), None],
            "nested": [{"day": datetime.date(2024, 1, 2), "list": [Decimal("2.5")]}, None],
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    parquet.write_table(table.append_column("raw", pyarrow.array([b"\xff", None])), tmp_path / "raw.parquet")
    assert len(rows(Source(source="raw.parquet"), root=tmp_path)) == 2  # a column that no row reads
    monkeypatch.chdir(tmp_path)
    assert main(["data", "dedup", "in.parquet", "out.jsonl"]) == 0
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first == {
        "prompt": "a",
        "completion": "x",
        "when": "2024-01-02T03:00:00",
        "price": "1.5",
        "nested": {"day": "2024-01-02", "list": ["2.5"]},
    }
    assert main(["data", "dedup", "raw.parquet", "raw.jsonl"]) == 2
    assert main(["data", "dedup", "raw.parquet", "raw.jsonl", "--skip-bad"]) == 0


@pytest.mark.parametrize(
    "answer",
    [
        '[{"port": "Corkel"}, {"port": "Jorpel"}]',
        '[{"value": 1}]',
        '[{"from": "Corkel", "to": "Jorpel"}]',
        '[{"from": "Corkel", "value": 3}]',
        "[{x}]",
        "[1, 2]",
        "[]",
    ],
)
def test_an_answer_that_is_a_json_array_is_text(answer: str) -> None:
    found = parse(pair("List.", answer), "examples", "")
    assert isinstance(found, Example)
    assert found.messages[-1].content == answer
    chosen = parse({"prompt": "List.", "chosen": answer, "rejected": "no"}, "preferences", "")
    assert isinstance(chosen, Preference)
    assert chosen.completions[0][0].content == answer


def test_messages_as_python_prints_them_are_no_answer() -> None:
    with pytest.raises(ValueError, match="completion: is text that is not JSON"):
        parse(pair("x", "[{'role': 'assistant', 'content': 'y'}]"), "examples", "")


ASK, YES, NO = Message("user", "Q?"), Message("assistant", "Yes."), Message("assistant", "No.")


@pytest.mark.parametrize(
    "row",
    [
        {
            "input": {
                "messages": [{"role": "user", "content": "Q?"}],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": [{"role": "assistant", "content": "Yes."}],
            "non_preferred_output": [{"role": "assistant", "content": "No."}],
        },
        {
            "conversations": [{"from": "human", "value": "Q?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {
            "messages": [{"role": "user", "content": "Q?"}],
            "chosen": {"role": "assistant", "content": "Yes."},
            "rejected": {"role": "assistant", "content": "No."},
        },
    ],
)
def test_published_shapes_of_preferences_are_read(row: dict[str, Any]) -> None:
    expected = Preference((ASK,), ((YES,), (NO,)), (0, 1))
    assert parse(row, "preferences", "") == parse(row, "unpaired", "") == expected


def test_weight_and_reasoning_are_read_and_written_back() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": "No.", "weight": 0},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "weight": 1},
        ]
    }
    found = parse(row, "examples", "")
    assert isinstance(found, Example)
    assert found.messages[1] == Message("assistant", "No.", trained=False)
    assert found.messages[3] == Message("assistant", "Yes.", reasoning="Hm.")
    assert parse(as_columns(found), "examples", "") == found
    with pytest.raises(ValueError, match=r"weight: got 0.5, wanted 0"):
        parse({"messages": [{"role": "user", "content": "x", "weight": 0.5}]}, "examples", "")
    with pytest.raises(ValueError, match="every answer has weight 0"):
        parse({"messages": row["messages"][:2]}, "examples", "")


@pytest.mark.parametrize(
    ("row", "want", "line"),
    [
        ({"question": "x", "answer": "y"}, "examples", "columns: {prompt: question, completion: answer}"),
        (
            {"prompt": "x", "preferred": "y", "worse": "z"},
            "preferences",
            "columns: {chosen: preferred, rejected: worse}",
        ),
        ({"document": "x"}, "text", "columns: {text: document}"),
    ],
)
def test_known_names_of_columns_are_offered_as_the_line_to_write(row: Any, want: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(row, want, "")
    assert line in str(caught.value)


def test_every_unusable_row_of_a_stage_is_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "x"}\n{"messages": 3}\n{"text": "fine"}\n{"prompt": "x", "completion": 4}\n'
    )
    (tmp_path / "b.csv").write_text("prompt,completion\na,b\nc\n")

    def run(skip: bool, said: list[str]) -> int:
        found = assemble(
            [Source(source=name, skip_bad=skip) for name in ("a.jsonl", "b.csv")],
            read=lambda s, problems: read(s, root=tmp_path, problems=problems),
            render=lambda row: example_tree(row, template("turns"), tokenizer()),  # type: ignore[arg-type]
            document=tokenizer().document,
            folder=tmp_path,
            say=said.append,  # type: ignore[arg-type]
        )
        return len(found.trees) + len(found.documents)

    with pytest.raises(DataError) as caught:
        run(False, [])
    places = [
        part
        for part in ("a.jsonl:1: ", "a.jsonl:2: ", "a.jsonl:4: ", "b.csv:3: ")
        if part in str(caught.value)
    ]
    assert len(places) == 4
    said: list[str] = []
    assert run(True, said) == 2
    assert [len(text.splitlines()) for text in said] == [4, 2]
    assert "skipped 3 of 4 rows" in said[0]
    assert "b.csv:3: " in said[1]


def test_rows_that_teach_nothing_are_doubted() -> None:
    def doubts(found: list[TrainingRow], **settings: Any) -> str:
        noted = Doubts(**settings)
        for row in found:
            noted.add(row)
        return "\n".join(noted.said())

    same: list[TrainingRow] = [
        parse({"prompt": "Q", "chosen": "yes", "rejected": x}, "preferences", "") for x in ("yes", "no")
    ]
    assert "1 of 2 comparisons have the same text" in doubts(same)
    labels = [parse(pair("Q", label=x), "unpaired", "") for x in (True, True, False)]
    assert "all 2 labels are true" in doubts(labels[:2])
    assert doubts(labels) == doubts(same[1:]) == ""
    spelt = [parse({"text": "<|im_start|>user\nHi"}, "text", ""), parse({"text": "Hi"}, "text", "")]
    assert "1 of 2 rows spell special tokens" in doubts(spelt, specials=["<|im_start|>"])
    assert doubts(spelt) == ""
    thinks = [parse({"messages": [{"role": "assistant", "content": "x", "reasoning": "y"}]}, "examples", "")]
    assert "1 of 1 rows have reasoning_content" in doubts(thinks, template="{{ messages }}")
    assert doubts(thinks, template="{{ m.reasoning_content }}") == ""


def test_personal_data_is_found_in_numbers_keys_and_other_columns(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    card = 4111111111111111
    found = [
        call({"card": card}),
        call({"card": str(card)}),
        {"text": "x", "owner": {"card": card}},
        {"text": "kept", "n": 7},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert main(["data", "filter", "in.jsonl", "out.jsonl", "--no-personal-data"]) == 0
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == found[3:]


def test_the_csv_library_reads_what_we_wrote_of_a_long_field(tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "completion"], ['a "quoted" one', 'line\nbreak, and "more" ' * 9000]]
        )
    (row,) = rows(Source(source="in.csv"), root=tmp_path)
    assert isinstance(row, Example)
    assert row.messages[1].content == 'line\nbreak, and "more" ' * 9000
