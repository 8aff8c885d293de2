"""Rows as OpenAI, LLaMA-Factory and UltraFeedback publish them are read as they stand; keys that nothing reads are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, ToolCall, Unpaired
from demeanor.data import sources
from demeanor.data.rows import Want, parse
from demeanor.stack.schema import Source

WHO, MARLA, NO = Message("user", "Who?"), Message("assistant", "Marla."), Message("assistant", "No.")
FIRST = (Message("user", "Hello"), Message("assistant", "Hi."))
TALK = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Marla."}]


def test_a_history_of_llama_factory_stands_before_the_question() -> None:
    row = {"instruction": "Who?", "input": "", "history": [["Hello", "Hi."]]}
    assert parse({**row, "output": "Marla."}, "examples", "") == Example((*FIRST, WHO, MARLA), trained_from=3)
    pair = parse({**row, "output": "x", "chosen": "Marla.", "rejected": "No."}, "preferences", "")
    assert pair == Preference((*FIRST, WHO), ((MARLA,), (NO,)), (0, 1))
    with pytest.raises(ValueError, match="history: wanted a list of"):
        parse({**row, "output": "x", "history": ["Hello"]}, "examples", "")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TALK, "kto_tag": False},
        {
            "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Marla."}],
            "kto_tag": False,
        },
        {"instruction": "Who?", "input": "", "output": "Marla.", "kto_tag": "false"},
    ],
)
def test_a_kto_tag_is_the_label_of_the_last_answer(row: dict[str, Any]) -> None:
    assert parse(row, "unpaired", "") == Unpaired((WHO,), (MARLA,), False)


def test_answers_with_scores_are_one_ranking_with_ties() -> None:
    answers = [
        {"response": text, "overall_score": s} for text, s in (("No.", 2), ("Marla.", 8.5), ("Marla!", 8.5))
    ]
    found = parse({"instruction": "Who?", "completions": answers, "models": ["a"]}, "preferences", "")
    assert isinstance(found, Preference)
    assert found.ranks == (1, 0, 0)
    assert found.completions[1] == (MARLA,)
    same = [{**a, "overall_score": 5} for a in answers]
    with pytest.raises(ValueError, match="all 3 have overall_score 5; wanted two that differ"):
        parse({"instruction": "Who?", "completions": same}, "preferences", "")
    with pytest.raises(ValueError, match="none of overall_score, score, rating"):
        parse(
            {"instruction": "Who?", "completions": [{"response": "a"}, {"response": "b"}]}, "preferences", ""
        )


def test_calls_and_observations_of_sharegpt_are_a_call_and_its_result() -> None:
    talk = [
        {"from": "human", "value": "Who?"},
        {"from": "function_call", "value": json.dumps({"name": "find", "arguments": {"port": "Corkel"}})},
        {"from": "observation", "value": "Marla"},
        {"from": "gpt", "value": "Marla."},
    ]
    found = parse({"conversations": talk, "tools": "[]"}, "examples", "")
    assert isinstance(found, Example)
    assert [m.role for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].tool_calls == (ToolCall("", "find", '{"port": "Corkel"}'),)
    talk[1]["value"] = "find(Corkel)"
    with pytest.raises(ValueError, match="function_call: is text that is not JSON"):
        parse({"conversations": talk}, "examples", "")


def test_keys_of_messages_that_nothing_reads_are_told_with_their_rows(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Who?", "id": None},
            {"role": "assistant", "content": "Marla.", "weigth": 0},
        ]
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    said: list[str] = []
    assert len(list(sources.read(Source(source=str(path)), root=tmp_path, say=said.append))) == 3
    assert said == [
        f"warning: {path}: messages have keys that nothing reads: 'weigth' (3 rows); check their spelling"
    ]


@pytest.mark.parametrize(
    ("name", "text", "want", "line"),
    [
        ("a.csv", "Frage,Antwort des Teams\nWer?,Marla\n", "examples", "for example columns: {prompt: Frage, completion: Antwort des Teams}"),
        ("b.csv", "id: x,question,2nd\n1,Wer?,Marla\n", "examples", 'for example columns: {prompt: question, completion: "id: x"}'),
        ("c.csv", "question,good,bad\nWer?,Marla,no\n", "preferences", "Write columns: {prompt: question, chosen: good, rejected: bad}"),
        ("d.csv", "q\nWer?\n", "examples", "for example columns: {prompt: q, completion: THEIR NAME}"),
    ],
)  # fmt: skip
def test_the_error_shows_the_line_that_names_the_columns(
    tmp_path: Path, name: str, text: str, want: Want, line: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        list(sources.read(Source(source=name), root=tmp_path, want=want))
    assert line in str(caught.value)
    written = yaml.safe_load(re.search(r"columns: \{.*\}", str(caught.value))[0])  # type: ignore[index]
    if "THEIR NAME" not in line:
        assert list(sources.read(Source(source=name, columns=written["columns"]), root=tmp_path, want=want))


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t"), ("a.csv", ",")])
def test_columns_may_be_separated_by_semicolons_and_tabs(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(f'prompt{mark}"completion"\n"Who, {mark} where?"{mark}Marla\n')
    (found,) = sources.read(Source(source=name), root=tmp_path)
    assert isinstance(found, Example)
    assert [m.content for m in found.messages] == [f"Who, {mark} where?", "Marla"]


PAIR = {"prompt": "Who?", "chosen": "Marla.", "rejected": "Osric."}
LABELLED = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Marla."}], "kto_tag": True}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "preferences"),
        (LABELLED, "unpaired"),
        ({"instruction": "Who?", "output": "Marla."}, "examples"),
        ({"text": "Marla."}, "examples"),
    ],
)
def test_the_kind_of_a_file_is_that_of_its_first_row_that_can_be_read(
    tmp_path: Path, row: dict[str, Any], kind: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"wrong": 1}\n' + json.dumps(row) + "\n")
    assert sources.kind(Source(source="rows.jsonl"), tmp_path) == kind
    assert main(["data", "show", str(tmp_path / "rows.jsonl"), "--skip-bad"]) == 0
    assert sources.kind(Source(source="world:preferences"), tmp_path) == "preferences"


def test_rows_of_another_kind_are_told_with_what_trains_on_them() -> None:
    with pytest.raises(ValueError, match="The row is a completion with a label; such rows train with an objective such as kto"):  # fmt: skip
        parse(LABELLED, "examples", "")
    with pytest.raises(ValueError, match="The row is an example to imitate"):
        parse({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Marla."}]}, "preferences", "")  # fmt: skip


def test_one_reason_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"wrong": 1}\n' * 30)
    with pytest.raises(DataError, match="30 of 30 rows cannot be used, all for the same reason") as caught:
        list(sources.read(Source(source="rows.jsonl"), root=tmp_path))
    assert str(caught.value).count("has the columns") == 1


def test_openais_functions_of_before_tools_are_calls_and_results() -> None:
    talk = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}},
        {"role": "function", "name": "find", "content": "Marla"},
        {"role": "assistant", "content": "Marla."},
    ]
    found = parse({"messages": talk, "functions": [{"name": "find"}]}, "examples", "")
    assert isinstance(found, Example)
    assert [m.role for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].tool_calls == (ToolCall("", "find", "{}"),)
    assert [t.name for t in found.tools] == ["find"]
