"""What rows say, leaks of a suite, languages, lengths; and the files that cleaning reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, ToolCall, ToolSpec, TrainingRow, Unpaired
from demeanor.data import curation
from demeanor.data.curation import Wanted, reason
from demeanor.data.rows import Want, parse
from demeanor.data.similarity import Overlap, SuiteNgrams, as_columns, row_text, words
from demeanor.stack.schema import Source

ASK, SAID = Message("user", "Who?"), Message("assistant", "Marla.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("plain", "plain"),
        ({"text": "a b"}, "a b"),
        ({"prompt": "a", "completion": "b", "id": "x9", "label": True}, "a\nb"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": "{1}"}}],
                    },
                ]
            },
            "a\nf\n{1}",
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a\nb"),
        ({"prompt": '[{"role": "user", "content": "a"}]', "completion": "[{no json}]"}, "a\n[{no json}]"),
        ({"chosen": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "rejected": "b"}, "a\nb"),
        ({"question": "q", "n": 3}, "q"),
    ],
)
def test_a_row_says_its_contents_and_no_roles_or_ids(row: Any, said: str) -> None:
    assert row_text(row) == said


def test_words_are_folded_and_keep_their_apostrophes() -> None:
    assert words("It's THE ferry's—12:30!  Ｍarla") == ["it's", "the", "ferry's", "12", "30", "marla"]


TOOL = ToolSpec("ferry", "Times.", {"type": "object"})


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (Example(text="a"), "text"),
        (Example((ASK, SAID, ASK, SAID)), "examples"),
        (Example((ASK, SAID), trained_from=1, tools=(TOOL,)), "examples"),
        (
            Example(
                (
                    ASK,
                    Message("assistant", "", (ToolCall("c1", "ferry", "{}"),)),
                    Message("tool", "12", tool_call_id="c1", name="ferry"),
                    SAID,
                )
            ),
            "examples",
        ),
        (
            Preference(
                (ASK,),
                ((SAID,), (Message("assistant", "No."),)),
                (0, 1),
                margin=2.0,
                template_kwargs={"thinking": True},
            ),
            "preferences",
        ),
        (
            Preference(
                (ASK,), ((SAID,), (Message("assistant", "No."),), (Message("assistant", "So."),)), (1, 0, 2)
            ),
            "preferences",
        ),
        (Unpaired((ASK,), (SAID,), False), "unpaired"),
    ],
)
def test_a_row_written_as_columns_is_read_as_the_same_row(row: TrainingRow, want: Want) -> None:
    assert parse(json.loads(json.dumps(as_columns(row))), want, "") == row


def test_shared_words_are_found_and_shown() -> None:
    suite = SuiteNgrams(
        [
            ("q1", "Which keeper runs the early ferry to Corkel from pier nine?"),
            ("q2", "What is 37 plus 1?"),
            ("q3", "Why?"),
        ],
        n=5,
    )
    assert (suite.size, suite.too_short) == (3, 1)
    assert suite.overlaps("I asked: which KEEPER runs the early boat.") == [
        Overlap("q1", "which keeper runs the early")
    ]
    assert suite.overlaps("So, what is 37 plus 1? Which keeper runs the late ferry to Corkel?") == [
        Overlap("q2", "what is 37 plus 1")
    ]
    assert suite.overlaps("Which keeper runs the") == []
    assert suite.overlaps("") == []


def test_an_item_shorter_than_the_words_asked_for_is_looked_for_whole() -> None:
    suite = SuiteNgrams([("q", "What ship serves Corkel?")], n=8)
    assert suite.overlaps("Tell me what ship serves Corkel today") == [
        Overlap("q", "what ship serves corkel")
    ]
    assert suite.overlaps("what ship serves Jorpel") == []


def test_a_row_is_left_out_for_one_reason_the_first_that_holds() -> None:
    wanted = Wanted(5, 60, "en", {"letter x": lambda text: "x" in text})
    assert reason("abc", wanted) == "shorter than 5 characters"
    assert reason("abcdx", wanted) == "personal data: letter x"
    assert reason("Wo ist der Hafen und wie ist das mit der Fähre?", wanted) == "language de"
    assert reason("a" * 61, wanted) == "longer than 60 characters"
    assert reason("12345", wanted) is None
    assert reason("Where is the ferry and when does it go to Corkel?", wanted) is None


def test_wishes_that_nothing_can_meet_are_errors() -> None:
    with pytest.raises(DataError, match="no row would stay"):
        Wanted(10, 5)
    with pytest.raises(DataError, match="unknown language 'eng'"):
        Wanted(language="eng")


def test_columns_come_out_as_they_went_in(tmp_path: Path) -> None:
    rows = [{"prompt": "ä", "completion": "b", "score": 0.5, "nothing": None}, {"text": "c"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = [row for _, row in curation.columns(Source(source="in.jsonl"), root=tmp_path)]
    assert curation.write(tmp_path / "out.jsonl", found) == 2
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_file_that_could_not_be_written_whole_is_not_written_at_all(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("before\n")
    with pytest.raises(ZeroDivisionError):
        curation.write(tmp_path / "out.jsonl", ({"a": 1 / n} for n in (1, 0)))
    assert (tmp_path / "out.jsonl").read_text() == "before\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("")
    with pytest.raises(DataError, match="--force"):
        curation.check_out(tmp_path / "out.jsonl", force=False)
    curation.check_out(tmp_path / "out.jsonl", force=True)
    with pytest.raises(DataError, match=r"written as \.jsonl"):
        curation.check_out(tmp_path / "out.csv", force=False)
    with pytest.raises(DataError, match="no such folder"):
        curation.check_out(tmp_path / "away" / "out.jsonl", force=False)
