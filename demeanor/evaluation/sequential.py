"""Tests that may be looked at after every user: confidence sequences and e-values for a difference of means.

In: scores in [0, 1] in the order in which they were fixed, the arm of each and its share. Out: an interval that holds at all times at
once. It relies on the randomisation and on the bounds alone: no normal approximation, no fixed sample size. It knows no user and no turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy
from scipy import special

from demeanor.evaluation.statistics import Floats

SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class Mixture:
    """The gamma-exponential mixture: log m(s, v), an e-process of a sum s of bounded deviations with variance process v.

    `scale` bounds how far one deviation may lie below its centre; the interval is tightest near `best_v`. Source: Howard, Ramdas,
    McAuliffe & Sekhon 2021 (1810.08240), proposition 9 and theorem 4.
    """

    scale: float
    best_v: float
    alpha: float

    @property
    def rho(self) -> float:
        """The mixing precision that minimises the width at `best_v` (their proposition 3)."""
        log = math.log(1 / (2 * self.alpha)) if self.alpha < 0.5 else SMALLEST
        return self.best_v / (2 * log + math.log1p(2 * log))

    def log_value(self, s: Floats | float, v: Floats | float) -> Floats:
        """log m(s, v) of sums and variances; under s with mean zero at most 1/a is ever reached with probability a."""
        square, rho = self.scale**2, self.rho
        prior, posterior = rho / square, (np.asarray(v, dtype=float) + rho) / square
        at = np.asarray(s, dtype=float) / self.scale + posterior
        least = np.maximum(at, SMALLEST)  # s below -v/c: the sum is far on the other side, no evidence
        found = (
            self._log_normaliser(prior)
            + special.gammaln(posterior)
            + np.log(np.maximum(special.gammainc(posterior, least), 1e-300))
            - posterior * np.log(least)
            + least
            - prior
        )
        return np.where(at > SMALLEST, found, -np.inf)

    def radius(self, v: float) -> float:
        """The sum that reaches log(1/alpha) at variance v."""
        goal, high = math.log(1 / self.alpha), self.scale
        while float(self.log_value(high, v)) < goal:
            high *= 2
        return float(
            scipy.optimize.brentq(lambda s: float(self.log_value(s, v)) - goal, 0.0, high, xtol=1e-9)
        )

    @staticmethod
    def _log_normaliser(prior: float) -> float:
        """Of the mixing distribution, a gamma truncated to (0, 1]; without its factor exp(prior)."""
        return float(
            prior * math.log(prior) - special.gammaln(prior) - math.log(special.gammainc(prior, prior))
        )


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence sequence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """The difference of two arms so far: its interval, the e-value against no difference, and when that first sufficed (users; None: never)."""

    difference: Interval
    e_value: float
    decided_at: int | None
    sign: int
    """Of the difference when it was first shown: 1, -1, or 0 while it is not."""


def deviations(values_N: Floats, treated_N: npt.NDArray[np.bool_], share: float) -> Floats:
    """Unbiased estimates of the effect, one a user: (y - centre) / share where treated, -(y - centre) / (1 - share) elsewhere.

    The centre is a mean of earlier users only, so the randomisation alone makes the expectation the effect. Source: Ham, Bojinov,
    Lindon & Tingley 2022 (2210.08639), with a predictable centre.
    """
    treated = treated_N.astype(float)
    of_treated = _before(values_N, treated)
    of_others = _before(values_N, 1 - treated)
    centre_N = (1 - share) * of_treated + share * of_others
    return (values_N - centre_N) * (treated / share - (1 - treated) / (1 - share))


def _before(values_N: Floats, counted_N: Floats) -> Floats:
    """The mean of the counted values before each place, one half where there is none yet (as one value of one half)."""
    sums = np.concatenate([[0.0], np.cumsum(values_N * counted_N)[:-1]]) if len(values_N) else values_N
    counts = np.concatenate([[0.0], np.cumsum(counted_N)[:-1]]) if len(values_N) else values_N
    found: Floats = (sums + 0.5) / (counts + 1)
    return found


def compare(
    values: Sequence[float],
    treated: Sequence[bool],
    share: float,
    *,
    alpha: float = 0.05,
    planned: int = 1000,
) -> SequentialTest:
    """Compare treated users with the others by one value in [0, 1] each, in the order in which the values were fixed.

    `share` is the probability with which a user of the two arms was treated. At every moment at once the interval covers the mean
    effect on the users so far with probability 1 - alpha, and an e-value of 1/alpha is reached with probability alpha at most.
    """
    values_N, treated_N = np.asarray(values, dtype=float), np.asarray(treated, dtype=bool)
    if len(values_N) == 0:
        return SequentialTest(Interval(0.0, -1.0, 1.0), 1.0, None, 0)
    if values_N.min() < 0 or values_N.max() > 1:
        raise ValueError("compare: got a value outside of [0, 1]")
    z_N = deviations(values_N, treated_N, share)
    scale = 1 / min(share, 1 - share)
    mixture = Mixture(scale, planned / 2, alpha / 2)
    s_N, v_N = np.cumsum(z_N), np.cumsum(z_N**2)
    logs = np.stack([mixture.log_value(s_N, v_N), mixture.log_value(-s_N, v_N)])
    reached = np.flatnonzero(logs.max(0) >= math.log(2 / alpha))
    sign = 0
    if len(reached):
        sign = 1 if logs[0, reached[0]] >= logs[1, reached[0]] else -1
    n, radius = len(z_N), mixture.radius(float(v_N[-1]))
    value = float(s_N[-1]) / n
    return SequentialTest(
        Interval(value, max(-1.0, value - radius / n), min(1.0, value + radius / n)),
        math.exp(min(700.0, float(logs[:, -1].max()))) / 2,
        int(reached[0]) + 1 if len(reached) else None,
        sign,
    )


def mean(values: Sequence[float], *, alpha: float = 0.05, planned: int = 500) -> Interval | None:
    """The mean of values in [0, 1] with an interval that holds at all times at once; None without a value."""
    values_N = np.asarray(values, dtype=float)
    if len(values_N) == 0:
        return None
    centre_N = _before(values_N, np.ones(len(values_N)))
    v = float(((values_N - centre_N) ** 2).sum())
    n, value = len(values_N), float(values_N.mean())
    radius = Mixture(1.0, planned / 8, alpha / 2).radius(v)
    return Interval(value, max(0.0, value - radius / n), min(1.0, value + radius / n))


CONCENTRATION = 50.0
"""Users that the prior of shares is worth."""


def share_mismatch(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The e-value against users being split by `shares`: 1/a is ever reached with probability a at most if they are.

    A Dirichlet mixture of splits against the declared one. Source: Lindon & Malek 2022 (2011.03567).
    """
    n_K, p_K = np.asarray(counts, dtype=float), np.asarray(shares, dtype=float)
    prior_K = CONCENTRATION * p_K
    log = (
        special.gammaln(prior_K.sum())
        - special.gammaln(prior_K.sum() + n_K.sum())
        + (special.gammaln(prior_K + n_K) - special.gammaln(prior_K)).sum()
        - (n_K * np.log(p_K)).sum()
    )
    return math.exp(min(700.0, float(log)))
