"""Dual ascent on ln lambda: it reaches the multiplier of the closed form (C10), is clamped, and resumes exactly."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq

from demeanor.core.errors import DemeanorError
from demeanor.stack.schema import CostSpec, LengthReward
from demeanor.training.controllers import Lagrangian

Floats = npt.NDArray[np.float64]


def spec(**settings: float) -> CostSpec:
    return CostSpec(terms=(LengthReward(free=1),), **settings)  # type: ignore[arg-type]


# ---- C10 of alignment.md: the policy of highest reward - beta KL whose mean cost is at its limit


def bandit() -> tuple[Floats, Floats, Floats]:
    """Twelve answers: the reference's probabilities, rewards, costs; what is rewarded tends to cost."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=12)
    return rng.dirichlet(np.ones(12)), reward, 0.8 * reward + 0.6 * rng.normal(size=12)


def tilted(reference: Floats, reward: Floats, cost: Floats, multiplier: float, beta: float) -> Floats:
    """pi ~ ref exp((r - lambda c) / beta), the exact optimum at a multiplier."""
    logits = np.log(reference) + (reward - multiplier * cost) / beta
    weights: Floats = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("limit", [-0.2, 0.0, 0.2])
def test_dual_ascent_reaches_the_multiplier_that_bisection_finds(limit: float) -> None:
    reference, reward, cost = bandit()
    beta = 0.5

    def excess(multiplier: float) -> float:
        return float(tilted(reference, reward, cost, multiplier, beta) @ cost) - limit

    assert excess(0.0) > 0.1, "without the constraint the limit is broken"
    exact = brentq(excess, 0.0, 50.0, xtol=1e-13)
    found = Lagrangian(spec(limit=limit, lr=0.5))
    for _ in range(400):
        found.update(excess(found.value) + limit)
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert excess(found.value) == pytest.approx(0.0, abs=1e-6)


def test_a_fixed_weight_misses_the_limit_that_the_multiplier_meets() -> None:
    """The reward of the constrained optimum beats every fixed weight that is feasible."""
    reference, reward, cost = bandit()
    exact = brentq(lambda m: float(tilted(reference, reward, cost, m, 0.5) @ cost), 0.0, 50.0)

    def kl(policy: Floats) -> float:
        return float(policy @ np.log(policy / reference))

    def objective(multiplier: float) -> float:
        policy = tilted(reference, reward, cost, multiplier, 0.5)
        return float(policy @ reward) - 0.5 * kl(policy)

    assert float(tilted(reference, reward, cost, exact / 2, 0.5) @ cost) > 0.05
    assert objective(exact) > objective(2 * exact) + 0.01


# ---- its edges


def test_above_1_the_step_is_the_papers_and_below_1_it_does_not_shrink() -> None:
    high, low = (
        Lagrangian(spec(initial=3.0, lr=0.1, limit=0.5)),
        Lagrangian(spec(initial=0.2, lr=0.1, limit=0.5)),
    )
    high.update(0.7)
    low.update(0.7)
    assert math.log(high.value) == pytest.approx(math.log(3.0) + 0.1 * 3.0 * 0.2, abs=1e-12)
    assert math.log(low.value) == pytest.approx(math.log(0.2) + 0.1 * 0.2, abs=1e-12)


def test_a_feasible_run_lets_the_multiplier_fall_to_its_least_and_it_can_grow_again() -> None:
    found = Lagrangian(spec(least=1e-3, lr=0.1))
    for _ in range(1000):
        found.update(-2.0)
    assert found.value == pytest.approx(1e-3, rel=1e-12)
    steps = 0
    while found.value < 1.0 and steps < 1000:
        found.update(1.0)
        steps += 1
    assert steps == math.ceil(math.log(1000) / 0.1)  # 70, where the paper's factor would take 10,000


def test_the_multiplier_never_exceeds_its_most_and_comes_back() -> None:
    found = Lagrangian(spec(most=100.0, lr=0.1))
    for _ in range(50):
        found.update(1e9)
    assert found.value == pytest.approx(100.0, rel=1e-12)
    found.update(-1.0)
    assert found.value < 1.0


def test_costs_near_zero_with_a_limit_of_zero_give_no_nan() -> None:
    """omnisafe#384: the multiplier update became NaN there."""
    found = Lagrangian(spec(limit=0.0, lr=0.1))
    for cost in (0.0, 1e-320, -1e-320, 5e-324, 0.0) * 200:
        found.update(cost)
    assert found.value == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_no_number_stops_the_run(cost: float) -> None:
    found = Lagrangian(spec())
    with pytest.raises(DemeanorError, match="wanted a finite number"):
        found.update(cost)
    assert found.value == 1.0


def test_reward_and_cost_are_combined_as_in_safe_rlhf() -> None:
    found = Lagrangian(spec(initial=3.0))
    assert found.combined(2.0, 1.0) == pytest.approx((2.0 - 3.0 * 1.0) / 4.0)


def test_a_resumed_multiplier_goes_on_to_the_last_bit() -> None:
    costs = np.random.default_rng(1).normal(size=60).tolist()
    whole, first, second = (Lagrangian(spec(lr=0.3)) for _ in range(3))
    for cost in costs:
        whole.update(cost)
    for cost in costs[:23]:
        first.update(cost)
    second.load(json.loads(json.dumps(first.state())))
    for cost in costs[23:]:
        second.update(cost)
    assert second.state() == whole.state()
