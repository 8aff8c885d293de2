"""Means, paired differences and rates with intervals that respect what items share.

In: numpy arrays (suffix N items, G clusters, R resamples, C columns). Out: numbers. It knows no item, variant or file.
Intervals are two-sided 95% unless said otherwise; rows of one cluster are never treated as independent.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy
from scipy import special

from demeanor.core.intervals import wilson

Floats: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = Sequence[Any] | npt.NDArray[Any]
CONFIDENCE = 0.95
POWER = 0.8


class Estimate(NamedTuple):
    """A mean with its cluster-robust standard error, interval and p-value against 0; None where one cluster allows none."""

    value: float
    low: float | None
    high: float | None
    se: float | None
    p: float | None
    n: int
    clusters: int


def cluster_index(clusters: Labels) -> tuple[npt.NDArray[np.intp], int]:
    """Number the distinct clusters 0..G-1 and return (index_N, G)."""
    names, index_N = np.unique(np.asarray(clusters), return_inverse=True)
    return index_N.reshape(-1), len(names)


def cluster_se(values_N: Floats, clusters: Labels) -> float | None:
    """Cluster-robust standard error of a mean: (1/n) sqrt(G/(G-1) sum_g (sum_{i in g} (x_i - mean))^2); None if G < 2.

    Source: Miller 2024 (2411.00640), with the G/(G-1) correction.
    """
    index_N, G = cluster_index(clusters)
    if G < 2:
        return None
    sums_G = np.bincount(index_N, weights=values_N - values_N.mean(), minlength=G)
    return float(math.sqrt(G / (G - 1) * float(sums_G @ sums_G)) / len(values_N))


def paired(before_N: Floats, after_N: Floats, clusters: Labels, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of after - before on the same items (values in [0, 1]), t interval with G-1 degrees of freedom.

    Few or no differing items make the formula claim (near) certainty, so the interval is never narrower than what the share u
    of items that n unchanged ones cannot exclude (`zero_failures`, as if independent) could move the mean by. The p-value
    belongs to the same interval: it is below 1 - confidence exactly where the interval excludes zero.
    """
    d_N = np.asarray(after_N, dtype=float) - np.asarray(before_N, dtype=float)
    _, G = cluster_index(clusters)
    n, d = len(d_N), float(d_N.mean())
    se = cluster_se(d_N, clusters)
    if se is None:
        return Estimate(d, None, None, None, None, n, G)
    t, u = float(special.stdtrit(G - 1, (1 + confidence) / 2)), zero_failures(n, confidence)
    if np.ptp(d_N) == 0.0:  # u of the items might lie at the far end, -sign(d)
        half = u * (1 + abs(d))
    else:
        if (
            se < 1e-12
        ):  # differences cancel within every cluster: no spread between clusters, but not certainty
            se = float(d_N.std(ddof=1)) / math.sqrt(n)
        half = max(t * se, u * (1 - abs(d)))
    p = 2.0 * float(special.stdtr(G - 1, -abs(d) * t / half))
    return Estimate(d, max(-1.0, d - half), min(1.0, d + half), se, p, n, G)


def mean(values_N: Floats, clusters: Labels, confidence: float = CONFIDENCE) -> Estimate:
    """A mean of values in [0, 1] with a Wilson interval at the effective sample size of its cluster-robust variance.

    Effective n is p(1-p)/SE^2, at most n (G where the values do not vary), scaled by (z/t_{G-1})^2 for the few clusters.
    Source: Korn & Graubard 1998; Dean & Pagano 2015 (Wilson with a design effect).
    """
    x_N = np.asarray(values_N, dtype=float)
    n, m = len(x_N), float(x_N.mean())
    se = cluster_se(x_N, clusters)
    _, G = cluster_index(clusters)
    if se is None:
        return Estimate(m, None, None, None, None, n, G)
    variance = m * (1 - m)
    effective = min(float(n), variance / se**2) if se > 1e-12 and variance > 1e-12 else float(G)
    tail = (1 - confidence) / 2
    z, t = float(special.ndtri(1 - tail)), float(special.stdtrit(G - 1, 1 - tail))
    low, high = wilson(m * effective, effective, confidence, quantile=t if n > G else z)
    return Estimate(m, low, high, se, None, n, G)


