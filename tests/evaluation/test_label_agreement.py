"""Agreement of labels: matrices by hand, missing labels, labellers against the rest, gold checks, a taste for the first place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from demeanor.evaluation import label_agreement
from demeanor.evaluation.agreement import alpha
from demeanor.evaluation.label_agreement import measure, ratings
from tests.conftest import each


class Given(NamedTuple):
    item: str
    labeller: str
    choice: str
    ranks: tuple[int, ...]
    shown: tuple[int, ...] = (0, 1)
    ms: int = 0


PAIRS = [
    Given("i0", "a", "ranked", (0, 1)),
    Given("i0", "b", "ranked", (0, 1)),
    Given("i1", "a", "ranked", (1, 0)),
    Given("i1", "b", "all_bad", (0, 0)),
    Given("i2", "a", "tie", (0, 0)),
    Given("i2", "c", "tie", (0, 0)),
    Given("i3", "b", "skipped", (0, 0)),
    Given("i3", "c", "ranked", (0, 1)),
]


def test_pairs_become_one_unit_an_item_and_both_bad_is_a_tie_in_order_only() -> None:
    work = [label for label in PAIRS if label.choice != "skipped"]
    nominal = ratings(work, "nominal")
    assert nominal.labellers == ("a", "b", "c")
    assert nominal.items == ("i0", "i1", "i2", "i3")
    expected = [[-1, -1, np.nan], [1, 2, np.nan], [0, np.nan, 0], [np.nan, np.nan, -1]]
    np.testing.assert_equal(nominal.values_NR, np.array(expected, dtype=float))
    np.testing.assert_equal(ratings(work, "ordinal").values_NR[1], np.array([1.0, 0.0, np.nan]))


def test_rankings_have_a_unit_for_every_two_answers_or_for_every_answer() -> None:
    one = [Given("i", "a", "ranked", (0, 2, 1), (0, 1, 2)), Given("i", "b", "ranked", (1, 1, 0), (1, 2, 0))]
    nominal, ordinal = ratings(one, "nominal"), ratings(one, "ordinal")
    assert nominal.units == ("i/0-1", "i/0-2", "i/1-2")
    assert nominal.values_NR.tolist() == [[-1, 0], [-1, 1], [1, 1]]
    assert ordinal.values_NR.tolist() == [[0, 1], [2, 1], [1, 0]]
    assert set(each(nominal.items)) == {"i"}


def test_the_measure_is_alpha_of_the_matrix_and_skipped_items_count_for_nobody() -> None:
    found = measure(PAIRS)
    matrix = ratings([label for label in PAIRS if label.choice != "skipped"], "nominal")
    assert found.nominal == alpha(matrix.values_NR, matrix.items, level="nominal")
    assert (found.items, found.labels) == (4, 7)
    by_name = {one.labeller: one for one in found.labellers}
    assert by_name["a"].with_rest is not None
    assert by_name["a"].with_rest.value == pytest.approx(2 / 3), "i0 and i2 of i0, i1, i2"
    assert by_name["a"].labels == 3


def test_gold_checks_count_for_their_labeller_and_not_for_agreement() -> None:
    gold = {"g0": (0, 1), "g1": (1, 0), "g2": (0, 0)}
    checks = [
        Given("g0", "a", "ranked", (0, 1)),
        Given("g1", "a", "ranked", (0, 1)),
        Given("g2", "a", "all_bad", (0, 0)),
        Given("g0", "b", "tie", (0, 0)),
    ]
    found = measure([*PAIRS, *checks], gold)
    assert found.labels == 7
    scores = {one.labeller: one.gold.value for one in found.labellers if one.gold}
    assert scores == {"a": pytest.approx(2 / 3), "b": 0.0}


def test_one_who_always_takes_the_first_is_shown_to_do_so() -> None:
    orders = [(0, 1), (1, 0)] * 20
    lazy = [
        Given(f"i{n}", "lazy", "ranked", (0, 1) if order[0] == 0 else (1, 0), order)
        for n, order in enumerate(orders)
    ]
    fair = [Given(f"i{n}", "fair", "ranked", (0, 1), order) for n, order in enumerate(orders)]
    found = {one.labeller: one for one in measure([*lazy, *fair]).labellers}
    assert found["lazy"].first is not None
    assert found["lazy"].first.value == 1.0
    assert found["lazy"].first_p is not None
    assert found["lazy"].first_p < 1e-9
    assert found["fair"].first is not None
    assert (found["fair"].first.value, found["fair"].first_p) == (0.5, 1.0)


def test_without_labels_there_is_a_table_and_no_number() -> None:
    found = measure([])
    assert found.nominal.value is None
    assert found.labellers == ()
    assert label_agreement.section(found, "q").title == "How far people agree: q"
