"""Agreement: Krippendorff's own example, Fleiss' own formula by hand, slow twins over pairs, and intervals that hold in simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from demeanor.core.errors import DataError
from demeanor.core.intervals import wilson
from demeanor.evaluation.agreement import Agreement, alpha, fleiss
from demeanor.evaluation.judge_validation import accuracy, position
from demeanor.evaluation.statistics import Estimate, Floats

_ = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", C: four observers, twelve units, missing data
PUBLISHED_RN = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


def bounds(found: Agreement | Estimate) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def slow_alpha(ratings_NR: Floats, level: str) -> float:
    """Alpha by the definition: every pair of ratings of a unit against every pair of all pairable ratings."""
    units = [[x for x in row if not np.isnan(x)] for row in ratings_NR]
    units = [u for u in units if len(u) >= 2]
    every = [x for u in units for x in u]

    def apart(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return float((a - b) ** 2)
        low, high = min(a, b), max(a, b)
        between = sum(low <= x <= high for x in every)
        return float(
            (between - (every.count(a) + every.count(b)) / 2) ** 2
        )  # Krippendorff's sum of marginals, as printed

    observed = sum(apart(a, b) / (len(u) - 1) for u in units for a, b in itertools.permutations(u, 2))
    expected = sum(apart(a, b) for a, b in itertools.permutations(every, 2)) / (len(every) - 1)
    return 1 - observed / expected


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_krippendorffs_published_number(level: str, published: float) -> None:
    found = alpha(PUBLISHED_RN.T, range(12), level=level)  # type: ignore[arg-type]
    assert found.value == pytest.approx(published, abs=5e-4)
    assert (found.units, found.ratings) == (11, 40), "the unit with one rating has nothing to agree with"
    low, high = bounds(found)
    assert low < published < high


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_its_definition_over_pairs_on_random_ratings_with_holes(level: str) -> None:
    rng = np.random.default_rng(3)
    for _n in range(5):
        ratings = rng.integers(1, 6, size=(14, 4)).astype(float)
        ratings[rng.random(ratings.shape) < 0.3] = np.nan
        assert alpha(ratings, range(14), level=level, draws=2).value == pytest.approx(
            slow_alpha(ratings, level), abs=1e-12
        )  # type: ignore[arg-type]


def test_alpha_is_one_for_agreement_and_undefined_where_nothing_varies() -> None:
    same = np.tile(np.arange(6.0)[:, None], (1, 3))
    assert alpha(same, range(6), level="interval").value == pytest.approx(1)
    assert alpha(np.ones((6, 3)), range(6), level="nominal")[:3] == (None, None, None)
    assert alpha(np.full((6, 3), np.nan), range(6), level="nominal")[:4] == (None, None, None, 0)
    assert alpha(PUBLISHED_RN.T, ["one"] * 12, level="nominal").low is None, "one cluster allows no interval"


def test_interval_alpha_does_not_depend_on_zero_and_unit_and_ordinal_not_on_distances() -> None:
    base = PUBLISHED_RN.T
    assert alpha(1e6 + 50 * base, range(12), level="interval", draws=2).value == pytest.approx(
        0.849, abs=5e-4
    )
    assert alpha(np.exp(base), range(12), level="ordinal", draws=2).value == pytest.approx(0.815, abs=5e-4)


def test_fleiss_is_the_formula_by_hand() -> None:
    # 4 units, 3 raters, two values; counts (3,0), (2,1), (1,2), (0,3): P_i = 1, 1/3, 1/3, 1; P = 2/3; P_e = 1/2; kappa = 1/3
    ratings = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=float)
    assert fleiss(ratings, range(4)).value == pytest.approx(1 / 3)


def test_fleiss_and_nominal_alpha_differ_by_the_small_sample_term_only() -> None:
    # without holes 1 - alpha = (1 - kappa) (n - 1) / n over n ratings (Krippendorff 2004)
    ratings = np.random.default_rng(1).integers(0, 3, size=(20, 2)).astype(float)
    kappa, nominal = fleiss(ratings, range(20)).value, alpha(ratings, range(20), level="nominal").value
    assert kappa is not None
    assert nominal is not None
    assert 1 - nominal == pytest.approx((1 - kappa) * (40 - 1) / 40)


def test_fleiss_refuses_holes() -> None:
    with pytest.raises(DataError, match="none missing"):
        fleiss(PUBLISHED_RN.T, range(12))


def test_the_interval_of_alpha_holds_the_truth_and_clusters_widen_it() -> None:
    """Two raters of equally frequent binary values agree with probability 0.8: alpha is 1 - 0.2 / 0.5 = 0.6."""
    rng, inside, widths = np.random.default_rng(0), 0, []
    for _n in range(120):
        truth = rng.integers(0, 2, size=80)
        other = np.where(rng.random(80) < 0.8, truth, 1 - truth)
        low, high = bounds(
            alpha(np.stack([truth, other], axis=1).astype(float), range(80), level="nominal", draws=300)
        )
        inside += low <= 0.6 <= high
        widths.append(high - low)
    assert 0.88 <= inside / 120 <= 0.995
    # the same 80 units four times over tell no more than once; taken for 320 they would
    four = np.repeat(np.stack([truth, other], axis=1).astype(float), 4, axis=0)
    honest, naive = (
        float(np.ptp(bounds(alpha(four, c, level="nominal", draws=300))))
        for c in (np.repeat(range(80), 4), range(320))
    )
    assert honest == pytest.approx(widths[-1], rel=0.1)
    assert naive < 0.6 * widths[-1]


def test_a_judge_that_follows_the_place_is_seen_and_one_that_follows_the_answer_is_not() -> None:
    # ten pairs; first answer better in all. Pairs 0-5: right in both orders; 6-8: always the first; 9: always the second
    forward = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], dtype=float)
    swapped = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0], dtype=float)
    found = position(forward, swapped, range(10))
    assert [e.value for e in (found.consistent, found.follows, found.first, found.second)] == pytest.approx(
        [0.6, 0.4, 0.3, 0.1]
    )
    # Wilson at the effective n of a cluster-robust variance with G/(G-1): 0.4 x 0.6 / (0.4 x 0.6 / 9) = 9
    assert (found.follows.low, found.follows.high) == pytest.approx(wilson(0.4 * 9, 9))
    assert found.p == pytest.approx(2 * (0.5**4 + 4 * 0.5**4)), "3 against 1: 2 P(Bin(4, 1/2) <= 1)"
    honest = position(np.ones(10), np.zeros(10), range(10))
    assert (honest.follows.value, honest.p) == (0, 1)
    assert bounds(honest.follows)[1] > 0.2, "ten pairs exclude little"


def test_a_coin_follows_the_place_half_the_time_and_its_interval_holds_that() -> None:
    rng, inside = np.random.default_rng(5), 0
    for _n in range(200):
        forward, swapped = rng.integers(0, 2, size=(2, 100)).astype(float)
        low, high = bounds(position(forward, swapped, range(100)).follows)
        inside += low <= 0.5 <= high
    assert 0.9 <= inside / 200 <= 0.99


def test_accuracy_counts_two_orders_of_a_pair_as_one_pair() -> None:
    people, verdicts = np.array([1, 0] * 20, dtype=float), np.array([1, 0, 1, 0, 0, 1, 1, 0] * 5, dtype=float)
    pairs = accuracy(verdicts, people, np.repeat(range(20), 2))
    lone = accuracy(verdicts, people, range(40))
    assert pairs.value == lone.value == 0.75
    assert bounds(pairs)[0] < bounds(lone)[0], "both orders of a pair are right or wrong together here"
