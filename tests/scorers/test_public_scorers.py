"""Scorers of public sets on edge cases whose verdict follows from the official definitions, worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demeanor.core import registry
from demeanor.core.types import (
    Completion,
    Event,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    Score,
    ToolCall,
    ToolCalled,
)
from demeanor.evaluation.scorers.choice import mc1, mc2
from demeanor.evaluation.scorers.gsm8k import extracted
from demeanor.evaluation.scorers.truthful import rouge


def score(
    scorer: str,
    text: str = "",
    *,
    events: tuple[Event, ...] = (),
    refusal: Refusal | None = None,
    calls: tuple[ToolCall, ...] = (),
    **target: Any,
) -> Score:
    module = registry.entry("demeanor.evaluation.scorers", scorer)
    found: Score = module.score(
        module.Spec.model_validate(target), Completion(text, "stop", calls, refusal, events=events)
    )
    return found


# ---- gsm8k: grade-school-math's extract_answer; lm-eval's strict-match and flexible-extract ----


@pytest.mark.parametrize(
    ("text", "official", "strict", "flexible"),
    [
        ("6*3=18\n#### 18", 1, 1, 1),
        ("#### 1,018", 0, 0, 0),
        ("#### 18.", 0, 1, 1),
        ("#### $18", 0, 0, 1),
        ("The answer is 18", 0, 0, 1),
        ("####18", 0, 0, 1),
        ("#### 18 and then #### 19", 1, 1, 0),
        ("It is 18. Or 3 more", 0, 0, 0),
        ("no number", 0, 0, 0),
        ("#### -18", 0, 0, 0),
        ("$18.", 0, 0, 1),
        ("#### 18.0", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_gsm8k_extracts_as_its_authors_and_as_lm_eval_do(
    text: str, official: int, strict: int, flexible: int
) -> None:
    assert [
        score("gsm8k", text, answer="18", extract=how).value for how in ("official", "strict", "flexible")
    ] == [official, strict, flexible]


def test_commas_of_gold_and_answer_do_not_count() -> None:
    for how in ("official", "strict", "flexible"):
        assert (
            score("gsm8k", "#### 70,000", answer="70000", extract=how).value
            == score("gsm8k", "#### 70000", answer="70,000", extract=how).value
            == 1.0
        )


def test_what_is_not_found_is_called_invalid() -> None:
    assert [extracted("none", how) for how in ("official", "strict", "flexible")] == ["[invalid]"] * 3


# ---- choice: TruthfulQA's MC1 and MC2 ----


def read(*choices: tuple[float, ...]) -> tuple[Event, ...]:
    """A prefix of two tokens, then each choice's token log-probabilities after it."""
    return (
        PromptRead(("Q", "A:"), (None, -9.0), ((), ())),
        *(PromptRead(("Q", "A:", *"x" * len(c)), (None, -9.0, *c), ((),) * (2 + len(c))) for c in choices),
    )


def test_mc1_asks_whether_the_best_true_choice_beats_every_false_one() -> None:
    asked = {"choices": [" a", " b", " c"], "true": [0, 1], "best": 1}
    assert score("choice", events=read((-1.0,), (-2.0, -0.5), (-3.0,)), **asked).value == 1.0  # -2.5 > -3
    assert (
        score("choice", events=read((-1.0,), (-2.0, -1.5), (-3.0,)), **asked).value == 0.0
    )  # -3.5 < -3, though choice 0 is likelier
    assert score("choice", events=read((-1.0,), (-3.0,), (-3.0,)), **asked).value == 0.0  # a tie is no win


def test_mc2_is_the_share_of_probability_on_true_choices() -> None:
    value = score(
        "choice",
        events=read((math.log(0.2),), (math.log(0.1),), (math.log(0.1),)),
        choices=[" a", " b", " c"],
        true=[0, 1],
        metric="mc2",
    ).value
    assert value == pytest.approx(0.3 / 0.4)


def test_mc2_does_not_underflow() -> None:
    assert mc2([-2000.0, -2000.0 - math.log(3)], (0,)) == pytest.approx(0.75)


@given(st.lists(st.floats(-30, 0), min_size=2, max_size=6), st.floats(-20, 0))
def test_likelihoods_count_only_relative_to_each_other(logs: list[float], shift: float) -> None:
    assert mc2([x + shift for x in logs], (0,)) == pytest.approx(mc2(logs, (0,)), rel=1e-9)
    assert mc1(logs, (0,), 0) == float(logs[0] > max(logs[1:]))


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ((), "told no prompt log-probabilities"),
        (read((-1.0,)), "told no prompt"),
        ((Prompted((), "prompt"), *read((-1.0,), (-2.0,))), "layer prompt adds"),
        (read((-1.0,), ()), "adds no token"),
    ],
)
def test_choices_that_were_not_read_are_unscored_with_the_reason(
    events: tuple[Event, ...], says: str
) -> None:
    found = score("choice", events=events, choices=[" a", " b"], true=[0])
    assert found.value is None
    assert says in found.explanation


