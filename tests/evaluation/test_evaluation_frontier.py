"""The frontier on an evaluation with known effects: who refused, what was lost, and who is beaten."""

from __future__ import annotations

import random

import pytest

from demeanor.errors import DataError
from demeanor.evaluation.frontier import frontier
from demeanor.types import Item, Message
from tests.evaluation import synthetic

LABELS = {"desk:base": "base", "desk:sft": "sft", "desk:dpo": "dpo", "desk": "dpo+policy"}
BEFORE = {"desk:sft": "desk:base", "desk:dpo": "desk:sft", "desk": "desk:dpo"}


def test_the_numbers_of_a_point_are_the_shares_counted_by_hand() -> None:
    items = synthetic.items(40)
    rows = synthetic.rows(items)
    points = {p.label: p for p in frontier(rows, items, LABELS, BEFORE, name="x").points}
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


def test_a_point_is_beaten_only_by_what_is_nowhere_worse() -> None:
    items = synthetic.items(40)
    for point in (points := frontier(synthetic.rows(items), items, LABELS, BEFORE, name="x").points):
        def goods(p: object) -> tuple[float, ...]:
            return (p.refusals.safe_compliance.value, p.refusals.unsafe_refusal.value, p.capability.value)  # type: ignore[attr-defined]
        beaten = {q.label for q in points if goods(q) != goods(point) and all(a >= b for a, b in zip(goods(q), goods(point)))}
        assert set(point.dominated_by) == beaten
    assert "sft" in points[0].dominated_by


def test_a_suite_without_contrast_twins_is_refused() -> None:
    items = [Item("a", (Message("user", "?"),), "exact", {"answers": ["x"]}, "facts", "a")]
    rows = [synthetic.row(items[0], "v", 1.0, layers=0, draw=random.Random(0))]
    with pytest.raises(DataError, match="contrast twins"):
        frontier(rows, items, {"v": "v"}, {}, name="x")
