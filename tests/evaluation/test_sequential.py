"""Sequential tests: the closed form is the mixture's integral, size and coverage hold at every look, power is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

from demeanor.evaluation import sequential
from demeanor.evaluation.sequential import Mixture

ALPHA = 0.05


def integral(mixture: Mixture, s: float, v: float) -> float:
    """The mixture of exp(l s - psi(l) v), psi(l) = (-log(1 - c l) - c l) / c^2, over u = 1 - c l ~ gamma truncated to (0, 1]."""
    c, rate = mixture.scale, mixture.rho / mixture.scale**2
    weight = integrate.quad(lambda u: u ** (rate - 1) * math.exp(-u * rate), 0, 1)[0]

    def inside(u: float) -> float:
        gain = (1 - u) / c * s - v * (-math.log(u) - (1 - u)) / c**2
        return math.exp(gain) * u ** (rate - 1) * math.exp(-u * rate)

    return float(integrate.quad(inside, 0, 1)[0]) / weight


@pytest.mark.parametrize(("s", "v"), [(3.0, 10.0), (-3.0, 10.0), (40.0, 300.0), (100.0, 900.0), (0.0, 0.0)])
@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
def test_the_closed_form_is_the_integral_of_the_mixture(s: float, v: float, scale: float) -> None:
    mixture = Mixture(scale, 500.0, ALPHA / 2)
    assert float(mixture.log_value(s, v)) == pytest.approx(math.log(integral(mixture, s, v)), abs=1e-5)


def test_the_radius_is_where_the_mixture_reaches_its_bound() -> None:
    mixture = Mixture(2.0, 500.0, ALPHA / 2)
    assert float(mixture.log_value(mixture.radius(77.0), 77.0)) == pytest.approx(math.log(2 / ALPHA))


def test_one_step_of_the_mixture_is_a_supermartingale_for_the_most_lopsided_value() -> None:
    """E[exp(l x - psi(l) x^2)] <= 1 for a mean of zero and x >= -c: here of two points, -c and far above."""
    mixture = Mixture(2.0, 500.0, ALPHA / 2)
    low, high = -2.0, 18.0
    chance = -low / (high - low)
    expected = chance * math.exp(float(mixture.log_value(high, high**2))) + (1 - chance) * math.exp(
        float(mixture.log_value(low, low**2))
    )
    assert expected <= 1.0


def test_deviations_are_unbiased_whatever_the_centre() -> None:
    """Over all assignments of four users the mean deviation is the mean effect: 2^4 assignments of probability p^k (1-p)^(4-k)."""
    share, control, treated = 0.3, np.array([0.1, 0.9, 0.4, 0.0]), np.array([0.6, 1.0, 0.2, 0.5])
    total = np.zeros(4)
    for code in range(16):
        chosen = np.array([bool(code >> i & 1) for i in range(4)])
        weight = share ** chosen.sum() * (1 - share) ** (~chosen).sum()
        total += weight * sequential.deviations(np.where(chosen, treated, control), chosen, share)
    assert total == pytest.approx(treated - control)


def draws(
    rng: np.random.Generator, n: int, control: float, treated: float, share: float = 0.5
) -> tuple[list[float], list[bool]]:
    chosen = rng.random(n) < share
    values = (rng.random(n) < np.where(chosen, treated, control)).astype(float)
    return values.tolist(), chosen.tolist()


@pytest.mark.parametrize(("rate", "share"), [(0.5, 0.5), (0.05, 0.5), (0.3, 0.1)])
def test_looked_at_after_every_user_no_difference_is_named_in_more_than_5_of_100_tests(
    rate: float, share: float
) -> None:
    """400 tests of 2,000 users without an effect, every one looked at 2,000 times (seed 0)."""
    rng = np.random.default_rng(0)
    found = [sequential.compare(*draws(rng, 2000, rate, rate, share), share) for _ in range(400)]
    named = sum(c.decided_at is not None for c in found)
    assert named <= 400 * ALPHA


def test_a_fixed_sample_test_looked_at_as_often_would_be_wrong_far_more_often() -> None:
    """The reason for all this: a z test at 5% looked at from user 50 on, in the same world."""
    rng, named = np.random.default_rng(0), 0
    for _ in range(400):
        values, chosen = (np.array(x) for x in draws(rng, 2000, 0.5, 0.5))
        n1, n0 = np.cumsum(chosen), np.cumsum(~chosen)
        p1, p0 = np.cumsum(values * chosen) / n1.clip(1), np.cumsum(values * ~chosen) / n0.clip(1)
        pooled = np.cumsum(values) / np.arange(1, 2001)
        se = np.sqrt(pooled * (1 - pooled) * (1 / n1.clip(1) + 1 / n0.clip(1))).clip(1e-9)
        named += bool((np.abs(p1 - p0) / se > 1.96)[50:].any())
    assert named > 400 * 0.2


def test_an_effect_is_found_and_the_interval_covers_it_at_every_look() -> None:
    """0.5 against 0.6: a fixed test needs about 776 users for 80% power; half of the tests are decided by 1,000 here (seed 1)."""
    rng = np.random.default_rng(1)
    found = [sequential.compare(*draws(rng, 3000, 0.5, 0.6), 0.5) for _ in range(100)]
    decided = sorted(c.decided_at for c in found if c.decided_at is not None)
    assert len(decided) >= 95
    assert decided[len(decided) // 2] <= 1000
    assert {c.sign for c in found if c.decided_at is not None} == {1}
    assert sum(not c.difference.low <= 0.1 <= c.difference.high for c in found) <= 5


def test_continuous_scores_are_compared_too() -> None:
    rng = np.random.default_rng(2)
    chosen = rng.random(3000) < 0.5
    values = rng.beta(4, 8, 3000) + np.where(chosen, 0.05, 0.0)
    found = sequential.compare(values.tolist(), chosen.tolist(), 0.5)
    assert found.sign == 1
    assert found.decided_at is not None
    assert found.decided_at < 1500
    assert found.difference.low < 0.05 < found.difference.high


def test_a_trend_in_time_that_both_arms_share_names_no_difference() -> None:
    """Scores that rise from 0.1 to 0.9 over the test: only the randomisation is relied on."""
    rng, named = np.random.default_rng(3), 0
    for _ in range(200):
        chosen = rng.random(1000) < 0.3
        values = (rng.random(1000) < np.linspace(0.1, 0.9, 1000)).astype(float)
        named += sequential.compare(values.tolist(), chosen.tolist(), 0.3).decided_at is not None
    assert named <= 200 * ALPHA


def test_without_users_nothing_is_said_and_a_value_out_of_bounds_is_refused() -> None:
    assert sequential.compare([], [], 0.5).difference == (0.0, -1.0, 1.0)
    assert sequential.mean([]) is None
    with pytest.raises(ValueError, match="outside"):
        sequential.compare([1.5], [True], 0.5)


def test_the_interval_of_a_mean_covers_it_at_every_look() -> None:
    """100 series of 300 values of rate 0.2, looked at after every 30th (seed 4)."""
    rng, missed = np.random.default_rng(4), 0
    for _ in range(100):
        values = (rng.random(300) < 0.2).astype(float).tolist()
        looks = [sequential.mean(values[:n]) for n in range(30, 301, 30)]
        missed += any(look is None or not look.low <= 0.2 <= look.high for look in looks)
    assert missed <= 100 * ALPHA


def test_a_split_as_declared_is_no_mismatch_and_another_is_one() -> None:
    """500 splits of 2,000 users looked at after every 100th (seed 5): e-values of 1,000 come in at most one of 1,000."""
    rng, alarms = np.random.default_rng(5), 0
    for _ in range(500):
        arms = rng.choice(3, size=2000, p=[0.5, 0.3, 0.2])
        looks = [np.bincount(arms[:n], minlength=3).tolist() for n in range(100, 2001, 100)]
        alarms += any(sequential.share_mismatch(look, [0.5, 0.3, 0.2]) >= 1000 for look in looks)
    assert alarms <= 2
    assert sequential.share_mismatch([1000, 800], [0.5, 0.5]) > 1000
    assert sequential.share_mismatch([0, 0], [0.5, 0.5]) == pytest.approx(1.0)
