"""The multiplier of a constraint: Safe RLHF's dual variable, which follows how far the cost is from its limit.

In: the mean cost of each iteration. Out: lambda, with which rewards and costs are combined. The coefficient
of a KL is adapted by its objective (ppo). Source: Dai et al. 2024, arXiv 2310.12773, section 3.3.
Deviations:
1. Below 1 the step of ln lambda no longer shrinks with lambda (paper: times lambda). With the paper's factor a
   run that was feasible, whose lambda fell to .001, would need 1,000 / (lr x violation) iterations to return.
2. ln lambda is clamped to [least, most], so that it is always finite and a violated constraint does not
   silence the reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from demeanor.core.errors import DemeanorError
from demeanor.stack.schema import CostSpec


class Lagrangian:
    """lambda >= 0 of `maximise reward subject to mean cost <= limit`."""

    def __init__(self, spec: CostSpec) -> None:
        self.spec = spec
        self._log = self._clamped(math.log(spec.initial))

    @property
    def value(self) -> float:
        """lambda."""
        return math.exp(self._log)

    def update(self, cost: float) -> None:
        """Move ln lambda by lr x max(lambda, 1) x (cost - limit). Raises DemeanorError for a cost that is no number."""
        if not math.isfinite(cost):
            raise DemeanorError(
                f"cost: got a mean of {cost}, wanted a finite number; look at the terms of the cost"
            )
        step = self.spec.lr * max(self.value, 1.0) * (cost - self.spec.limit)
        self._log = self._clamped(self._log + step)

    def combined(self, reward: float, cost: float) -> float:
        """(reward - lambda x cost) / (1 + lambda), whose scale does not grow with lambda (paper, section 3.3)."""
        return (reward - self.value * cost) / (1 + self.value)

    def state(self) -> dict[str, float]:
        """What a resumed run needs, as JSON."""
        return {"log_lambda": self._log}

    def load(self, state: Mapping[str, float]) -> None:
        """Continue from `state`."""
        self._log = float(state["log_lambda"])

    def _clamped(self, log: float) -> float:
        return min(max(log, math.log(self.spec.least)), math.log(self.spec.most))