def zero_failures(n: int, confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper bound of a failure rate after n trials without a failure: 1 - (1 - confidence)^(1/n)."""
    return float(-math.expm1(math.log1p(-confidence) / n))


def mcnemar_midp(fixed: int, regressed: int) -> float:
    """McNemar's mid-p: two-sided P under Bin(b+c, 1/2), half the mass at what was seen; for one row per item, no clusters."""
    few, total = min(fixed, regressed), fixed + regressed
    if total == 0:
        return 1.0
    return min(
        1.0, float(2.0 * scipy.stats.binom.cdf(few, total, 0.5) - scipy.stats.binom.pmf(few, total, 0.5))
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def minimal_detectable(
    estimate: Estimate, confidence: float = CONFIDENCE, power: float = POWER
) -> float | None:
    """The smallest true difference that this design would find with the given power: (t_{1-a/2} + t_power) SE, at most 1.

    Never below the rate of change that n unchanged items cannot exclude. None with one cluster.
    """
    if estimate.se is None:
        return None
    dof = estimate.clusters - 1
    size = float(special.stdtrit(dof, (1 + confidence) / 2) + special.stdtrit(dof, power)) * estimate.se
    return min(1.0, max(size, zero_failures(estimate.n, confidence)))


def items_needed(
    effect: float, discordance: float, confidence: float = CONFIDENCE, power: float = POWER
) -> int:
    """Independent items needed to find a paired difference `effect` when a share `discordance` of items changes at all.

    n = (z_{1-a/2} + z_power)^2 (psi - D^2) / D^2. Source: Connor 1987 without its null-variance refinement.
    """
    z = float(special.ndtri((1 + confidence) / 2) + special.ndtri(power))
    return math.ceil(z * z * (discordance - effect**2) / effect**2)


def cluster_draws(
    clusters: Labels, *, draws: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """How often each resample draws each cluster: the cluster of every row, index_N, and counts_RG. Deterministic in `seed`."""
    index_N, G = cluster_index(clusters)
    return index_N, np.random.default_rng(seed).multinomial(G, np.full(G, 1.0 / G), size=draws)


def cluster_bootstrap(columns_NC: Floats, clusters: Labels, *, draws: int, seed: int) -> Floats:
    """Column sums over resampled clusters, sums_RC; a row keeps all its columns, so ratios of sums stay paired.

    A mean is the ratio of its column of values to its column of ones.
    """
    index_N, counts_RG = cluster_draws(clusters, draws=draws, seed=seed)
    sums_GC = np.zeros((counts_RG.shape[1], columns_NC.shape[1]))
    np.add.at(sums_GC, index_N, columns_NC)
    return counts_RG @ sums_GC


def sum_bounds(
    parts: Sequence[tuple[float, float, float]], values_R: Floats, clusters: int
) -> tuple[float, float]:
    """The interval of a sum of (value, low, high): the wider of the bootstrap's and what the intervals of its parts allow.

    The parts' distances are added as squares (Newcombe 1998; Zou & Donner 2008), so a rate that no resample could change keeps the width
    of its own interval; the bootstrap knows what the parts share. An end may be infinite.
    """
    value = math.fsum(v for v, _, _ in parts)
    below = math.hypot(*(max(0.0, v - low) for v, low, _ in parts))
    above = math.hypot(*(max(0.0, high - v) for v, _, high in parts))
    drawn = percentile(values_R, expanded(clusters))
    return min(value - below, drawn[0]), max(value + above, drawn[1])


def percentile(values_R: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of bootstrap values, draws that are undefined left out."""
    low, high = np.nanquantile(values_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def expanded(clusters: int, confidence: float = CONFIDENCE) -> float:
    """The confidence to ask of `percentile` where few clusters were resampled: a bootstrap of G clusters is as narrow as z sqrt((G-1)/G).

    Source: Hesterberg 2015 (1411.5279), the expanded percentile interval.
    """
    t = float(special.stdtrit(clusters - 1, (1 + confidence) / 2))
    return float(2 * special.ndtr(math.sqrt(clusters / (clusters - 1)) * t) - 1)


def discrimination(
    hits: Floats, n_signal: Floats, false_alarms: Floats, n_noise: Floats
) -> tuple[Floats, Floats]:
    """d' = z(hit rate) - z(false-alarm rate) and the criterion -(z + z)/2, with the log-linear correction (x + .5)/(n + 1).

    Source: Hautus 1995. Works on numbers and on arrays of resamples alike.
    """
    z_hit = special.ndtri((hits + 0.5) / (n_signal + 1.0))
    z_false = special.ndtri((false_alarms + 0.5) / (n_noise + 1.0))
    return z_hit - z_false, -(z_hit + z_false) / 2


DISCORDANCE = 0.2
"""The assumed share of items on which two variants differ."""
WITHIN = 0.1
"""The assumed correlation of items of one cluster."""


def effective(items: int, clusters: int, within: float = WITHIN) -> float:
    """Independent items that tell as much as these: n / (1 + (m - 1) rho), m items a cluster (Kish 1965)."""
    return items / (1 + (items / clusters - 1) * within)


def smallest(n: float, discordance: float = DISCORDANCE) -> float:
    """The paired difference that n independent items find four times in five when a share `discordance` of them changes at all.

    D = z sqrt(psi / (n + z^2)) with z = z_{1-a/2} + z_power: `statistics.items_needed` (Connor 1987) solved for the difference.
    """
    z = float(special.ndtri((1 + CONFIDENCE) / 2) + special.ndtri(POWER))
    return z * math.sqrt(discordance / (n + z * z))


def detectable(
    items: int, clusters: int, *, discordance: float = DISCORDANCE, within: float = WITHIN
) -> float | None:
    """The same of items in clusters; None with one cluster, and where nothing below `discordance` could be found."""
    size = smallest(effective(items, clusters, within), discordance)
    return None if clusters < 2 or size >= discordance else size


def independent_trials(clusters: Labels) -> int:
    """How many independent trials these are if those of one cluster always come out alike: n^2 / sum(m^2), at least 1 (Kish 1965)."""
    sizes = np.bincount(cluster_index(clusters)[0])
    return max(1, len(clusters) ** 2 // int((sizes**2).sum()))


# ---- exact rates, families of tests and the size of a study ----

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


def mcnemar_exact(fixed: int, regressed: int) -> float:
    """McNemar's exact two-sided p: a sign test of the items that changed; for one row per item, no clusters."""
    total = fixed + regressed
    return 1.0 if total == 0 else float(scipy.stats.binomtest(fixed, total).pvalue)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (false discovery rate) of one family, in the order given."""
    return [float(p) for p in scipy.stats.false_discovery_control(p_values)] if p_values else []


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
    if half < 1e-9:  # full agreement leaves the formula no spread, which is no certainty
        low, high = wilson(agreed * float(n), float(n))
        return k, max(-1.0, (low - chance) / (1 - chance)), min(1.0, (high - chance) / (1 - chance))
    return k, max(-1.0, k - half), min(1.0, k + half)


# ---- rankings ----


class Auroc(NamedTuple):
    """The area under the ROC curve (AUROC): how often a positive has a higher score than a negative; ties count half."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int


def ranking(scores_N: Floats, positive_N: Labels, clusters: Labels | None = None) -> Auroc:
    """The AUROC with an interval from its placement values on the log-odds scale; cluster-robust where clusters are given.

    Source: DeLong, DeLong & Clarke-Pearson 1988; Obuchowski 1997 for clusters.
    """
    scores_N, is_N = np.asarray(scores_N, dtype=float), np.asarray(positive_N, dtype=float) > 0
    m, n = int(is_N.sum()), int((~is_N).sum())
    if not m or not n:
        return Auroc(math.nan, 0.0, 1.0, m, n)
    rank_N = scipy.stats.rankdata(scores_N)
    placed_N = np.empty(len(scores_N))
    placed_N[is_N] = (rank_N[is_N] - scipy.stats.rankdata(scores_N[is_N])) / n
    placed_N[~is_N] = 1 - (rank_N[~is_N] - scipy.stats.rankdata(scores_N[~is_N])) / m
    value = float(placed_N[is_N].mean())
    influence_N = (placed_N - value) / np.where(is_N, m, n)
    index_N, G = cluster_index(np.arange(len(scores_N)) if clusters is None else clusters)
    sums_G = np.bincount(index_N, weights=influence_N, minlength=G)
    se = math.sqrt(G / (G - 1) * float(sums_G @ sums_G)) if G > 1 else math.nan
    if value in (0.0, 1.0) or not se > 0:
        bound = zero_failures(min(m, n))
        return Auroc(value, max(0.0, value - bound), min(1.0, value + bound), m, n)
    half = float(special.ndtri((1 + CONFIDENCE) / 2)) * se / (value * (1 - value))
    odds = math.log(value / (1 - value))
    return Auroc(value, float(special.expit(odds - half)), float(special.expit(odds + half)), m, n)
