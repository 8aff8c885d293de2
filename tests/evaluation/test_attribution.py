"""Attribution over a factorial whose causes were planted: additive effects, an interaction, a layer that does nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation.attribution import ALL, Attribution, Effect, attribute
from demeanor.evaluation.factorial import Cell, Factorial
from demeanor.evaluation.result_rows import Row
from tests.conftest import each
from tests.evaluation import synthetic

GAME = Factorial(("base", "sft", "dpo"), ("prompt", "policy"))
NAMES: dict[Cell, str] = {
    cell: f"desk:{'+'.join([GAME.chain[cell[0]], *sorted(cell[1])])}" for cell in GAME.cells
}
Rate = Callable[[frozenset[str]], float]


def items(n: int = 200, axis: str = "facts") -> list[Item]:
    return [
        Item(f"{axis}-{i}", (Message("user", "?"),), "exact", {"answers": ["x"]}, axis, f"{axis}-{i // 2}")
        for i in range(n)
    ]


def planted(found: list[Item], rate: Rate, seed: int = 0, wobble: float = 0.0) -> list[Row]:
    """An item is right where its hidden difficulty lies below the cell's rate; `wobble` flips answers by chance per cell."""
    draw = random.Random(seed)
    ease = {item.id: draw.random() for item in found}
    out = []
    for cell in GAME.cells:
        on = frozenset((*GAME.chain[1 : cell[0] + 1], *cell[1]))
        for item in found:
            right = (ease[item.id] < rate(on)) != (draw.random() < wobble)
            out.append(synthetic.row(item, NAMES[cell], float(right), layers=0, draw=draw))
    return out


def run(rate: Rate, **more: float) -> Attribution:
    found = items()
    return attribute(planted(found, rate, **more), found, GAME, NAMES, name="planted", draws=400)  # type: ignore[arg-type]


def of(effects: tuple[Effect, ...], name: str) -> Effect:
    return next(e for e in effects if e.name == name)


def additive(on: frozenset[str]) -> float:
    return 0.1 + 0.4 * ("sft" in on) + 0.2 * ("dpo" in on) + 0.15 * ("prompt" in on)


def test_planted_effects_are_found_and_the_layer_that_does_nothing_covers_zero() -> None:
    found = run(additive)
    for name, effect in {"sft": 0.4, "dpo": 0.2, "prompt": 0.15}.items():
        e = of(found.shapley, name)
        assert e.low is not None
        assert e.high is not None
        assert e.low <= effect <= e.high
        assert e.shown
    nothing = of(found.shapley, "policy")
    assert nothing.value == 0.0
    assert nothing.low is not None
    assert nothing.high is not None
    assert nothing.low < 0 < nothing.high
    assert not nothing.shown
    assert [e.name for e in found.interactions if e.shown] == []


def test_shapley_and_waterfall_sum_exactly_to_the_whole() -> None:
    found = run(additive, wobble=0.1)
    total = of(found.total, "everything").value
    assert sum(e.value for e in found.shapley) == pytest.approx(total, abs=1e-12)
    assert sum(e.value for e in found.waterfall) == pytest.approx(total, abs=1e-12)
    assert total == pytest.approx(
        found.cells[NAMES[GAME.full]]["facts"] - found.cells[NAMES[GAME.empty]]["facts"]
    )


def test_an_interaction_is_named_and_lies_within_two() -> None:
    found = run(lambda on: 0.2 + 0.5 * ({"prompt", "policy"} <= on))
    assert [e.name for e in found.interactions if e.shown] == ["prompt x policy"]
    e = of(found.interactions, "prompt x policy")
    assert e.low is not None
    assert e.low <= 0.5 <= (e.high or 0)
    assert of(found.waterfall, "prompt").value == 0.0  # alone it does nothing; shapley halves the merit
    assert of(found.shapley, "prompt").value == pytest.approx(e.value / 2)


def test_a_layer_that_does_nothing_covers_zero_in_about_ninety_five_percent_of_runs() -> None:
    covered = 0
    for seed in range(100):
        found = items(60)
        e = of(
            attribute(
                planted(found, lambda on: 0.5, seed, wobble=0.2), found, GAME, NAMES, name="x", draws=200
            ).shapley,
            "policy",
        )
        covered += (e.low or 0) <= 0 <= (e.high or 0)
    assert covered / 100 == pytest.approx(0.95, abs=0.05)


def test_items_that_moved_are_listed_by_axis_and_fixed_minus_broken_is_the_step() -> None:
    found = run(additive, wobble=0.1)
    for moved, step in zip(each(found.changed), found.waterfall, strict=True):
        net = len(moved.fixed.get("facts", ())) - len(moved.regressed.get("facts", ()))
        assert net / 200 == pytest.approx(step.value)
        assert not set(moved.fixed.get("facts", ())) & set(moved.regressed.get("facts", ()))


def test_all_items_together_are_an_axis_of_their_own_and_unscored_items_leave_every_cell() -> None:
    found = items(40) + items(40, "honesty")
    rows = planted(found, additive)
    rows[0] = replace(rows[0], value=None)
    whole = attribute(rows, found, GAME, NAMES, name="x", draws=50)
    assert whole.unscored == 1
    assert {e.axis: e.n for e in whole.total} == {ALL: 79, "facts": 39, "honesty": 40}
    by_axis = {e.axis: e.value for e in whole.total}
    assert by_axis[ALL] == pytest.approx((39 * by_axis["facts"] + 40 * by_axis["honesty"]) / 79)


def test_a_cell_that_was_not_measured_is_refused_by_name() -> None:
    found = items(4)
    with pytest.raises(DataError, match="not measured"):
        attribute(
            planted(found, additive),
            found,
            GAME,
            {k: v for k, v in NAMES.items() if k != GAME.full},
            name="x",
        )


def test_the_interval_of_a_wobbling_effect_is_near_the_cluster_robust_one() -> None:
    e = of(run(additive, wobble=0.2).shapley, "sft")
    assert e.low is not None
    assert e.high is not None
    half = (e.high - e.low) / 2
    assert e.detectable == pytest.approx(half / 1.97 * (1.98 + 0.845), rel=0.15)
    assert np.isfinite(half)


def test_an_effect_on_every_one_of_three_items_is_no_certainty() -> None:
    found = items(3)
    found = [replace(item, cluster=item.id) for item in found]
    e = of(
        attribute(planted(found, lambda on: float("prompt" in on)), found, GAME, NAMES, name="x").shapley,
        "prompt",
    )
    assert e.value == 1.0
    assert e.low is not None
    assert e.low < 0  # three items of three: the exact bound on unseen ones is 1 - 0.05^(1/3) = 63%, twice
    assert not e.shown
