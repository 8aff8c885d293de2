"""Every statistic against its closed form, a slow obvious twin, scipy, or a simulation where the truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from demeanor.core.intervals import wilson
from demeanor.evaluation import statistics


def test_with_one_item_per_cluster_the_paired_interval_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(40), rng.random(40)
    found = statistics.paired(before, after, range(40))
    theirs = scipy_stats.ttest_rel(after, before)
    interval = theirs.confidence_interval()
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_the_cluster_se_is_the_formula_written_out_slowly() -> None:
    rng = np.random.default_rng(1)
    d, clusters = rng.random(30), rng.integers(0, 7, 30)
    total = 0.0
    for g in set(clusters.tolist()):
        total += sum(d[i] - d.mean() for i in range(30) if clusters[i] == g) ** 2
    G = len(set(clusters.tolist()))
    assert statistics.cluster_se(d, clusters) == pytest.approx(math.sqrt(G / (G - 1) * total) / 30, rel=1e-12)


def test_copying_every_item_within_its_cluster_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.integers(0, 2, 24).astype(float), rng.integers(0, 2, 24).astype(float)
    once = statistics.paired(before, after, range(24))
    copied = statistics.paired(np.repeat(before, 10), np.repeat(after, 10), np.repeat(np.arange(24), 10))
    assert (copied.low, copied.high, copied.p) == pytest.approx((once.low, once.high, once.p), rel=1e-9)


def test_a_single_cluster_has_a_mean_and_no_interval() -> None:
    found = statistics.paired(np.zeros(5), np.ones(5), ["one"] * 5)
    assert found.value == 1.0
    assert (found.low, found.high, found.p) == (None, None, None)


def test_no_change_at_all_is_not_certainty() -> None:
    found = statistics.paired(np.ones(30), np.ones(30), range(30))
    u = 1 - 0.05 ** (1 / 30)
    assert (found.value, found.low, found.high, found.p) == pytest.approx((0.0, -u, u, 1.0))


def test_one_changed_item_never_makes_a_narrower_interval_than_none() -> None:
    changed = np.zeros(30)
    changed[0] = 1.0
    none, one = (statistics.paired(np.zeros(30), after, range(30)) for after in (np.zeros(30), changed))
    assert one.high is not None
    assert none.high is not None
    assert one.low is not None
    assert one.high - one.value >= none.high * (1 - one.value) - 1e-12
    assert one.low < 0


def test_a_change_in_every_item_is_bounded_by_what_the_items_cannot_exclude() -> None:
    found = statistics.paired(np.zeros(30), np.ones(30), range(30))
    assert found.low == pytest.approx(1 - 2 * (1 - 0.05 ** (1 / 30)))
    assert found.high == 1.0
    assert found.p is not None
    assert found.p < 1e-9


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 5)), min_size=4, max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_p_value_is_below_five_per_cent_exactly_where_the_interval_excludes_zero(
    changes: list[tuple[int, int]],
) -> None:
    d, clusters = np.array([c for c, _ in changes], dtype=float), [g for _, g in changes]
    found = statistics.paired(np.zeros(len(d)), d, clusters)
    if found.p is None or found.low is None or found.high is None:
        assert len(set(clusters)) == 1
    else:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize(
    ("per_cluster", "shared", "low", "high"), [(1, 0.0, 0.035, 0.065), (10, 0.7, 0.035, 0.075)]
)
def test_an_a_a_comparison_is_called_a_difference_in_five_of_a_hundred_runs(
    per_cluster: int, shared: float, low: float, high: float
) -> None:
    """C12: the same layer twice; 2,000 runs of 200 (or 20 clusters of 10) items, the naive test rejects 27-30% when clustered."""
    rng, runs, clusters = np.random.default_rng(3), 2000, 200 // per_cluster
    naive = rejected = 0
    index = np.repeat(np.arange(clusters), per_cluster)
    for _ in range(runs):
        lean = rng.normal(size=(2, clusters))[:, index] * math.sqrt(shared) + rng.normal(
            size=(2, 200)
        ) * math.sqrt(1 - shared)
        before, after = (lean > 0).astype(float)
        p = statistics.paired(before, after, index).p
        assert p is not None
        rejected += p < 0.05
        d = after - before
        naive += abs(d.mean()) > 1.96 * d.std(ddof=1) / math.sqrt(200)
    assert low < rejected / runs < high
    if per_cluster > 1:
        assert naive / runs > 0.2, "the simulation must be one that a naive test fails"


def test_the_interval_of_a_clustered_mean_covers_the_truth() -> None:
    rng, runs, covered = np.random.default_rng(4), 1000, 0
    index = np.repeat(np.arange(30), 5)
    for _ in range(runs):
        rates = rng.beta(4, 1, 30)  # mean 0.8, strongly clustered
        found = statistics.mean((rng.random(150) < rates[index]).astype(float), index)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.8 <= found.high
    assert 0.93 < covered / runs < 0.975


def test_with_independent_items_the_mean_is_wilsons() -> None:
    values = np.array([1.0] * 12 + [0.0] * 8)
    found = statistics.mean(values, range(20))
    # effective n: p(1-p)/SE^2 = 0.24 / (0.24 / 19) = 19, the sample variance's n-1
    assert (found.low, found.high) == pytest.approx(wilson(0.6 * 19, 19))


def test_a_perfect_score_over_few_clusters_keeps_a_wide_interval() -> None:
    found = statistics.mean(np.ones(100), np.repeat(np.arange(5), 20))
    assert found.low is not None
    assert found.low < 0.5, "five clusters, all right: 100 rows do not make it 96%"
    assert found.high == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "bound"), [(30, 0.095), (100, 0.030), (300, 0.010)])
def test_zero_failures_leave_the_bound_that_would_make_them_a_one_in_twenty_event(
    n: int, bound: float
) -> None:
    assert statistics.zero_failures(n) == pytest.approx(bound, abs=5e-4)
    assert (1 - statistics.zero_failures(n)) ** n == pytest.approx(0.05)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (3, 3), (9, 1), (1, 9), (0, 5), (25, 11)])
def test_mid_p_is_the_sum_over_outcomes_as_extreme_with_half_the_weight_of_the_tie(
    fixed: int, broken: int
) -> None:
    n = fixed + broken
    distance = abs(fixed - broken)
    total = 0.0
    for outcomes in range(n + 1):
        weight = math.comb(n, outcomes) / 2**n
        gap = abs(outcomes - (n - outcomes))
        total += weight if gap > distance else weight / 2 if gap == distance and distance > 0 else 0.0
    assert statistics.mcnemar_midp(fixed, broken) == pytest.approx(total if distance else 1.0)


def test_holm_is_the_textbook_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_holm_never_lowers_a_p_value_keeps_their_order_and_never_beats_bonferroni(p: list[float]) -> None:
    adjusted = statistics.holm(p)
    assert len(adjusted) == len(p)
    assert all(a >= x - 1e-12 for a, x in zip(adjusted, p))
    assert all(a <= min(1.0, len(p) * x) + 1e-12 or a <= max(adjusted) for a, x in zip(adjusted, p))
    for (x, a), (y, b) in itertools.combinations(zip(p, adjusted), 2):
        assert (x - y) * (a - b) >= 0


@pytest.mark.parametrize(("effect", "n"), [(0.10, 149.0), (0.05, 619.9), (0.02, 3916.5)])
def test_the_items_needed_are_those_of_the_power_formula(effect: float, n: float) -> None:
    """psi = 0.2, power 0.8: (1.95996 + 0.84162)^2 (0.2 - D^2) / D^2, rounded up to whole items."""
    assert statistics.items_needed(effect, 0.2) == pytest.approx(n + 0.6, abs=0.7)
    assert statistics.items_needed(effect, 0.2) == math.ceil(
        (1.959964 + 0.841621) ** 2 * (0.2 - effect**2) / effect**2
    )


def test_a_true_difference_of_the_minimal_detectable_size_is_found_four_times_in_five() -> None:
    rng, found, sizes = np.random.default_rng(5), 0, []
    before = np.zeros(120)
    for _ in range(300):
        sizes.append(
            statistics.minimal_detectable(statistics.paired(before, rng.normal(0, 0.2, 120), range(120)))
        )
    size = float(np.mean([s for s in sizes if s is not None]))
    for _ in range(1000):
        p = statistics.paired(before, rng.normal(size, 0.2, 120), range(120)).p
        found += p is not None and p < 0.05
    assert found / 1000 == pytest.approx(0.8, abs=0.04)


def test_the_bootstrap_of_a_mean_has_the_cluster_robust_standard_error() -> None:
    rng = np.random.default_rng(6)
    index = np.repeat(np.arange(40), 4)
    values = rng.normal(size=40)[index] + rng.normal(size=160)
    sums = statistics.cluster_bootstrap(np.stack([values, np.ones(160)], 1), index, draws=4000, seed=0)
    spread = float((sums[:, 0] / sums[:, 1]).std())
    robust = statistics.cluster_se(values, index)
    assert robust is not None
    assert spread == pytest.approx(robust * math.sqrt(39 / 40), rel=0.05)


def test_the_bootstrap_keeps_all_cells_of_an_item_together() -> None:
    rng = np.random.default_rng(7)
    values = rng.random(50)
    sums = statistics.cluster_bootstrap(
        np.stack([values, values + 0.25, np.ones(50)], 1), range(50), draws=200, seed=1
    )
    gain = (sums[:, 1] - sums[:, 0]) / sums[:, 2]
    assert np.ptp(gain) < 1e-12, "a constant gain has no bootstrap spread when the pairs stay together"
    assert gain[0] == pytest.approx(0.25)


def test_the_same_seed_draws_the_same_resamples() -> None:
    columns = np.arange(20.0).reshape(10, 2)
    one, two, other = (statistics.cluster_bootstrap(columns, range(10), draws=5, seed=s) for s in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()


def test_d_prime_is_the_distance_of_two_normals_and_the_criterion_their_threshold() -> None:
    many = 1e9
    hit, false = (1 - scipy_stats.norm.cdf(0.3 - shift) for shift in (1.5, 0.0))
    d, c = statistics.discrimination(
        np.array(hit * many), np.array(many), np.array(false * many), np.array(many)
    )
    assert float(d) == pytest.approx(1.5, abs=1e-6)
    assert float(c) == pytest.approx(0.3 - 0.75, abs=1e-6)


def test_d_prime_of_perfect_answers_is_finite() -> None:
    d, _ = statistics.discrimination(np.array(20.0), np.array(20.0), np.array(0.0), np.array(20.0))
    assert float(d) == pytest.approx(2 * scipy_stats.norm.ppf(20.5 / 21))


def test_the_expanded_percentile_of_five_clusters_is_the_level_of_the_wider_t_quantile() -> None:
    # t(4, .975) = 2.776445; sqrt(5 / 4) x 2.776445 = 3.104160; 2 Phi(3.104160) - 1
    assert statistics.expanded(5) == pytest.approx(math.erf(3.104160 / math.sqrt(2)), abs=1e-8)
    assert statistics.expanded(5) == pytest.approx(0.998092, abs=1e-6)
    assert statistics.expanded(10_000) == pytest.approx(0.95, abs=1e-4)


def test_a_percentile_interval_leaves_half_of_the_rest_on_each_side() -> None:
    values = np.append(np.arange(1001.0), np.nan)
    assert statistics.percentile(values) == pytest.approx((25.0, 975.0))
    assert statistics.percentile(values, 0.8) == pytest.approx((100.0, 900.0))
