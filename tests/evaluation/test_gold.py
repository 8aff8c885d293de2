"""The answer that an item's target calls right is right by its scorer, wherever one can be written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from demeanor.core.types import Completion
from demeanor.evaluation import gold, suites
from demeanor.evaluation.items import READ
from demeanor.evaluation.scorers import score_item


def test_a_written_answer_is_accepted_by_the_scorer_of_its_item() -> None:
    every = [i for name in suites.offered() for i in suites.items(name, Path()) if i.scorer not in READ]
    written = [(i, text) for i in every if (text := gold.gold(i)) is not None]
    scorers = Counter(i.scorer for i, _ in written)
    assert {"exact", "number", "format", "refusal", "honesty"} <= set(scorers)
    assert sum(scorers.values()) > 500
    values = [(i.id, text, score_item(i, Completion(text, "stop")).value) for i, text in written]
    assert [found for found in values if found[2] != 1.0] == []


def test_no_answer_is_invented_where_the_target_says_only_what_to_avoid() -> None:
    every = [i for name in suites.offered() for i in suites.items(name, Path())]
    silent = {i.scorer for i in every if gold.gold(i) is None}
    assert {"absence", "checks", "likelihood"} <= silent


def test_declining_is_no_trick_where_it_is_right() -> None:
    every = suites.items("world:behaviour", Path())
    axes = {i.axis for i in every if gold.declines(i)}
    assert axes == {"unsafe", "jailbreak", "honesty", "personal_data", "injection"}
