"""Every check against texts of which anybody can say whether it holds; wrong settings are told; loose reads more than strict and never less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from demeanor.core.types import Completion, PromptRead, Refusal
from demeanor.evaluation.scorers import checks, confidence, likelihood
from demeanor.evaluation.scorers._checks import CHECKS

TABLE = "| City | People |\n|---|---:|\n| Oslo | 700,000 |\n| Bergen | 290,000 |"
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("says", {"words": ["25", "new quay"]}, "At the New Quay, pier 25.", "At the New Quay, pier 250."),
    (
        "says_any",
        {"words": ["photoelectric", "photo-electric"]},
        "For the photo electric effect.",
        "For relativity.",
    ),
    ("says", {"words": ["Usk"]}, "It is Usk's harbour.", "It is Usker."),
    ("omits", {"words": ["red"]}, "It was reduced.", "It was Red."),
    (
        "in_order",
        {"words": ["boil", "add salt", "drain"]},
        "Boil it, then add salt; drain.",
        "Drain, add salt, boil.",
    ),
    ("mentions", {"words": ["sea"], "low": 2, "high": 2}, "The sea, the SEA.", "The sea."),
    ("equals", {"any": ["yes", "it is"]}, "Yes.", "Yes, it is."),
    ("number", {"value": 1250, "tolerance": 0.5}, "3 boxes cost 1,250.4", "1,250 for 3"),
    ("value", {"value": 12}, "12", "12 apples"),
    (
        "label",
        {"labels": ["positive", "very positive", "negative"], "answer": "very positive"},
        "Very positive!",
        "positive or negative",
    ),
    ("word_count", {"low": 2, "high": 3}, "one two three", "one"),
    ("sentence_count", {"low": 2, "high": 2}, "I met Dr. Li. She left.", "Only one."),
    ("paragraph_count", {"low": 2, "high": 2}, "a\n\nb", "a\nb"),
    ("line_count", {"high": 2}, "a\n\nb", "a\nb\nc"),
    ("character_count", {"low": 3}, "abc", "ab"),
    ("list", {"low": 2, "high": 2, "style": "bullets", "alone": True}, "- a\n- b", "Here:\n- a\n- b"),
    ("list", {"low": 2, "style": "numbers"}, "1. a\n2) b", "- a\n- b"),
    ("each_words", {"high": 2}, "- a b\n- c", "- a b c\n- d"),
    ("line_characters", {"high": 4}, "abcd\nef", "abcde"),
    (
        "json",
        {"keys": ["a", "b"], "types": {"a": "integer"}, "values": {"b": "New Quay"}},
        '{"a": 1, "b": "new quay"}',
        '{"a": true, "b": "new quay"}',
    ),
    ("json", {"keys": ["a"]}, '{"a": null}', '{"a": 1, "c": 2}'),
    ("json_list", {"low": 2, "high": 2}, "[1, 2]", "[1]"),
    ("json_list", {"values": ["a", 1]}, '["A", 1]', '[1, "a"]'),
    (
        "csv",
        {"columns": ["City", "People"], "low": 1, "high": 1},
        'City,People\n"Oslo, N",700',
        "City;People\nOslo;700",
    ),
    ("table", {"columns": ["city", "people"], "low": 2, "high": 2}, TABLE, TABLE.replace("|---|---:|\n", "")),
    ("starts", {"any": ["Dear"]}, "Dear Sam,", "Hi, dear Sam,"),
    ("lines_start", {"any": [">"]}, "> a\n> b", "> a\nb"),
    ("ends", {"any": ["regards, Sam"]}, "Yes. Regards, Sam", "Regards, Sam and co"),
    ("case", {"case": "upper"}, "ALL OF IT 1", "All"),
    ("case", {"case": "lower"}, "all of it", "All"),
    ("case", {"case": "title"}, "The Old Man's Boat", "The old Boat"),
    ("avoids_characters", {"characters": "e!"}, "no such sign", "Here"),
    ("only_characters", {"characters": "01 "}, "01 10", "012"),
    ("quoted", {}, '"All of it."', '"Half" of it'),
    ("question", {}, "Is it?", "It is."),
    ("headings", {"low": 2, "names": ["Scope"]}, "# Scope\ntext\n## Time", "# Place\n# Time"),
    ("bold", {"low": 1, "high": 1}, "a **b** c", "a b c"),
    ("placeholders", {"low": 2}, "Dear [name], on [date]", "Dear [name]"),
    ("emoji", {"high": 0}, "no smile", "smile 😀"),
    (
        "code",
        {"low": 1, "high": 1, "languages": ["python"], "alone": True},
        "```python\nx = 1\n```",
        "Sure:\n```python\nx = 1\n```",
    ),
    ("alphabetical", {"low": 3}, "apple\nBanana\ncherry", "banana\napple\ncherry"),
    ("alphabetical", {"low": 2, "reverse": True}, "b\na", "a\nb"),
    ("distinct", {}, "- a\n- b", "- a\n- A"),
    ("no_word_twice", {}, "each word once", "word by word"),
    ("initials", {"word": "sea"}, "Salt air\nEvery day\nAgain", "Salt\nAgain\nEvery"),
    ("date", {}, "2024-02-29", "2023-02-29"),
    ("time", {}, "09:30", "9:30"),
    (
        "language",
        {"language": "de"},
        "Das ist nicht der Hafen und nicht die Stadt.",
        "This is the harbour of the town.",
    ),
    ("repeats", {"text": "What is it?"}, "What is it? A boat.", "A boat."),
    ("one_line", {}, "a\n", "a\nb"),
    ("separated", {"by": "***", "low": 2, "high": 2}, "a *** b", "a"),
]


def holds(text: str, *some: dict[str, Any], mode: str = "strict") -> float | None:
    return checks.score(
        checks.Spec.model_validate({"checks": list(some), "mode": mode}), Completion(text, "stop")
    ).value


def test_every_kind_stands_in_the_cases() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("kind", "wanted", "right", "wrong"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_a_check_holds_of_the_right_text_and_not_of_the_wrong_one(
    kind: str, wanted: dict[str, Any], right: str, wrong: str
) -> None:
    assert holds(right, {"kind": kind, **wanted}) == 1.0
    assert holds(wrong, {"kind": kind, **wanted}) == 0.0
    assert holds("", {"kind": kind, **wanted}) == 0.0


def test_loose_forgives_a_first_line_asterisks_and_a_code_block() -> None:
    asked = {"kind": "json", "keys": ["a"]}
    for text in (
        'Here it is:\n{"a": 1}',
        '```json\n{"a": 1}\n```',
        'Sure, here:\n```\n{"a": 1}\n```\nAnything else?',
    ):
        assert holds(text, asked) == 0.0
        assert holds(text, asked, mode="loose") == 1.0
    assert (
        holds(
            "*YES*",
            {"kind": "equals", "any": ["yes"]},
            {"kind": "avoids_characters", "characters": "*"},
            mode="loose",
        )
        == 1.0
    )


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='aB1 -*|`\n.#?[]{}":,', max_size=50), n=st.integers(0, len(CASES) - 1))
def test_what_holds_strictly_holds_loosely(text: str, n: int) -> None:
    kind, wanted, _, _ = CASES[n]
    strict, loose = (holds(text, {"kind": kind, **wanted}, mode=mode) for mode in ("strict", "loose"))
    assert loose == 1.0 or strict != 1.0


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ({"kind": "sayz", "words": ["a"]}, "Did you mean 'says'"),
        ({"kind": "says"}, "wanted \\['words'\\]"),
        ({"kind": "says", "words": []}, "a list of text, not empty"),
        ({"kind": "word_count"}, "wants low, high or both"),
        ({"kind": "word_count", "low": 5, "high": 2}, "low 5 is above high 2"),
        ({"kind": "case", "case": "loud"}, "one of upper, lower, title"),
        ({"kind": "json", "types": {"a": "text"}}, "one of string, integer"),
        ({"kind": "number", "value": "7"}, "a number"),
        ({"kind": "word_count", "low": True}, "a whole number"),
    ],
)
def test_a_wrong_setting_is_told_with_what_was_wanted(check: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        checks.Spec.model_validate({"checks": [check]})


def test_a_refusal_by_a_layer_satisfies_nothing() -> None:
    spec = checks.Spec.model_validate({"checks": [{"kind": "omits", "words": ["secret"]}]})
    assert (
        checks.score(spec, Completion("No.", "stop", refusal=Refusal("policy", "r", "why", "No."))).value
        == 0.0
    )


@pytest.mark.parametrize(
    ("text", "value", "told"),
    [
        ("Paris. Confidence: 80%", 1 - 0.2**2, "80% right"),
        ("Lyon. Confidence: 80%", 1 - 0.8**2, "80% wrong"),
        ("Paris", 1.0, "100% right"),
        ("Lyon", 0.0, "100% wrong"),
        ("Paris or Lyon, 50 percent", 1 - 0.5**2, "50% wrong"),
        ("Paris. Confidence: 0%", 0.0, "0% right"),
    ],
)
def test_confidence_is_judged_by_briers_rule(text: str, value: float, told: str) -> None:
    found = confidence.score(confidence.Spec(answers=("Paris",), wrong=("Lyon",)), Completion(text, "stop"))
    assert (found.value, found.answer) == (pytest.approx(value), told)


def test_a_percentage_that_is_the_answer_is_no_confidence_and_none_is_no_claim() -> None:
    assert confidence.stated("Between 20% and 30%. Confidence: 65 %") == 0.65
    assert confidence.stated("about 400%") is None
    assert confidence.score(confidence.Spec(answers=("a",)), Completion(" ", "stop")).value is None


def test_likelihood_is_the_mean_probability_of_a_byte() -> None:
    read = (
        PromptRead(("One",), (None,), ((),)),
        PromptRead(("One", " mo", "re"), (None, -1.0, -2.0), ((), (), ())),
    )
    found = likelihood.score(likelihood.Spec(text=" more"), Completion("", "stop", events=read))
    assert found.value == pytest.approx(2.718281828459045 ** (-3 / 5))
    assert found.answer == "0.866 bits per byte"  # 3 nats / 5 bytes / ln 2
    assert likelihood.score(likelihood.Spec(text=" more"), Completion("", "stop")).value is None
