"""Rows as OpenAI, LLaMA-Factory and UltraFeedback publish them are read as they stand; keys that nothing reads are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, ToolCall, Unpaired
from demeanor.data import sources
from demeanor.data.rows import parse
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


def test_columns_of_any_name_are_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Frage,Antwort\nWer?,Marla\n")
    with pytest.raises(DataError, match=r"columns: \{prompt: THEIR NAME, completion: THEIR NAME\}"):
        list(sources.read(Source(source="rows.csv"), root=tmp_path))
