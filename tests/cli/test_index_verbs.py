"""`demeanor index`: build, search, measure, remove; mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor import indexes
from demeanor.cli import main

STACK = """name: desk
weights: {base: {kind: remote, url: "http://127.0.0.1:1/v1", model: m}}
layers:
  - {kind: retrieval, index: docs, search: {stop_words: english}}
"""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(indexes, "SMALL", 0)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# Ferries\n\nThe ferry to Corkel leaves at 9.\n\nWhat is the fare?\n"
    )
    (tmp_path / "docs" / "b.txt").write_text("Dogs travel free.\nThe pier is closed.\n")
    (tmp_path / "stack.yaml").write_text(STACK)
    return tmp_path / "stack.yaml"


def test_an_index_is_built_searched_and_removed(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "build", str(stack)]) == 0
    assert "2 files, 4 passages; 2 files read, 0 removed" in capsys.readouterr().out
    assert main(["index", "build", str(stack)]) == 0
    assert "0 files read, 0 removed" in capsys.readouterr().out
    assert main(["index", "search", str(stack), "when does the ferry leave", "-n", "1"]) == 0
    said = capsys.readouterr().out
    assert "a.md#1  Ferries  (11 to 43)" in said
    assert "The ferry to Corkel leaves at 9." in said
    assert main(["index", "search", str(stack), "submarine"]) == 0
    assert capsys.readouterr().out == "nothing was found\n"
    assert main(["index", "remove", str(stack)]) == 0
    assert "1 index files deleted" in capsys.readouterr().out


def test_searches_are_measured_and_compared(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "What is the time of the ferry?", "passages": ["a.md#1"]},
        {"question": "What about dogs?", "passages": ["b.txt"]},
    ]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "index",
        "test",
        str(stack),
        str(labels),
        "--compare",
        "stop_words=[]",
        "--results",
        str(tmp_path / "r"),
    ]
    assert main(words) == 0
    assert "recall@5 against as declared" in capsys.readouterr().out
    declared, plain = json.loads((tmp_path / "r" / "desk-retrieval.json").read_text())["searches"]
    assert (declared["mrr@5"]["value"], plain["mrr@5"]["value"]) == (1.0, 0.75)
    assert declared["recall_by_question"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "compare", "problem"),
    [
        ('{"question": "x", "passages": ["c.md#9"]}', "by=words", "1 labels name no passage"),
        ('{"question": "x"}', "by=words", "row 1: wanted"),
        ('{"question": "x", "passages": ["a.md#1"]}', "by=both", "wanted an `encoder`"),
        ('{"question": "x", "passages": ["a.md#1"]}', "speed=9", "search.speed"),
        ('{"question": "x", "passages": ["a.md#1"]}', "by", "wanted SETTING=VALUE"),
        ("", "by=words", "no questions"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    labels: str, compare: str, problem: str, stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.jsonl").write_text(labels + "\n" * bool(labels))
    assert main(["index", "test", str(stack), str(tmp_path / "labels.jsonl"), "--compare", compare]) == 2
    assert problem in capsys.readouterr().err


def test_a_stack_without_retrieval_says_what_to_add(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack.write_text(STACK.partition("layers")[0])
    assert main(["index", "build", str(stack)]) == 2
    assert "no retrieval layer" in capsys.readouterr().err


def test_a_small_folder_is_not_kept_and_explain_counts_what_the_search_cuts(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "SMALL", 1 << 20)
    (tmp_path / "docs" / "b.txt").write_text("The ferry leaves at nine. " * 20)
    assert main(["index", "build", str(stack)]) == 0
    assert "2 files, 3 passages" in (said := capsys.readouterr().out)
    assert "indexed in memory" in said
    assert not (tmp_path / "cache").exists()
    short = stack.read_text().replace("stop_words: english", "passage_chars: 100")
    stack.write_text(short)
    assert main(["explain", str(stack), "--runs", str(tmp_path / "runs")]) == 0
    assert "2 files, 9 passages" in " ".join(capsys.readouterr().out.split())
