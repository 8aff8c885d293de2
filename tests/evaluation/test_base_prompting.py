"""The base asked in several ways: means by way, the best way not flattered by being picked, and the stage's gain over it."""

from __future__ import annotations

import numpy as np
import pytest

from demeanor.core.types import Item, Message
from demeanor.evaluation.base_prompting import ALL, compare_base_prompts, cross_fitted, half
from demeanor.evaluation.result_rows import Row


def item(i: int, axis: str = "a") -> Item:
    return Item(f"{axis}-{i}", (Message("user", str(i)),), "exact", {"answers": ["x"]}, axis, f"{axis}{i}")


def row(variant: str, of: Item, value: float | None) -> Row:
    return Row(
        variant,
        variant,
        of.id,
        of.id,
        0,
        of.axis,
        of.cluster,
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


def test_a_stage_that_only_learnt_the_format_gains_over_the_declared_prompt_and_not_over_the_best() -> None:
    items = [item(i) for i in range(60)] + [item(i, "b") for i in range(60)]
    rows = []
    for n, one in enumerate(items):
        right = float(n % 3 > 0)
        rows += [row("plain", one, 0.0), row("few-shot", one, right), row("next", one, right)]
    found = compare_base_prompts(
        rows, items, name="f", ways={"plain": "plain", "few-shot": "few-shot"}, declared="plain", stage="next"
    )
    a, b, whole = found.gains
    assert (a.axis, b.axis, whole.axis) == ("a", "b", ALL)
    for g in found.gains:
        assert g.ways == {"plain": 0.0, "few-shot": pytest.approx(2 / 3)}
        assert (g.picked, g.over_declared.value, g.over_best.value) == (
            ("few-shot",),
            pytest.approx(2 / 3),
            0.0,
        )
        assert g.over_declared.low is not None
        assert g.over_declared.low > 0
        assert g.over_best.low is not None
        assert g.over_best.low < 0 < (g.over_best.high or 0.0)


def test_picking_among_equal_ways_does_not_flatter_the_base() -> None:
    rng, flattered, honest = np.random.default_rng(0), [], []
    for _ in range(300):
        values_NW = rng.integers(0, 2, size=(40, 8)).astype(float)
        clusters = [f"{rng.integers(10**9)}" for _ in range(40)]
        best_N, _ = cross_fitted(values_NW, clusters, [str(w) for w in range(8)])
        honest.append(best_N.mean())
        flattered.append(values_NW.mean(axis=0).max())
    assert np.mean(flattered) > 0.58  # the best of 8 coins over 40 throws
    assert np.mean(honest) == pytest.approx(0.5, abs=0.015)  # 300 runs: a standard error of 0.005


def test_an_item_without_a_score_in_some_way_is_left_out_and_halves_do_not_depend_on_the_suite() -> None:
    items = [item(i) for i in range(10)]
    rows = [
        row(v, one, None if v == "raw" and one.id == "a-3" else 1.0)
        for v in ("plain", "raw", "next")
        for one in items
    ]
    (gain,) = compare_base_prompts(
        rows, items, name="f", ways={"plain": "plain", "raw": "raw"}, declared="plain", stage="next"
    ).gains
    assert gain.n == 9
    assert [half(f"c{n}") for n in (5, 6, 8, 9)] == [
        True,
        False,
        True,
        False,
    ]  # pinned: another version halves alike
    assert 10 < sum(half(f"c{n}") for n in range(50)) < 40
