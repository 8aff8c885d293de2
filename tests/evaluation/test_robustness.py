"""Rewordings: hand-counted tables, holes, seeds, clusters, and wordings that change nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation import suites
from demeanor.evaluation.gate import Rules, decide
from demeanor.evaluation.items import load_suite
from demeanor.evaluation.profile import robustness
from demeanor.evaluation.result import Robustness
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.statistics import clopper_pearson
from tests.evaluation import synthetic

WORDINGS = ("plain", "terse", "typos")
Table = dict[str, tuple[float | None, ...]]
#                            plain terse typos
TABLE: Table = {
    "moon": (1.0, 1.0, 1.0),
    "tides": (1.0, 0.0, 1.0),
    "quay": (0.0, 0.0, 0.0),
    "fare": (1.0, 1.0, 0.0),
    "lamp": (1.0, 1.0, 1.0),
}


def item(group: str, wording: str | None, *, cluster: str | None = None, axis: str = "stability") -> Item:
    tags = (f"same:{group}", *((f"wording:{wording}",) if wording else ()))
    return Item(
        f"{axis}-{group}-{wording}",
        (Message("user", "?"),),
        "exact",
        {"answers": ["x"]},
        axis,
        cluster or group,
        None,
        tags,
    )


def row(of: Item, value: float | None, seed: int = 0, variant: str = "v") -> Row:
    return replace(synthetic.row(of, variant, 0.0, layers=0, draw=random.Random(0)), value=value, seed=seed)


def measured(table: Table, *, clusters: dict[str, str] | None = None) -> Robustness:
    items = [item(g, w, cluster=(clusters or {}).get(g)) for g in table for w in WORDINGS]
    values = [v for g in table for v in table[g]]
    (found,) = robustness(PairedTable([row(i, v) for i, v in zip(items, values, strict=True)], items), "v")
    return found


def test_a_table_counted_by_hand() -> None:
    found = measured(TABLE)
    assert (found.axis, found.variant, found.groups, found.clusters, found.unscored) == (
        "stability",
        "v",
        5,
        5,
        0,
    )
    assert found.mean == pytest.approx(10 / 15)
    assert (found.worst, found.best) == (pytest.approx(2 / 5), pytest.approx(4 / 5))
    assert found.wordings == {
        "plain": pytest.approx(4 / 5),
        "terse": pytest.approx(3 / 5),
        "typos": pytest.approx(3 / 5),
    }
    assert found.spread == pytest.approx(1 / 5)
    assert (found.flip_rate, found.flipped) == (pytest.approx(2 / 5), ("tides", "fare"))
    assert found.drop == pytest.approx(1 - (6 / 10) / (4 / 5))
    exact = stats.binomtest(2, 5).proportion_ci(method="exact")
    assert (found.flip_low, found.flip_high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_always_wrong_is_steady_and_has_no_drop() -> None:
    found = measured(dict.fromkeys(TABLE, (0.0, 0.0, 0.0)))
    assert (found.mean, found.worst, found.best, found.spread, found.flip_rate, found.drop) == (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        None,
    )
    assert (found.flip_low, found.flip_high) == clopper_pearson(0, 5)


def test_rewordings_that_do_better_are_a_negative_drop() -> None:
    assert measured({"moon": (1.0, 1.0, 1.0), "tides": (0.0, 1.0, 1.0)}).drop == pytest.approx(-1.0)


def test_a_group_with_an_unscored_wording_is_counted_apart() -> None:
    found = measured(TABLE | {"moon": (1.0, None, 1.0)})
    assert (found.groups, found.unscored, found.worst) == (4, 1, pytest.approx(1 / 4))
    nothing = measured({"moon": (1.0, None, 1.0)})
    assert (
        nothing.groups,
        nothing.unscored,
        nothing.mean,
        nothing.flip_rate,
        nothing.spread,
        nothing.drop,
    ) == (0, 1, None, None, None, None)
    assert (nothing.flip_low, nothing.flip_high) == (None, None)


def test_a_wording_without_rows_is_unscored() -> None:
    items = [item("moon", w) for w in WORDINGS]
    (found,) = robustness(PairedTable([row(i, 1.0) for i in items[:2]], items), "v")
    assert (found.groups, found.unscored) == (0, 1)


def test_a_value_is_the_mean_over_seeds() -> None:
    items = [item("moon", w) for w in WORDINGS]
    seeds = {"plain": (1.0, 1.0), "terse": (1.0, 0.0), "typos": (0.0, 0.0)}
    (found,) = robustness(
        PairedTable([row(i, v, n) for i, w in zip(items, WORDINGS) for n, v in enumerate(seeds[w])], items),
        "v",
    )
    assert (found.groups, found.mean, found.worst, found.best, found.flip_rate) == (
        1,
        pytest.approx(0.5),
        0.0,
        1.0,
        1.0,
    )
    assert found.drop == pytest.approx(1 - 0.25 / 1.0)


def test_wordings_are_compared_on_the_same_questions() -> None:
    """The hard question lacks the terse wording: it must not make `plain` look worse than `terse`."""
    items = [item("easy", "plain"), item("easy", "terse"), item("hard", "plain"), item("hard", None)]
    (found,) = robustness(PairedTable([row(i, v) for i, v in zip(items, (1.0, 1.0, 0.0, 0.0))], items), "v")
    assert (found.wordings, found.spread, found.drop) == ({"plain": 1.0, "terse": 1.0}, 0.0, 0.0)


def test_without_wording_tags_there_is_neither_spread_nor_drop() -> None:
    items = [replace(item("moon", w), tags=("same:moon",)) for w in WORDINGS]
    (found,) = robustness(PairedTable([row(i, v) for i, v in zip(items, (1.0, 0.0, 1.0))], items), "v")
    assert (found.wordings, found.spread, found.drop, found.flip_rate) == ({}, None, None, 1.0)


def test_groups_of_one_cluster_are_one_trial() -> None:
    table: Table = {f"q{n}": (1.0, float(n % 2), 1.0) for n in range(20)}
    apart, together = (
        measured(table),
        measured(table, clusters={f"q{n}": f"text-{n // 2}" for n in range(20)}),
    )
    assert apart.flip_rate == together.flip_rate == 0.5
    assert (apart.flip_low, apart.flip_high) == clopper_pearson(10, 20)
    assert (together.flip_low, together.flip_high, together.clusters) == (*clopper_pearson(5, 10), 10)


def test_every_axis_with_groups_is_told_and_only_those() -> None:
    items = [
        *(item("moon", w, axis=axis) for axis in ("stability", "facts") for w in WORDINGS),
        item("alone", "plain", axis="lonely"),
        replace(item("untagged", None, axis="bare"), tags=()),
    ]
    found = robustness(PairedTable([row(i, 1.0, variant=v) for i in items for v in ("v", "w")], items), "w")
    assert [(s.axis, s.variant, s.groups) for s in found] == [("stability", "w", 1), ("facts", "w", 1)]


def test_a_variant_never_run_is_named() -> None:
    items = [item("moon", w) for w in WORDINGS]
    with pytest.raises(DataError, match="nobody has no rows"):
        robustness(PairedTable([row(i, 1.0) for i in items], items), "nobody")


@given(
    st.lists(
        st.lists(st.sampled_from((0.0, 0.1, 1 / 3, 0.7, 1.0)), min_size=1, max_size=4),
        min_size=1,
        max_size=12,
    )
)
def test_a_wording_that_changes_nothing_changes_nothing(answers: list[list[float]]) -> None:
    """The same text answered greedily: the same values, whatever they are, also over seeds."""
    items = [item(f"q{n}", w) for n in range(len(answers)) for w in WORDINGS]
    rows = [
        row(i, v, seed) for n, i in enumerate(items) for seed, v in enumerate(answers[n // len(WORDINGS)])
    ]
    (found,) = robustness(PairedTable(rows, items), "v")
    assert (found.flip_rate, found.flipped, found.spread) == (0.0, (), 0.0)
    assert found.flip_low == (0.0 if len(answers) > 1 else None)
    assert found.drop == 0.0 or (found.drop is None and found.mean == 0.0)
    assert found.worst == found.best


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.tuples(*[st.sampled_from((0.0, 1.0))] * 3),
        min_size=1,
        max_size=15,
    )
)
def test_the_bounds_hold_and_the_gate_counts_the_same(table: dict[str, tuple[float, ...]]) -> None:
    found = measured({k: tuple(v) for k, v in table.items()})
    assert found.mean is not None
    assert found.worst is not None
    assert found.best is not None
    assert found.flip_rate is not None
    assert found.worst - 1e-9 <= found.mean <= found.best + 1e-9
    assert found.flip_rate == pytest.approx(found.best - found.worst)  # of values 0 and 1
    if len(table) > 1:
        assert found.flip_low is not None
        assert found.flip_high is not None
        assert found.flip_low <= found.flip_rate <= found.flip_high
        assert found.flip_low < found.flip_high
    else:
        assert (found.flip_low, found.flip_high) == (None, None)
    items = [item(g, w) for g in table for w in WORDINGS]
    rows = [
        row(i, v, variant=variant)
        for variant in ("v", "old")
        for i, v in zip(items, [v for g in table for v in table[g]], strict=True)
    ]
    rules = Rules.model_validate({"stability": [{"axis": "stability", "flip_rate": 0.5}]})
    (finding,) = decide(rules, items, rows, candidate="v", baseline="old").findings
    assert (finding.value, finding.n) == (pytest.approx(found.flip_rate), found.groups)


def test_the_interval_covers_what_it_promises() -> None:
    draw, rate, inside = np.random.default_rng(0), 0.2, 0
    for _ in range(200):
        low, high = _flips(draw.random(30) < rate)
        inside += low <= rate <= high
    assert inside >= 0.93 * 200


def _flips(flipped: np.ndarray) -> tuple[float, float]:
    found = measured({f"q{n}": (1.0, 1.0 - float(x), 1.0) for n, x in enumerate(flipped)})
    assert found.flip_low is not None
    assert found.flip_high is not None
    return found.flip_low, found.flip_high


def test_the_built_in_suite_has_every_wording_of_every_question() -> None:
    items = load_suite(suites.path("stability"))
    (found,) = robustness(PairedTable([row(i, float("typos" not in i.id)) for i in items], items), "v")
    assert (found.groups, found.clusters, found.unscored) == (60, 60, 0)
    assert found.wordings == {"plain": 1.0, "polite": 1.0, "terse": 1.0, "typos": 0.0, "context": 1.0}
    assert (found.flip_rate, found.worst, found.best, found.drop) == (1.0, 0.0, 1.0, pytest.approx(0.25))
    assert all(
        len({str(dict(i.target)) for i in items if i.cluster == c}) == 1 for c in {i.cluster for i in items}
    )
