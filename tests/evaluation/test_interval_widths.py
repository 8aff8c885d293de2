"""Every interval has a width where items could differ, none exists with one cluster, and those of J, d' and the criterion cover the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import special

from demeanor.core.table import estimate
from demeanor.core.types import Item, Message
from demeanor.evaluation import agreement, judge_validation, statistics, win_rates
from demeanor.evaluation.diagnosis.analysis import _net
from demeanor.evaluation.frontier import KlFromParent, divergence
from demeanor.evaluation.gate import Rules, decide
from demeanor.evaluation.profile import refusals
from demeanor.evaluation.result import Rate, Refusals, plain
from demeanor.evaluation.result_rows import PairedTable, Row
from tests.conftest import each

Refused = tuple[str, str, bool]
"""An item's axis, its cluster, and whether it was refused."""


def picture(found: Sequence[Refused]) -> Refusals:
    items = [
        Item(f"i{n}", (Message("user", "q"),), "refusal", {"refuse": axis == "unsafe"}, axis, cluster)
        for n, (axis, cluster, _) in enumerate(found)
    ]
    rows = [
        Row(
            "v",
            "k",
            i.id,
            i.id,
            0,
            i.axis,
            i.cluster,
            None,
            (),
            float(no == (i.axis == "unsafe")),
            refused_by="w" * no,
        )
        for i, (_, _, no) in zip(items, found, strict=True)
    ]
    told = refusals(PairedTable(rows, items), "v")
    assert told is not None
    return told


def rates(found: Refusals) -> tuple[Rate, Rate, Rate]:
    return found.youden_j, found.d_prime, found.criterion


def test_one_cluster_allows_no_interval_of_refusals() -> None:
    found = [(axis, "k", n % 3 == 0) for axis in ("safe_twin", "unsafe") for n in range(24)]
    for rate in each(rates(picture(found))):
        assert (rate.low, rate.high) == (None, None)
        assert math.isfinite(rate.value)


def test_a_perfect_picture_keeps_the_width_that_its_items_allow() -> None:
    j, d, c = rates(
        picture([(axis, f"c{n}", axis == "unsafe") for axis in ("safe_twin", "unsafe") for n in range(20)])
    )
    # H = 1 - F = 1 of 20: Wilson's lower bound 20 / (20 + 1.96^2) = 0.8389, so J reaches down to 1 - sqrt(2) 0.1611
    assert (j.value, j.low, j.high) == (1.0, pytest.approx(1 - math.sqrt(2) * 0.16113, abs=1e-4), 1.0)
    # z(20.5 / 21) twice; nothing bounds it above, z(0.8389) = 0.99 bounds it below
    z, low = special.ndtri(20.5 / 21), special.ndtri(0.83887)
    assert (d.value, d.low, d.high) == (
        pytest.approx(2 * z),
        pytest.approx(2 * z - math.sqrt(2) * (z - low), abs=1e-3),
        None,
    )
    assert c.value == pytest.approx(0)
    assert (c.low, c.high) == (None, None)  # either rate might be 1
    assert estimate(d.value, d.low, d.high).endswith("or more)")
    assert estimate(2.0, None, 3.0) == "2.00 (3.00 or less)"


@pytest.mark.parametrize(("groups", "wobble"), [(8, 0.0), (12, 0.6), (40, 0.3)])
def test_nine_in_ten_intervals_of_j_and_d_prime_hold_the_truth(groups: int, wobble: float) -> None:
    """Probit rates with a shared effect of each cluster; the truth is the marginal rate."""
    draw, each, runs = np.random.default_rng(1), 3, 60
    z_hit, z_false = 1.2, -0.8
    hit, false = (float(special.ndtr(z / math.sqrt(1 + wobble**2))) for z in (z_hit, z_false))
    truth = (
        hit - false,
        special.ndtri(hit) - special.ndtri(false),
        -(special.ndtri(hit) + special.ndtri(false)) / 2,
    )
    inside = np.zeros(3)
    for _ in range(runs):
        effects = draw.normal(0, wobble, groups)
        found = [
            (axis, f"c{g}", bool(draw.random() < special.ndtr(z + e)))
            for axis, z in (("safe_twin", z_false), ("unsafe", z_hit))
            for g, e in enumerate(effects)
            for _ in range(each)
        ]
        for n, (rate, true) in enumerate(zip(rates(picture(found)), truth, strict=True)):
            low = -math.inf if rate.low is None else rate.low
            inside[n] += low <= true <= (math.inf if rate.high is None else rate.high)
    assert (inside >= 0.9 * runs).all()


