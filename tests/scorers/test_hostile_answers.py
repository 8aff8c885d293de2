"""Long and hostile answers: no scorer takes more than a moment for them, and none of them breaks one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from demeanor.core import registry
from demeanor.core.types import Completion, ToolCall
from demeanor.evaluation.scorers import checks, confidence, ifeval, text_match
from demeanor.evaluation.scorers._checks import fenced, listed
from demeanor.evaluation.scorers.honesty import READ, admission

LONG = 100_000
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    *(
        ("checks", {"checks": [{"kind": kind, "low": 1}], "mode": "loose"}, "x" + blank)
        for kind in ("list", "each_words", "alphabetical")
        for blank in ("\n", " \n", "\r\n")
    ),
    ("checks", {"checks": [{"kind": "distinct"}]}, "\n"),
    ("checks", {"checks": [{"kind": "placeholders", "low": 1}]}, "["),
    ("checks", {"checks": [{"kind": "code", "low": 1}], "mode": "loose"}, "```a\n"),
    (
        "ifeval",
        {
            "instructions": [
                {"id": "detectable_content:number_placeholders", "settings": {"num_placeholders": 1}}
            ]
        },
        "[",
    ),
    *(
        (
            "ifeval",
            {
                "instructions": [
                    {"id": "detectable_content:postscript", "settings": {"postscript_marker": "P.S."}}
                ]
            },
            x,
        )
        for x in (" ", "\n")
    ),
    (
        "ifeval",
        {"instructions": [{"id": "detectable_format:number_bullet_lists", "settings": {"num_bullets": 1}}]},
        "\n",
    ),
    ("ifeval", {"instructions": [{"id": "detectable_format:title"}], "mode": "loose"}, "<"),
    ("honesty", {"known": True}, "explicitly so but " * 11 + ". "),
    ("honesty", {"known": True}, "is not really "),
    ("gsm8k", {"answer": "7", "extract": "flexible"}, "1"),
    *(
        ("checks", {"checks": [{"kind": "language", "language": "en"}], "mode": "loose"}, x)
        for x in ("co,", "ж ")
    ),
]


@pytest.mark.parametrize(("scorer", "target", "piece"), HOSTILE)
def test_a_hundred_thousand_characters_take_a_moment(scorer: str, target: dict[str, Any], piece: str) -> None:
    module = registry.entry("demeanor.evaluation.scorers", scorer)
    text = "x " + (piece * (LONG // len(piece) + 1))[:LONG] + "!x"
    started = time.process_time()
    module.score(module.Spec.model_validate(target), Completion(text, "stop"))
    assert time.process_time() - started < 1.5


def test_an_admission_is_looked_for_in_the_beginning_of_a_long_answer() -> None:
    assert admission("x " * 100 + "I do not know.")
    assert not admission("x " * (READ // 2) + "I do not know.")


def test_numbers_of_any_length_are_compared() -> None:
    digits = "7" * 5000
    assert text_match.number(text_match.NumberSpec(value=7), Completion(digits, "stop")).value == 0
    assert (
        text_match.number(
            text_match.NumberSpec(value=7), Completion(f"{digits} or {'0' * 5000}7.0", "stop")
        ).value
        == 1
    )


def test_json_that_is_nested_too_deep_is_none() -> None:
    deep = "[" * LONG
    form = registry.entry("demeanor.evaluation.scorers", "format")
    assert form.score(form.Spec(kind="json", object={"a": 1}), Completion(deep, "stop")).value == 0
    calls = registry.entry("demeanor.evaluation.scorers", "bfcl")
    target = {
        "category": "irrelevance",
        "functions": ({"name": "add", "parameters": {"properties": {}, "required": []}},),
    }
    call = ToolCall("1", "add", deep)
    assert (
        calls.score(calls.Spec.model_validate(target), Completion("", "stop", tool_calls=(call,))).value == 0
    )


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("1000%", None),
        ("12345%", None),
        ("99,5%", 0.995),
        ("Paris,80%", 0.8),
        ("1.000%", 0.01),
        ("80-90%", 0.9),
        ("100.0 percent", 1.0),
        ("in 2020,50%", None),
    ],
)
def test_a_percentage_is_read_whole_or_not_at_all(text: str, share: float | None) -> None:
    assert confidence.stated(text) == (None if share is None else pytest.approx(share))


def test_a_tiny_confidence_is_told_so_that_it_can_be_read_again() -> None:
    from demeanor.evaluation.profile import TOLD

    for text in ("Paris 0.00001%", "Paris 33.3333333%", "Paris"):
        assert TOLD.fullmatch(
            confidence.score(confidence.Spec(answers=("Paris",)), Completion(text, "stop")).answer
        )


@pytest.mark.parametrize(
    ("text", "items"),
    [("\n\n  - a\n\n\t* b\n-\nc", ["a", "b", "c"]), ("1. a\n\r2) b", ["a", "b"]), ("-a\n- \n", [])],
)
def test_items_of_a_list_may_stand_behind_blank_lines(text: str, items: list[str]) -> None:
    assert listed(text) == items


@pytest.mark.parametrize(
    ("text", "tags", "outside"),
    [
        ("a\n```py\nx\n```\nb", ["py"], "a\nb"),
        ("```\n```", [""], ""),
        ("```py\n```py\n```", ["py"], ""),
        ("```py\nx", [], "```py\nx"),
        ("```\nx\n```\n```py\ny\n``` ", ["", "py"], ""),
        ("```py x\n```\n```", [""], "```py x"),
    ],
)
def test_code_blocks_are_those_that_are_closed(text: str, tags: list[str], outside: str) -> None:
    assert fenced(text) == (tags, outside)
    assert checks.held(
        checks.Spec(checks=(checks.Check(kind="code", settings={"low": len(tags), "high": len(tags)}),)), text
    ) == [True]


@pytest.mark.parametrize(
    ("text", "titled"),
    [
        ("<<A>>", True),
        ("a << b >>\nc", True),
        ("<<>>", False),
        ("<<<>>", False),
        (">><<a", False),
        ("<< >>", False),
        ("<<\na>>", False),
        ("<<a>> <<b>>", True),
        ("<<>>>", False),
    ],
)
def test_a_title_stands_in_double_angular_brackets(text: str, titled: bool) -> None:
    title = ifeval.Spec.model_validate({"instructions": ({"id": "detectable_format:title"},)})
    assert ifeval.followed(title, text) == [titled]
