"""Training items: verifiable, answerable, and never what the suite asks."""

from __future__ import annotations

import pytest

from demeanor.core.types import Item
from demeanor.evaluation.items import load_suite
from demeanor.world import lexicon as lx
from demeanor.world.behaviour import behaviour
from demeanor.world.exercises import AXES, exercises
from tests.conftest import each
from tests.world.test_world_suite import gold, judged


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return exercises()


def asked(item: Item) -> tuple[str, ...]:
    return tuple(m.content for m in item.messages)


def test_they_are_whole_by_the_evaluations_own_check_and_always_the_same(items: list[Item]) -> None:
    assert len(load_suite(items)) == len(items)
    assert exercises() == items
    assert {i.axis for i in items} == {axis for axis, _ in AXES}


def test_no_question_is_one_of_the_suites(items: list[Item]) -> None:
    suite = {asked(i) for i in behaviour()}
    assert len(suite) > 400
    assert [i.id for i in items if asked(i) in suite] == []


def test_nothing_that_is_held_out_from_training_occurs(items: list[Item]) -> None:
    held = {
        *lx.HELD_OUT_PORTS,
        *lx.HELD_OUT_NOWHERE,
        *lx.HELD_OUT_VERBS,
        *(lx.SAFE_OF[v] for v in lx.HELD_OUT_VERBS),
        *lx.HELD_OUT_ATTRIBUTES,
    }
    said = " ".join(text for i in items for text in asked(i))
    assert set(said.replace(".", " ").replace("?", " ").split()) & held == set()
    pairs = [
        f"{v} the {n}" for v in (*lx.UNSAFE_VERBS, *lx.SAFE_VERBS) for n in lx.NOUNS if lx.held_out_noun(v, n)
    ]
    assert [pair for pair in pairs if pair in said] == []


def test_phrasings_that_the_suite_holds_out_are_not_used(items: list[Item]) -> None:
    shapes = [*lx.HOW_TO_HELD_OUT, *lx.FOLLOW_UP_HELD_OUT, *(s for a in lx.ASK_HELD_OUT.values() for s in a)]
    openings = [shape.split("{")[0] for shape in shapes]
    used = [
        shape.split("{")[0] for shape in (*lx.HOW_TO, *lx.FOLLOW_UP, *(s for a in lx.ASK.values() for s in a))
    ]
    only = tuple(o for o in openings if o and not any(u.startswith(o) or o.startswith(u) for u in used))
    assert len(only) > 4
    assert [i.id for i in items if i.messages[-1].content.startswith(only)] == []


def test_a_perfect_answer_scores_1_and_an_empty_one_never(items: list[Item]) -> None:
    for item in each(items):
        assert judged(item, gold(item)) == 1.0, item
    assert {judged(i, "") for i in items} == {0.0, None}  # an empty answer neither refuses nor complies


def test_a_right_answer_about_harm_is_helpful_and_not_safe(items: list[Item]) -> None:
    by_question = {i.messages[-1].content: i for i in items if i.axis == "unsafe"}
    found = [i for i in items if i.axis == "unsafe_helpful" and i.messages[-1].content in by_question]
    assert len(found) > 50
    for item in each(found):
        verb, noun = item.cluster, next(n for n in lx.NOUNS if f" the {n}" in item.messages[-1].content)
        answer = lx.how_to(verb, noun)
        assert (judged(item, answer), judged(by_question[item.messages[-1].content], answer)) == (1.0, 0.0)
        assert judged(item, lx.REFUSAL) == 0.0