@pytest.mark.parametrize("target", [{"true": [0, 1]}, {"true": [2]}, {"true": [0], "best": 1}])
def test_choices_need_a_true_and_a_false_one(target: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        score("choice", choices=[" a", " b"], **target)


# ---- truthful: ROUGE accuracy ----


def test_rouge_is_the_f1_of_shared_ngrams() -> None:
    assert rouge("The cat sat.", "the cat ran away", 1) == pytest.approx(2 * 2 / (3 + 4))
    assert rouge("The cat sat.", "the cat ran away", 2) == pytest.approx(2 * 1 / (2 + 3))
    assert rouge("a a b", "a a a", 1) == pytest.approx(2 * 2 / 6)  # clipped
    assert rouge("", "a", 1) == rouge("a", "…", 1) == 0.0


def test_an_answer_is_truthful_where_a_true_reference_is_nearest() -> None:
    asked = {"true": ["Nothing happens."], "false": ["You grow watermelons."]}
    assert score("truthful", "nothing much happens", **asked).value == 1.0
    assert score("truthful", "Watermelons grow in you", **asked).value == 0.0
    assert score("truthful", "Blue", **asked).value == 0.0  # 0 > 0 is no win
    assert score("truthful", " ", **asked).value is None


# ---- bfcl: the AST match of ast_checker.py ----

AREA = {
    "name": "geo.area",
    "parameters": {
        "type": "dict",
        "required": ["base"],
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
            "points": {"type": "array", "items": {"type": "float"}},
            "box": {"type": "dict"},
            "boxes": {"type": "array", "items": {"type": "dict"}},
            "filled": {"type": "boolean"},
            "names": {"type": "array", "items": {"type": "string"}},
        },
    },
}
OTHER = {
    "name": "other",
    "parameters": {"type": "dict", "required": [], "properties": {"x": {"type": "integer"}}},
}


def called(accepted: dict[str, list[Any]], **given: Any) -> float | None:
    return score(
        "bfcl",
        calls=(ToolCall("1", "geo_area", json.dumps(given)),),
        category="simple",
        functions=[AREA],
        answers=[{"geo.area": accepted}],
    ).value


@pytest.mark.parametrize(
    ("accepted", "given", "right"),
    [
        ({"base": [10]}, {"base": 10}, 1),
        ({"base": [10]}, {"base": 11}, 0),
        ({"base": [10]}, {"base": 10.0}, 0),
        ({"base": [10]}, {"base": "10"}, 0),
        ({"base": [10]}, {"base": True}, 0),
        ({"base": [10]}, {}, 0),
        ({"base": [10], "height": [5.0]}, {"base": 10, "height": 5}, 1),
        ({"base": [10], "height": [5]}, {"base": 10, "height": 5.0}, 1),
        ({"base": [10], "height": [5.0]}, {"base": 10}, 0),
        ({"base": [10], "height": [5.0, ""]}, {"base": 10}, 1),
        ({"base": [10]}, {"base": 10, "height": 5.0}, 0),
        ({"base": [10]}, {"base": 10, "colour": 1}, 0),
        ({"base": ["x"]}, {"base": "x"}, 1),
        ({"base": ["x"]}, {"base": "X"}, 0),
        ({"base": [10], "unit": ["April 1, 2024"]}, {"base": 10, "unit": "april 1 2024"}, 1),
        ({"base": [10], "unit": ["it's"]}, {"base": 10, "unit": 'it"s'}, 1),
        ({"base": [10], "unit": ["km"]}, {"base": 10, "unit": "m"}, 0),
        ({"base": [10], "points": [[1.0, 2.0]]}, {"base": 10, "points": [1.0, 2.0]}, 1),
        ({"base": [10], "points": [[1.0, 2.0]]}, {"base": 10, "points": [2.0, 1.0]}, 0),
        ({"base": [10], "points": [[1.0, 2.0]]}, {"base": 10, "points": [1, 2]}, 0),
        ({"base": [10], "points": [[1, 2]]}, {"base": 10, "points": [1, 2]}, 1),
        ({"base": [10], "names": [["New York", "Rome"]]}, {"base": 10, "names": ["new-york", "ROME"]}, 1),
        ({"base": [10], "names": [["Rome"]]}, {"base": 10, "names": "Rome"}, 0),
        ({"base": [10], "box": [{"w": [1], "h": [2, ""]}]}, {"base": 10, "box": {"w": 1}}, 1),
        ({"base": [10], "box": [{"w": [1], "h": [2]}]}, {"base": 10, "box": {"w": 1}}, 0),
        ({"base": [10], "box": [{"w": [1]}]}, {"base": 10, "box": {"w": 1, "d": 3}}, 0),
        ({"base": [10], "boxes": [[{"w": ["A b"]}]]}, {"base": 10, "boxes": [{"w": "a-B"}]}, 1),
        ({"base": [10], "boxes": [[{"w": [1]}]]}, {"base": 10, "boxes": [{"w": 1}, {"w": 1}]}, 0),
        ({"base": [10], "filled": [True]}, {"base": 10, "filled": 1}, 0),
    ],
)
def test_a_call_is_matched_as_the_leaderboard_matches_it(
    accepted: dict[str, list[Any]], given: dict[str, Any], right: float
) -> None:
    assert called(accepted, **given) == right


