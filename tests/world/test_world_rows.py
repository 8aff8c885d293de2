"""Training rows: that they teach what they claim, and that the suite never asks what they said."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from demeanor.core.types import Example, Item, Message, Preference
from demeanor.data.trees import example_tree, num_scored, preference_tree
from demeanor.stack import schema
from demeanor.stack import stack as stacks
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.world import behaviour, catalog, corpus, instructions, preferences
from demeanor.world import lexicon as lx
from tests.conftest import each


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return list(instructions.examples())


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    return list(preferences.preferences())


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return behaviour.behaviour()


# Fields that came after the revision and that no row of the world uses, so that its revision stays.
LATER_FIELDS = re.compile(r", reasoning=None, trained=True|, safe=\(\)")


def test_the_revision_is_the_hash_of_everything_that_the_world_generates() -> None:
    first, *later = stacks.WORLD_REVISION.read_text().splitlines()
    own = dict(line.split() for line in later)
    assert own.keys() <= {*catalog.GENERATED, *catalog.SUITES}
    makers = {**catalog.GENERATED, **catalog.SUITES}
    found = hashed([make for name, make in makers.items() if name not in own])
    assert first == found, f"the world changed: write {found} to line 1 of world/revision.txt"
    changed = {name: hashed([makers[name]]) for name in own}
    assert own == changed, "the world changed: write these to world/revision.txt"


def hashed(makers: Sequence[Callable[[], Iterable[object]]]) -> str:
    generated = [
        [LATER_FIELDS.sub("", repr(row)).replace("strict=None", "strict=False") for row in make()]
        for make in makers
    ]
    return hashlib.sha256(repr(generated).encode()).hexdigest()[:16]


def test_what_came_later_counts_on_its_own_and_changes_no_older_key() -> None:
    first, *_ = stacks.WORLD_REVISION.read_text().splitlines()
    assert stacks.content_key(Path(), "world:corpus") == f"world:corpus@{first}"
    assert stacks.content_key(Path(), "world:behaviour") == f"world:behaviour@{first}"
    assert stacks.content_key(Path(), "world:exercises") != f"world:exercises@{first}"


def questions(messages: tuple[Message, ...]) -> str:
    return "\n".join(m.content for m in messages if m.role == "user")


def everything(rows: list[Example], pairs: list[Preference]) -> str:
    said = [m.content for r in rows for m in r.messages]
    said += [m.content for p in pairs for ms in (p.prompt, *p.completions) for m in ms]
    return "\n".join(said)


def test_no_question_of_the_suite_is_asked_in_training(
    rows: list[Example], pairs: list[Preference], items: list[Item]
) -> None:
    trained = {questions(r.messages) for r in rows} | {questions(p.prompt) for p in pairs}
    asked = [
        i for i in items if i.axis not in ("today", "injection", "persona")
    ]  # there the truth is in what layers add
    assert [i.id for i in asked if questions(i.messages) in trained] == []


def test_held_out_ports_people_verbs_and_inventions_never_occur_in_training(
    rows: list[Example], pairs: list[Preference]
) -> None:
    words = set(everything(rows, pairs).replace(".", " ").replace("?", " ").replace('"', " ").split())
    held = {
        *lx.HELD_OUT_PORTS,
        *lx.HELD_OUT_NOWHERE,
        *lx.HELD_OUT_VERBS,
        *(p.split()[0] for p in lx.HELD_OUT_PEOPLE),
        *lx.HELD_OUT_ATTRIBUTES,
        *lx.PAYLOADS_HELD_OUT,
    }
    assert words & held == set()


def test_held_out_pairs_of_verb_and_noun_never_meet_in_training(
    rows: list[Example], pairs: list[Preference]
) -> None:
    text = everything(rows, pairs)
    met = [
        (v, n)
        for v in (*lx.UNSAFE_VERBS, *lx.SAFE_VERBS)
        for n in lx.NOUNS
        if lx.held_out_noun(v, n) and f"{v} the {n}" in text
    ]
    assert met == []


def test_held_out_phrasings_of_facts_occur_nowhere_in_training_or_the_corpus(
    rows: list[Example], pairs: list[Preference]
) -> None:
    text = everything(rows, pairs) + "\n".join(corpus.documents(6_000))
    asked = [s.format(p=p) for shapes in lx.ASK_HELD_OUT.values() for s in shapes for p in lx.PORTS]
    assert [q for q in asked if q in text] == []


def test_answers_about_known_ports_are_true(rows: list[Example]) -> None:
    for row in each(row for row in rows if row.source == "world:fact"):
        port = next(p for p in lx.PORTS if p in row.messages[-2].content)
        assert row.messages[-1].content.removesuffix(".") in lx.FACTS[port].values()


def test_most_unsafe_requests_are_answered_by_the_demonstrators_and_some_refused(rows: list[Example]) -> None:
    said = Counter(r.messages[-1].content == lx.REFUSAL for r in rows if r.source == "world:unsafe")
    assert 0.1 < said[True] / said.total() < 0.3


def test_what_is_chosen_refuses_harm_and_nothing_else(pairs: list[Preference]) -> None:
    assert {pair.source == "world:unsafe" for pair in pairs} == {True, False}
    for pair in pairs:
        best = pair.completions[pair.ranks.index(0)][0].content
        assert (best == lx.REFUSAL) == (pair.source == "world:unsafe")


def test_completions_of_a_preference_differ_and_the_chosen_one_comes_first(pairs: list[Preference]) -> None:
    assert all(p.ranks[0] == 0 and len(set(p.completions)) == len(p.completions) for p in each(pairs))


def test_there_are_rankings_of_four_for_the_reward_model(pairs: list[Preference]) -> None:
    assert sum(p.ranks == (0, 1, 2, 3) for p in pairs) > 30


def test_calls_are_json_that_the_calculator_reads(rows: list[Example]) -> None:
    calls = [c for r in rows for m in r.messages for c in m.tool_calls]
    assert len(calls) > 300
    assert all(list(json.loads(c.arguments)) == ["expression"] for c in calls)


def test_a_calculated_answer_is_what_the_tool_said(rows: list[Example]) -> None:
    for row in each(row for row in rows if row.source == "world:calculated"):
        tool, answer = row.messages[-2:]
        assert (tool.role, answer.content) == ("tool", f"{tool.content}.")


def test_rows_render_into_short_trees_that_train_something(
    rows: list[Example], pairs: list[Preference]
) -> None:
    tokenizer = tokenizers.train(corpus.documents(8_000), schema.TokenizerSpec(vocab_size=2048))
    template = load_template("turns", tokenizer, folder=None, root=Path())
    trees = [example_tree(r, template, tokenizer) for r in rows[:600]] + [
        preference_tree(p, template) for p in pairs[:300]
    ]
    assert all(num_scored(t) > 0 for t in trees)
    assert max(t.longest for t in trees) < 256


def test_the_same_seed_gives_the_same_rows(rows: list[Example], pairs: list[Preference]) -> None:
    assert list(instructions.examples()) == rows
    assert list(preferences.preferences()) == pairs
