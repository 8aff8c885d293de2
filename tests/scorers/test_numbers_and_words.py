"""Numbers are tokens with sign, decimals, separators and units, read by one reader; words of every alphabet are compared in one form."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demeanor.core import registry
from demeanor.core.types import Completion
from demeanor.evaluation.scorers._words import alike, number_alone, numbers, says, tokens


def value(scorer: str, text: str, **target: Any) -> float | None:
    module = registry.entry("demeanor.evaluation.scorers", scorer)
    found: float | None = module.score(module.Spec.model_validate(target), Completion(text, "stop")).value
    return found


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("-5", "5", 0),
        ("3.5", "5", 0),
        ("5,000", "5", 0),
        ("53.75", "53", 0),
        ("53,999", "53", 0),
        ("53,75", "53", 0),
        ("1 053", "53", 0),
        ("5", "-5", 0),
        ("5", "5%", 0),
        ("5 percent", "5%", 1),
        ("5 km", "5 kg", 0),
        ("5kg", "5 kg", 1),
        ("$5", "€5", 0),
        ("5.50 €", "€5.5", 1),
        ("-.5", "-0.5", 1),
        ("No.5", "0.5", 0),
        ("5e3", "5", 0),
        ("1/2", "2", 0),
        ("1.2.3", "1.2", 0),
        ("2nd", "2", 0),
        ("007", "7", 0),
        ("1.0", "1", 1),
        ("1,000", "1000", 1),
        ("1 000", "1,000.00", 1),
        ("−5", "-5", 1),
        ("½", "0.5", 1),
        ("2 1/2", "2.5", 1),
        ("1.5e3", "1500", 1),
        ("The range is 3-5.", "5", 1),
        ("bus A-12", "12", 1),
        ("C", "C++", 0),
        ("C#", "C", 0),
        ("A", "A-", 0),
        ("C++.", "c++", 1),
        ("Cafe\u0301 Zoe\u0308", "Café Zoë", 1),
        ("Zo\u200bë", "Zoë", 1),
        ("STRASSE", "Straße", 1),
        ("Ｍａｒｌａ", "Marla", 1),
        ("答えは東京です", "東京", 1),
        ("수도는 서울입니다", "서울", 1),
        ("!!!", "!!!", 1),
        ("!", "!!!", 0),
        ("👍 sure", "👍", 1),
        ("It is Usk's.", "Usk", 1),
    ],
)
def test_exact_takes_a_number_and_a_word_as_a_whole(text: str, answer: str, right: float) -> None:
    assert value("exact", text, answers=(answer,)) == right
    assert value("checks", text, checks=[{"kind": "says", "words": [answer]}]) == right
    assert value("honesty", text, known=True, answers=(answer,)) == right
    assert value("format", text, kind="words", words=(answer,)) == (right if tokens(text) else 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (".5", 0.5),
        ("1 234", 1234),
        ("1.5e3", 1500),
        ("1.5 × 10^3", 1500),
        ("bus A-12", 12),
        ("on 2026-11-29", 29),
        ("−5", -5),
        ("It is -$1,250.50.", -1250.5),
        ("1.234.567,89", 1234567.89),
        ("1'000'000", 1000000),
        ("the 2nd", 2),
        ("50%", 50),
        ("1/3", 1 / 3),
        ("2½", 2.5),
        ("(3, 4)", 4),
        ("[3,4]", 4),
        ("a,5,31", 31),
        ("12:45", 45),
        ("٤٢", 42),
        ("_7_", 7),
        ("**7**", 7),
        ("7.", 7),
        ("7...", 7),
        ("-0", 0),
    ],
)
def test_number_scorers_read_the_same_last_number(text: str, number: float) -> None:
    wrong = number + 1
    for scorer, target in (
        ("number", lambda n: {"value": n}),
        ("checks", lambda n: {"checks": [{"kind": "number", "value": n}]}),
        ("gsm8k", lambda n: {"answer": str(n)}),
    ):
        assert value(scorer, text, **target(number)) == 1, scorer
        assert value(scorer, text, **target(wrong)) == 0, scorer


@pytest.mark.parametrize("text", ["", "0x1F", "A12", "1.2.3", "five", "5_0", "x²", "v1.2"])
def test_what_is_no_number_is_read_as_none(text: str) -> None:
    assert numbers(text) == []
    assert value("number", text, value=5) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [("−5", -5), ("1,250.0", 1250), (" 5. ", 5), ("5_0", None), ("$5", None), ("5 kg", None), ("5 6", None)],
)
def test_a_value_is_the_whole_answer(text: str, number: int | None) -> None:
    assert number_alone(text) == number
    assert value("checks", text, checks=[{"kind": "value", "value": 50 if number is None else number}]) == (
        number is not None
    )


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ('{"a":-5}', 5, 0),
        ('{"a":1.0}', 1, 1),
        ('{"a":1.5}', 1, 0),
        ('{"a":"none"}', None, 0),
        ('{"a":"null"}', None, 0),
        ('{"a":null}', "none", 0),
        ('{"a":"true"}', True, 0),
        ('{"a":1}', True, 0),
        ('{"a":"1"}', 1, 1),
        ('{"a":"New quay."}', "new Quay", 1),
        ('{"a":["x", 1.0]}', ["x", 1], 1),
        ('{"a":[1, "x"]}', ["x", 1], 0),
        ('{"a":NaN}', 1, 0),
        ('{"a":1e400}', 1, 0),
        ('{"a":9007199254740993}', 9007199254740992, 0),
    ],
)
def test_json_values_are_compared_by_what_they_are(text: str, wanted: Any, right: float) -> None:
    assert value("format", text, kind="json", object={"a": wanted}) == right
    if not (isinstance(wanted, int) and '"1"' in text):  # a form may write a number as text, a check may not
        assert value("checks", text, checks=[{"kind": "json", "values": {"a": wanted}}]) == right


def test_a_whole_float_is_an_integer_of_json() -> None:
    for text, right in (('{"a": 1.0}', 1), ('{"a": 1.5}', 0), ('{"a": true}', 0)):
        assert value("checks", text, checks=[{"kind": "json", "types": {"a": "integer"}}]) == right


@given(
    number=st.decimals(-(10**12), 10**12, places=3, allow_nan=False),
    places=st.integers(3, 6),
    words=st.sampled_from(["It is {}.", "{} boats", "x = {}", "({})", "{}"]),
)
def test_every_spelling_of_a_number_is_that_number(number: Decimal, places: int, words: str) -> None:
    spelled = [
        f"{number:.{places}f}",
        f"{number:,.{places}f}",
        f"{number:e}",
        f"{number:.3f}".replace("-", "−"),
    ]
    assert len(spelled) == 4
    for text in spelled:
        assert numbers(words.format(text)) == [number]
        assert says(words.format(text), str(number))
        assert not says(words.format(text), str(number + 1))
        assert alike(text, str(number))


@pytest.mark.parametrize(
    "piece", ["1,234", "1.", "1,2", "1 234 ", "-", "$", "1/", "5_", "1e", "a'", "1 1/", "½", "東"]
)
def test_reading_tokens_is_linear(piece: str) -> None:
    started = time.thread_time()
    tokens(piece * (100_000 // len(piece)))
    assert time.thread_time() - started < 3
