"""The frontier on an evaluation with known effects: who refused, what was lost, and who is beaten."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation.frontier import (
    Answered,
    KlFromParent,
    Placement,
    calibration_of,
    divergence,
    frontier,
    points_table,
)
from demeanor.evaluation.result_rows import CALLED, FOUND, LayerActivity
from tests.conftest import each
from tests.evaluation import synthetic

PLACED = {
    "desk:base": Placement("base"),
    "desk:sft": Placement("sft", "desk:base"),
    "desk:dpo": Placement("dpo", "desk:sft"),
    "desk": Placement("dpo+policy", "desk:dpo"),
}


def test_the_numbers_of_a_point_are_the_shares_counted_by_hand() -> None:
    items = synthetic.items(40)
    rows = synthetic.rows(items)
    points = {p.label: p for p in frontier(rows, items, PLACED, name="x").points}
    mine = {r.item_id: r for r in rows if r.variant == "desk"}
    old = {r.item_id: r for r in rows if r.variant == "desk:dpo"}
    others = [i.id for i in items if i.axis not in ("unsafe", "safe_twin")]
    point = points["dpo+policy"]
    assert point.capability.value == pytest.approx(sum(mine[i].value or 0 for i in others) / len(others))
    assert set(point.lost) == {i for i in others if old[i].value == 1 and mine[i].value == 0}
    assert set(point.gained) == {i for i in others if old[i].value == 0 and mine[i].value == 1}
    refused = [r for r in mine.values() if r.axis == "unsafe" and r.refused_by]
    assert sum(n for by, n in point.refusals.who_unsafe.items() if by != "nobody") == len(refused)
    assert points["base"].before is None
    assert (points["base"].lost, points["base"].gained) == ((), ())


def test_the_cost_of_a_point_counts_tokens_read_and_written_and_calls() -> None:
    items = synthetic.items(40)
    did = (
        LayerActivity("retrieval", FOUND, "a"),
        LayerActivity("retrieval", FOUND, "b"),  # of the same search
        LayerActivity("tools", CALLED, "calculator"),
        LayerActivity("tools", CALLED, "calculator"),
        LayerActivity("tools", "a tool answered", "4"),
    )
    rows = [
        replace(r, prompt_tokens=30, completion_tokens=5, events=did if r.variant == "desk" else ())
        for r in synthetic.rows(items)
    ]
    found = frontier(rows, items, PLACED, name="x")
    points = {p.label: p for p in found.points}
    assert (points["dpo+policy"].mean_calls, points["sft"].mean_calls) == (3.0, 0.0)
    assert (points["sft"].mean_tokens, points["sft"].mean_written) == (35.0, 5.0)
    table = points_table(found)
    columns = [table.columns.index(name) for name in ("read", "written", "calls")]
    assert [table.rows[3][i] for i in columns] == ["30", "5", "3"]
    earlier = replace(found, points=(replace(points["sft"], mean_written=None, mean_calls=None),))
    assert points_table(earlier).rows[0][columns[0]] == "35 in all"


def test_a_point_is_beaten_only_by_what_is_nowhere_worse() -> None:
    items = synthetic.items(40)
    for point in (points := frontier(synthetic.rows(items), items, PLACED, name="x").points):

        def goods(p: object) -> tuple[float, ...]:
            return (p.refusals.safe_compliance.value, p.refusals.unsafe_refusal.value, p.capability.value)  # type: ignore[attr-defined]

        beaten = {
            q.label
            for q in points
            if goods(q) != goods(point) and all(a >= b for a, b in zip(goods(q), goods(point)))
        }
        assert set(point.dominated_by) == beaten
    assert "sft" in points[0].dominated_by


def test_a_suite_without_contrast_twins_is_refused() -> None:
    items = [Item("a", (Message("user", "?"),), "exact", {"answers": ["x"]}, "facts", "a")]
    rows = [synthetic.row(items[0], "v", 1.0, layers=0, draw=random.Random(0))]
    with pytest.raises(DataError, match="contrast twins"):
        frontier(rows, items, {"v": Placement("v")}, name="x")


def test_the_tax_is_every_lost_item_with_the_answer_that_was_right_and_the_one_that_is_wrong() -> None:
    items = synthetic.items(40)
    rows = synthetic.rows(items)
    by = {(r.variant, r.item_id): r for r in rows}
    for point in each(frontier(rows, items, PLACED, name="x").points):
        assert tuple(t.item_id for t in point.tax) == point.lost
        for tax in point.tax:
            assert point.before is not None
            assert (tax.before, tax.now) == (
                by[point.before, tax.item_id].text,
                by[point.variant, tax.item_id].text,
            )
            assert (by[point.before, tax.item_id].value, by[point.variant, tax.item_id].value) == (1, 0)


def test_the_mean_log_ratio_of_drawn_answers_is_the_kl_in_closed_form() -> None:
    """Two categorical distributions over three answers: 4,000 draws lie within four standard errors of sum p log p/q."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = float((p * np.log(p / q)).sum())
    draws = np.random.default_rng(0).choice(3, 4000, p=p)
    found = divergence(
        [KlFromParent(str(i), str(i), float(np.log(p[d] / q[d])), 2) for i, d in enumerate(draws)]
    )
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert abs(found.value - exact) < 2 * (found.high - found.low)
    assert found.per_token == pytest.approx(found.value / 2)
    assert (found.high - found.low) / 2 == pytest.approx(
        1.96 * np.log(p / q)[draws].std() / np.sqrt(4000), rel=0.01
    )


def test_true_confidences_look_calibrated_and_boasting_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(600)
    right = rng.random(600) < truth
    fair = calibration_of(
        [Answered(str(i), float(c), bool(r), str(i)) for i, (c, r) in enumerate(zip(truth, right))]
    )
    boasts = calibration_of(
        [Answered(str(i), float(c) ** 0.2, bool(r), str(i)) for i, (c, r) in enumerate(zip(truth, right))]
    )
    assert fair is not None
    assert boasts is not None
    assert fair.ece <= fair.null_high
    assert fair.p > 0.05
    assert boasts.ece > boasts.null_high
    assert boasts.p < 0.01


def test_what_was_not_asked_is_not_told() -> None:
    assert (divergence([]), calibration_of([])) == (None, None)
