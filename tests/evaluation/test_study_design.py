"""Exact rates, families of tests, study size: against scipy, closed forms, and simulations with stated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from demeanor.evaluation import statistics


@pytest.mark.parametrize(("x", "n"), [(0, 30), (3, 30), (15, 30), (30, 30), (1, 1000)])
def test_clopper_pearson_is_scipys_exact_interval(x: int, n: int) -> None:
    theirs = stats.binomtest(x, n).proportion_ci(method="exact")
    assert statistics.clopper_pearson(x, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("x", "n"), [(0, 30), (3, 30), (29, 30)])
def test_the_upper_bound_is_the_rate_that_makes_so_few_failures_a_five_percent_event(x: int, n: int) -> None:
    assert stats.binom.cdf(x, n, statistics.upper_bound(x, n)) == pytest.approx(0.05, abs=1e-9)
    assert statistics.upper_bound(n, n) == 1.0


def test_three_hundred_clean_trials_are_needed_for_one_percent() -> None:
    n = statistics.clean_trials_needed(0.01)
    assert n == 299
    assert statistics.zero_failures(n) <= 0.01 < statistics.zero_failures(n - 1)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 1), (10, 10), (0, 7), (13, 4)])
def test_mcnemar_exact_is_the_binomial_test_and_midp_is_smaller(b: int, c: int) -> None:
    exact = statistics.mcnemar_exact(b, c)
    assert exact == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0)
    assert statistics.mcnemar_midp(b, c) <= exact


def test_benjamini_hochberg_is_scipys() -> None:
    p = np.random.default_rng(0).random(23) ** 2
    assert statistics.benjamini_hochberg(p.tolist()) == pytest.approx(
        stats.false_discovery_control(p).tolist()
    )


def test_power_and_items_needed_are_inverse_and_give_the_published_sizes() -> None:
    for effect, published in ((0.10, 149), (0.05, 620), (0.02, 3916)):
        n = statistics.items_needed(effect, 0.2)
        assert abs(n - published) <= 2
        assert statistics.power_paired(effect, 0.2, n) == pytest.approx(0.8, abs=0.003)


def _paired_table(rng: np.random.Generator, runs: int, n: int, up: float, down: float) -> np.ndarray:
    """Differences in {-1, 0, 1} of n independent items, `runs` times."""
    u = rng.random((runs, n))
    return (u < up).astype(float) - (u > 1 - down)


def _rejects(d: np.ndarray) -> float:
    return float(np.mean([statistics.paired(np.zeros(len(x)), x, range(len(x))).p < 0.05 for x in d]))  # type: ignore[operator]


def test_an_a_a_comparison_is_significant_in_five_percent_of_runs() -> None:
    assert _rejects(_paired_table(np.random.default_rng(1), 3000, 200, 0.1, 0.1)) == pytest.approx(
        0.05, abs=0.01
    )


def test_a_clustered_a_a_comparison_stays_near_five_percent_where_the_naive_test_does_not() -> None:
    rng, robust, naive = np.random.default_rng(2), 0, 0
    clusters = np.repeat(np.arange(40), 10)
    for _ in range(4000):
        d = np.repeat(rng.normal(0, 0.2, 40), 10) + rng.normal(0, 0.2, 400)
        robust += statistics.paired(np.zeros(400), d, clusters).p < 0.05  # type: ignore[operator]
        naive += statistics.paired(np.zeros(400), d, range(400)).p < 0.05  # type: ignore[operator]
    assert robust / 4000 == pytest.approx(0.05, abs=0.01)
    assert naive / 4000 > 0.25


def test_measured_power_is_the_formulas_within_three_points() -> None:
    found = _rejects(_paired_table(np.random.default_rng(3), 3000, 200, 0.125, 0.075))
    assert found == pytest.approx(statistics.power_paired(0.05, 0.2, 200), abs=0.03)


def test_the_paired_interval_covers_the_truth_in_ninety_five_percent_of_runs() -> None:
    d = _paired_table(np.random.default_rng(4), 3000, 200, 0.15, 0.05)
    hits = [
        e.low <= 0.10 <= e.high
        for x in d
        if (e := statistics.paired(np.zeros(200), x, range(200))).low is not None
    ]  # type: ignore[operator]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("G", [12, 60])
def test_the_cluster_bootstrap_covers_the_truth_with_few_clusters_too(G: int) -> None:
    rng, hits = np.random.default_rng(5), 0
    for run in range(2500):
        x = np.repeat(rng.normal(0.3, 0.1, G), 4) + rng.normal(0, 0.1, 4 * G)
        sums = statistics.cluster_bootstrap(
            np.c_[x, np.ones(4 * G)], np.repeat(np.arange(G), 4), draws=400, seed=run
        )
        low, high = statistics.percentile(sums[:, 0] / sums[:, 1], statistics.expanded(G))
        hits += low <= 0.3 <= high
    assert hits / 2500 == pytest.approx(0.95, abs=0.01)


def test_non_inferiority_is_claimed_refused_and_left_open() -> None:
    rng = np.random.default_rng(6)
    same = statistics.paired(np.zeros(2000), _paired_table(rng, 1, 2000, 0.05, 0.05)[0], range(2000))
    worse = statistics.paired(np.zeros(2000), _paired_table(rng, 1, 2000, 0.02, 0.15)[0], range(2000))
    few = statistics.paired(np.zeros(40), _paired_table(rng, 1, 40, 0.1, 0.1)[0], range(40))
    assert statistics.above(same, -0.03).claim == "yes"
    assert statistics.above(worse, -0.03).claim == "no"
    left = statistics.above(few, -0.03)
    assert left.claim == "undecided"
    assert left.needed is not None
    assert left.needed > 40
    assert statistics.above(statistics.paired(np.zeros(3), np.ones(3), [1, 1, 1]), -0.03).claim == "undecided"


def test_at_the_margin_non_inferiority_is_claimed_in_five_percent_of_runs() -> None:
    d = _paired_table(np.random.default_rng(7), 3000, 300, 0.05, 0.10)
    claims = [statistics.above(statistics.paired(np.zeros(300), x, range(300)), -0.05).claim for x in d]
    assert claims.count("yes") / 3000 == pytest.approx(0.05, abs=0.01)


def test_the_clusters_needed_have_the_promised_power() -> None:
    pilot = statistics.Estimate(0.05, 0.0, 0.1, math.sqrt(0.1975 / 100), 0.1, 100, 100)
    assert statistics.clusters_needed(pilot, 0.05) == statistics.items_needed(0.05, 0.2)
    assert statistics.clusters_needed(pilot, 0.0) is None


def test_kappa_is_the_textbook_value_and_its_interval_covers() -> None:
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15  # 20, 5 / 10, 15: agreement .7, chance .5
    assert statistics.kappa(first, second)[0] == pytest.approx(0.4)
    assert math.isnan(statistics.kappa(["y"], ["y"])[0])
    rng, hits = np.random.default_rng(8), 0
    for _ in range(3000):
        truth = rng.random(200) < 0.5
        a, b = (np.where(rng.random(200) < 0.1, ~truth, truth) for _ in range(2))
        _, low, high = statistics.kappa(a.tolist(), b.tolist())
        hits += low <= 0.64 <= high  # agreement .82, chance .5
    assert hits / 3000 == pytest.approx(0.95, abs=0.01)
