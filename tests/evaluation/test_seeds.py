"""Several trainings: the interval covers another seed and other items, shrinks with neither alone, and wants one ladder on one suite."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation.ladder import ladder
from demeanor.evaluation.result import Result
from demeanor.evaluation.result_rows import Row
from demeanor.evaluation.seeds import interval, seeds

ITEMS = [
    Item(f"i{n}", (Message("user", str(n)),), "exact", {"answers": ["x"]}, "a", f"c{n}") for n in range(40)
]


def result(right: float, rng: np.random.Generator) -> Result:
    """A ladder of two rungs; the second has `right` of the items right, the first none."""
    rows = [
        Row(
            v,
            v,
            i.id,
            i.id,
            0,
            i.axis,
            i.cluster,
            None,
            (),
            value,
            "",
            "",
            "",
            "",
            "",
            "stop",
            1,
            1,
            1.0,
            {},
            (),
        )
        for i in ITEMS
        for v, value in (("n:base", 0.0), ("n:base+sft", float(rng.random() < right)))
    ]
    return ladder(rows, ITEMS, name="n", steps=["n:base", "n:base+sft"], without={})


def test_without_spread_between_seeds_the_interval_is_that_of_the_items() -> None:
    low, high = interval([0.3, 0.3, 0.3], 0.05, 21)
    half = float(stats.t.ppf(0.975, 20)) * 0.05
    assert (low, high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))


def test_without_spread_between_items_the_interval_is_the_t_interval_over_seeds() -> None:
    values = [0.1, 0.4, 0.2]
    low, high = interval(values, 0.0, 1000)
    half = float(stats.t.ppf(0.975, 2)) * np.std(values, ddof=1) / math.sqrt(3)
    assert (low, high) == (
        pytest.approx(0.25 - half + (np.mean(values) - 0.25)),
        pytest.approx(np.mean(values) + half),
    )


def test_nothing_is_claimed_where_the_items_allow_no_interval() -> None:
    assert interval([0.1, 0.2], None, 5) == (None, None)
    assert interval([0.1, 0.2], 0.1, 1) == (None, None)


def test_the_interval_covers_the_recipes_mean_where_trainings_differ() -> None:
    """Seeds draw their accuracy around 0.5 with sd 0.15; items draw right or wrong. One training's interval is too narrow, this one is not."""
    rng, covered, naive, runs = np.random.default_rng(0), 0, 0, 200
    for _ in range(runs):
        found = seeds(
            {k: result(float(np.clip(rng.normal(0.5, 0.15), 0, 1)), rng) for k in range(4)}, name="n"
        )
        (step,) = found.steps
        assert step.low is not None
        assert step.high is not None
        covered += step.low <= 0.5 <= step.high
        one = result(float(np.clip(rng.normal(0.5, 0.15), 0, 1)), rng).steps[0].deltas[0]
        naive += one.low is not None and one.high is not None and one.low <= 0.5 <= one.high
    assert covered / runs >= 0.95
    assert naive / runs < 0.85


def test_every_seed_is_told_and_a_step_shown_once_is_not_shown_over_all() -> None:
    rng = np.random.default_rng(1)
    found = seeds({0: result(0.9, rng), 7: result(0.0, rng)}, name="n")
    (step,) = found.steps
    assert (found.seeds, found.variants, len(step.values), step.shown) == ((0, 7), ("base", "+sft"), 2, 1)
    assert step.low is not None
    assert step.low < 0
    assert [x.values[1] for x in found.levels] == [0.0, 0.0]


def test_other_items_other_variants_and_a_single_training_are_refused() -> None:
    rng = np.random.default_rng(2)
    one = result(0.5, rng)
    with pytest.raises(DataError, match="nothing varies"):
        seeds({0: one}, name="n")
    with pytest.raises(DataError, match="other items or other variants"):
        seeds({0: one, 1: replace(one, suite_hash="other")}, name="n")
