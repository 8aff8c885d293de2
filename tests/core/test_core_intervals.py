"""Wilson's interval: its own equation, scipy's numbers, the ends."""

from __future__ import annotations

import math

import pytest
from scipy import stats as scipy_stats

from demeanor.core.intervals import wilson

Z95 = 1.959963984540054


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 17), (40, 40), (7, 300)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    theirs = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_solves_its_own_equation_and_is_sound_at_the_ends() -> None:
    low, high = wilson(0.3 * 50, 50)
    for edge in (low, high):  # the interval is where |mean - p| = z * sqrt(p (1 - p) / n)
        assert abs(0.3 - edge) == pytest.approx(Z95 * math.sqrt(edge * (1 - edge) / 50))
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(20 / (20 + Z95**2))


def test_a_wider_quantile_gives_a_wider_interval() -> None:
    (low, high), (lower, higher) = wilson(3, 9), wilson(3, 9, quantile=2.306)
    assert lower < low < high < higher