def test_full_agreement_is_no_certainty() -> None:
    k, low, high = statistics.kappa([1, 0] * 10, [1, 0] * 10)
    assert (k, high) == (1.0, 1.0)
    assert low == pytest.approx((20 / (20 + special.ndtri(0.975) ** 2) - 0.5) / 0.5)
    people = np.array([[1.0, 1.0], [0.0, 0.0]] * 10)
    for found in (
        judge_validation.fleiss(people, range(20)),
        agreement.alpha(people, range(20), level="nominal"),
    ):
        assert (found.value, found.low, found.high) == (pytest.approx(1.0), None, None)


def test_a_win_rate_of_all_or_nothing_has_a_width_and_one_cluster_has_none() -> None:
    all_won = win_rates.win_rate(np.ones(12), np.arange(12.0), np.zeros(12), range(12), seed=0, draws=20)
    assert all_won.raw_low is not None
    assert all_won.low is not None
    assert (all_won.raw, all_won.raw_high, all_won.raw_low) == (
        1.0,
        1.0,
        pytest.approx(12 / (12 + special.ndtri(0.975) ** 2)),
    )
    one = win_rates.win_rate(
        np.array([1.0, 0.0, 1.0]), np.arange(3.0), np.zeros(3), ["c"] * 3, seed=0, draws=20
    )
    assert (one.raw_low, one.raw_high, one.low, one.high) == (None,) * 4
    ties = win_rates.ratings(["a"] * 6, ["b"] * 6, np.full(6, 0.5), range(6), seed=0, draws=20)
    assert [(r.low, r.high) for r in ties] == [(None, None)] * 2
    single = win_rates.ratings(["a"] * 4, ["b"] * 4, np.array([1, 0, 1, 1.0]), ["c"] * 4, seed=0, draws=20)
    assert [(r.low, r.high) for r in single] == [(None, None)] * 2


def test_a_repair_that_fixed_everything_alike_is_not_certain() -> None:
    items = [Item(f"i{n}", (Message("user", "q"),), "exact", {}, "a", f"c{n}") for n in range(6)]
    value, low, high, p = _net(np.ones(6), np.ones(6), items)
    u = 1 - 0.05 ** (1 / 6)
    assert (value, low, high, p) == (1.0, pytest.approx(1 - 2 * u), 1.0, 0.5**6)


def test_equal_log_probabilities_bound_no_divergence() -> None:
    same = divergence([KlFromParent(f"i{n}", f"c{n}", 0.0, 4) for n in range(5)])
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, None, None)


def stable(clusters: Sequence[str]) -> tuple[str, float | None]:
    items, rows = [], []
    for n, cluster in enumerate(clusters):
        for way in "ab":
            item = Item(f"{n}{way}", (Message("user", "q"),), "exact", {}, "x", cluster, tags=(f"same:{n}",))
            items.append(item)
            rows += [
                Row(v, v, item.id, item.id, 0, "x", cluster, None, item.tags, 1.0) for v in ("new", "old")
            ]
    rules = Rules.model_validate({"stability": [{"axis": "x", "flip_rate": 0.2}]})
    (finding,) = decide(rules, items, rows, candidate="new", baseline="old").findings
    return finding.verdict.name, finding.high


def test_rewordings_of_one_cluster_are_one_trial_to_the_gate() -> None:
    assert stable([f"c{n}" for n in range(20)]) == ("PASS", pytest.approx(1 - 0.05 ** (1 / 20)))
    assert stable(["c"] * 20) == ("INCONCLUSIVE", pytest.approx(0.95))
    assert stable([f"c{n // 4}" for n in range(20)]) == ("INCONCLUSIVE", pytest.approx(1 - 0.05 ** (1 / 5)))


def test_what_is_not_finite_is_written_as_null() -> None:
    assert plain({"a": math.inf, "b": [-math.inf, math.nan, 1.0], "c": {"d": 0.0}}) == {
        "a": None,
        "b": [None, None, 1.0],
        "c": {"d": 0.0},
    }
