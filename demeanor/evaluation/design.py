"""Exact rates, families of tests and the size of a study: what may be claimed, and how many items would decide it.

In: counts, p-values, effects. Out: numbers. It knows no item, variant or file; clusters are the caller's affair
(`clusters_needed` scales a measured standard error, which already has them).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy import special, stats

from demeanor.evaluation.statistics import CONFIDENCE, POWER, Estimate

Claim: TypeAlias = Literal["yes", "no", "undecided"]


def clopper_pearson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a rate: beta quantiles; never covers less than `confidence`.

    Source: Clopper & Pearson 1934.
    """
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def upper_bound(failures: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper bound of a failure rate; after no failure 1 - (1 - confidence)^(1/n), without trials 1."""
    return 1.0 if failures >= n else float(special.betaincinv(failures + 1, n - failures, confidence))


def clean_trials_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many trials without a failure show that the failure rate lies below `rate`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def mcnemar_exact(fixed: int, broken: int) -> float:
    """McNemar's exact two-sided p: 2 P(Bin(b + c, 1/2) <= min(b, c)), at most 1; for one row per item, no clusters."""
    total = fixed + broken
    return 1.0 if total == 0 else min(1.0, float(2 * stats.binom.cdf(min(fixed, broken), total, 0.5)))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Step-up adjusted p-values (false discovery rate) of one family, in the order given.

    Source: Benjamini & Hochberg 1995.
    """
    m = len(p_values)
    order = sorted(range(m), key=lambda i: -p_values[i])
    adjusted, running = [0.0] * m, 1.0
    for below, i in enumerate(order):
        running = min(running, p_values[i] * m / (m - below))
        adjusted[i] = running
    return adjusted


def power_paired(effect: float, discordance: float, n: float, confidence: float = CONFIDENCE) -> float:
    """The chance that n independent items show a paired difference `effect` when a share `discordance` changes at all.

    Source: Connor 1987, both tails, with the variance of the alternative: psi - D^2.
    """
    z = float(special.ndtri((1 + confidence) / 2))
    shift = abs(effect) / math.sqrt((discordance - effect**2) / n)
    return float(special.ndtr(shift - z) + special.ndtr(-shift - z))


def clusters_needed(
    estimate: Estimate, gap: float, *, confidence: float = CONFIDENCE, power: float = POWER, sides: int = 2
) -> int | None:
    """Clusters like the measured ones that would show a distance `gap` with the given power; None if nothing varies or gap <= 0.

    The standard error shrinks with the root of the number of clusters: G' = G ((z_{1-a/sides} + z_power) SE / gap)^2.
    """
    if not estimate.se or gap <= 0:
        return None
    z = float(special.ndtri(1 - (1 - confidence) / sides) + special.ndtri(power))
    return math.ceil(estimate.clusters * (z * estimate.se / gap) ** 2)


class Shown(NamedTuple):
    """Whether a difference is shown to lie above a bound: the one-sided bounds that say so, and the clusters that would decide."""

    claim: Claim
    low: float | None
    high: float | None
    needed: int | None


def above(
    estimate: Estimate, bound: float, confidence: float = CONFIDENCE, denial: float | None = None
) -> Shown:
    """Whether a paired difference of values in [0, 1] lies above `bound`: superiority at 0 or more, non-inferiority at -margin.

    Yes where the one-sided lower bound at `confidence` lies above, no where the upper one at `denial` (default: the same) lies
    below. `needed` holds if the truth is what was measured, or no change where that is nearer to `bound` from above. Half-widths
    are those of `estimate`'s own 95% interval rescaled, so that its floor for unchanged items stays. Source: Blackwelder 1982.
    """
    if estimate.low is None or estimate.high is None or estimate.se is None:
        return Shown("undecided", None, None, None)
    dof, value = estimate.clusters - 1, estimate.value
    unit = max(estimate.high - value, value - estimate.low) / float(
        special.stdtrit(dof, (1 + CONFIDENCE) / 2)
    )
    low = max(-1.0, value - unit * float(special.stdtrit(dof, confidence)))
    high = min(1.0, value + unit * float(special.stdtrit(dof, confidence if denial is None else denial)))
    claim: Claim = "yes" if low > bound else "no" if high < bound else "undecided"
    gap = -bound if bound < 0 < value else abs(value - bound)
    if claim != "undecided":
        return Shown(claim, low, high, None)
    if estimate.se:
        return Shown(claim, low, high, clusters_needed(estimate, gap, confidence=confidence, sides=1))
    return Shown(claim, low, high, clean_trials_needed(gap, confidence) if 0 < gap < 1 else None)


def non_inferior(estimate: Estimate, margin: float, confidence: float = CONFIDENCE) -> Shown:
    """Whether a loss is shown to be smaller than `margin` (a share, above 0)."""
    return above(estimate, -margin, confidence)


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[float, float, float]:
    """Cohen's kappa of two judges with its large-sample interval; NaN where both always say the same one thing.

    Source: Cohen 1960; variance: Fleiss, Cohen & Everitt 1969.
    """
    names = sorted(set(first) | set(second), key=str)
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for a, b in zip(first, second, strict=True):
        counts[place[a], place[b]] += 1
    n, p = counts.sum(), counts / counts.sum()
    rows, columns = p.sum(1), p.sum(0)
    agreed, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return math.nan, math.nan, math.nan
    k = (agreed - chance) / (1 - chance)
    diagonal = sum(p[i, i] * (1 - (rows[i] + columns[i]) * (1 - k)) ** 2 for i in range(len(names)))
    cross = sum(
        p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(len(names)) for j in range(len(names)) if i != j
    )
    variance = (diagonal + (1 - k) ** 2 * cross - (k - chance * (1 - k)) ** 2) / ((1 - chance) ** 2 * n)
    half = float(special.ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(max(0.0, float(variance)))
    return k, max(-1.0, k - half), min(1.0, k + half)