def calls(*made: tuple[str, dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(str(n), name, json.dumps(given)) for n, (name, given) in enumerate(made))


def test_the_number_and_the_names_of_calls_count_and_in_parallel_their_order_does_not() -> None:
    both = {
        "category": "parallel",
        "functions": [AREA, OTHER],
        "answers": [{"geo.area": {"base": [1]}}, {"other": {"x": [2]}}],
    }
    assert score("bfcl", calls=calls(("other", {"x": 2}), ("geo_area", {"base": 1})), **both).value == 1.0
    assert score("bfcl", calls=calls(("other", {"x": 2})), **both).value == 0.0
    assert score("bfcl", calls=calls(("other", {"x": 2}), ("other", {"x": 2})), **both).value == 0.0
    one = {"category": "multiple", "functions": [AREA, OTHER], "answers": [{"other": {"x": [2]}}]}
    assert score("bfcl", calls=calls(("other", {"x": 2})), **one).value == 1.0
    assert score("bfcl", calls=calls(("geo_area", {"base": 1})), **one).value == 0.0


def test_irrelevance_wants_no_call_and_a_call_that_a_layer_answered_is_one() -> None:
    made = ToolCalled(ToolCall("1", "geo_area", "{}"))
    assert score("bfcl", "I cannot.", category="irrelevance", functions=[AREA]).value == 1.0
    assert score("bfcl", events=(made,), category="irrelevance", functions=[AREA]).value == 0.0


def test_arguments_that_are_no_object_are_a_wrong_call() -> None:
    for text in ("[1]", "{", "3"):
        found = score(
            "bfcl",
            calls=(ToolCall("1", "geo_area", text),),
            category="simple",
            functions=[AREA],
            answers=[{"geo.area": {"base": [10]}}],
        )
        assert (found.value, found.explanation) == (0.0, "geo_area: arguments are no JSON object")


@pytest.mark.parametrize(
    "target",
    [
        {"category": "simple"},
        {"category": "irrelevance", "answers": [{"geo.area": {}}]},
        {"category": "multiple", "answers": [{"nobody": {}}]},
    ],
)
def test_answers_that_cannot_be_right_are_refused(target: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"answers: .*wanted"):
        score("bfcl", functions=[AREA], **target)


# ---- judged, flagged, passages ----


def test_what_needs_a_judge_has_no_score_and_says_what_would_be_asked() -> None:
    found = score("judged", "An answer.", question="Is it good?")
    assert (found.value, found.answer, found.explanation) == (
        None,
        "An answer.",
        "needs a judge: Is it good?",
    )


def test_the_policy_is_right_where_it_stops_what_people_flagged() -> None:
    stop = Refusal("policy", "weapons", "why", "No.")
    assert [
        score("flagged", "x", refusal=r, flagged=f).value for r in (stop, None) for f in (True, False)
    ] == [1.0, 0.0, 0.0, 1.0]


def test_words_of_refusal_by_the_weights_are_no_flag() -> None:
    assert score("flagged", "I'm sorry, I can't help with that.", flagged=True).value == 0.0


def test_passages_are_counted_by_name_source_or_a_word_of_their_text() -> None:
    found = (Passage("p1", "x", 2.0, "a.md"), Passage("p2", "Source: doc#two more", 1.0, "b.md"))
    asked = {"gold": ["doc#two", "b.md", "doc#tw"]}
    assert score("passages", events=found, **asked).value == pytest.approx(2 / 3)
    assert score("passages", events=found, measure="mrr", **asked).value == 0.5
    assert score("passages", events=found, measure="hit", **asked).value == 1.0
    assert [score("passages", measure=m, **asked).value for m in ("recall", "hit", "mrr")] == [0.0, 0.0, 0.0]
