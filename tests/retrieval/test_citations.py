"""Markers in an answer: a true one stays, a wrong one is put right or goes, and the reason is told."""

from __future__ import annotations

import random

import pytest

from demeanor.core.types import Citation, Passage, Text, Unsupported
from demeanor.retrieval.citations import Verifier

FERRY = Passage(
    "f", "Ferries. The ferry to Corkel leaves at 9 from the north pier.", 1.0, "f.md", start=100, end=161
)
DOGS = Passage("d", "Dogs travel free on all boats. Cats pay 2.", 1.0, "d.md")
FOUND = [FERRY, DOGS]


def checked(answer: str, sizes: int = 7) -> tuple[str, list[Citation | Unsupported]]:
    verifier = Verifier(FOUND)
    events = [e for at in range(0, len(answer), sizes) for e in verifier.add(answer[at : at + sizes])]
    events += verifier.finish()
    text = "".join(e.text for e in events if isinstance(e, Text))
    assert verifier.altered == (text != answer)
    return text, [e for e in events if not isinstance(e, Text)]


def test_a_true_marker_stays_with_the_words_of_its_source() -> None:
    text, (cited,) = checked("Hello. The ferry to Corkel leaves at 9 [1]. Bye.")
    assert text == "Hello. The ferry to Corkel leaves at 9 [1]. Bye."
    assert isinstance(cited, Citation)
    assert text[cited.start : cited.end].strip() == "The ferry to Corkel leaves at 9 [1]."
    assert cited.cited_text == "ferry to Corkel leaves at 9"
    assert (cited.source_start, cited.source_end) == (113, 140)
    assert (FERRY.text[13:40], cited.passage_id) == (cited.cited_text, "f")


@pytest.mark.parametrize(
    ("answer", "text", "reason", "named"),
    [
        ("The ferry leaves at 9 [3].", "The ferry leaves at 9.", "unknown", ""),
        ("The ferry leaves at 9 [0].", "The ferry leaves at 9.", "unknown", ""),
        ("Parking costs 12 a day [1].", "Parking costs 12 a day.", "not_found", "f"),
        ("The ferry to Corkel leaves at 10 [1].", "The ferry to Corkel leaves at 10.", "not_found", "f"),
        ("Dogs travel to Corkel at 9 [2].", "Dogs travel to Corkel at 9.", "stitched", "d"),
        ("Dogs travel free. [1]", "Dogs travel free. [2]", "wrong_source", "f"),
    ],
)
def test_a_false_marker_goes_or_is_put_right_and_the_reason_is_told(
    answer: str, text: str, reason: str, named: str
) -> None:
    said, events = checked(answer)
    assert said == text
    assert [(e.reason, e.passage_id) for e in events if isinstance(e, Unsupported)] == [(reason, named)]
    assert [e.passage_id for e in events if isinstance(e, Citation)] == (
        ["d"] if reason == "wrong_source" else []
    )


@pytest.mark.parametrize(
    "answer",
    [
        "There is nothing about parking in the sources.",
        "",
        "A list `a[1]` and\n```\nx[7] = 9\n```\nand no more.",
        "No marker. The ferry leaves at 9!\n\nDogs travel free?",
    ],
)
def test_an_answer_without_markers_is_left_as_it_is_and_nothing_is_invented(answer: str) -> None:
    assert checked(answer) == (answer, [])


def test_several_markers_of_a_sentence_are_judged_one_by_one() -> None:
    text, events = checked("Dogs travel free on boats [1, 2][9]. See [1].")
    assert text == "Dogs travel free on boats [2]. See [1]."
    assert [type(e).__name__ for e in events] == ["Unsupported", "Citation", "Unsupported", "Citation"]


def test_the_pieces_in_which_an_answer_comes_do_not_matter() -> None:
    answer = (
        "The ferry to Corkel leaves at 9. [1] Dogs [1] travel free [2]! Cats pay 3 [2].\nSee [4] (or [1])."
    )
    whole = checked(answer, 1000)
    assert whole[0] == "The ferry to Corkel leaves at 9. [1] Dogs travel free [2]! Cats pay 3.\nSee (or [1])."
    for size in range(1, 30):
        assert checked(answer, size) == whole


def test_no_marker_without_a_passage_ever_leaves() -> None:
    random_ = random.Random(0)
    parts = ["[1]", "[2]", "[3]", "[17]", "[1,9]", " ", "ferry", "9", ". ", "\n", "dogs free", "Corkel", "!"]
    for _ in range(300):
        text, _events = checked("".join(random_.choices(parts, k=25)), random_.randint(1, 9))
        assert not any(f"[{n}]" in text for n in (3, 17))
        assert "9]" not in text


def test_a_sentence_without_an_end_is_not_held_for_ever() -> None:
    verifier = Verifier(FOUND)
    said = [e for _ in range(100) for e in verifier.add("word " * 100)]
    assert sum(len(e.text) for e in said if isinstance(e, Text)) > 40_000
