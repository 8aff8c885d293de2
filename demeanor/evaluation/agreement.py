"""Agreement coefficients of several raters, with missing ratings: Krippendorff's alpha and Fleiss' kappa.

In: ratings_NR (N units, R raters, NaN where one is missing) and the cluster of each unit. Out: an `Agreement` with its interval
from resampled clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from demeanor.core.errors import DataError
from demeanor.evaluation.statistics import Floats, Labels, cluster_draws, expanded, percentile

Level: TypeAlias = Literal["nominal", "ordinal", "interval"]
DRAWS = 2000


class Agreement(NamedTuple):
    """A coefficient (1: perfect, 0: as by chance) with its cluster-bootstrap interval; None: nothing varies, between resamples or at all, or one cluster."""

    value: float | None
    low: float | None
    high: float | None
    units: int
    ratings: int


def alpha(
    ratings_NR: Floats, clusters: Labels, *, level: Level, draws: int = DRAWS, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha = 1 - observed / expected disagreement over pairable ratings; clusters of units are resampled.

    Ordinal distances are differences of midranks (equal to Krippendorff's sum of marginals between two ranks), taken anew in each resample.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    counts_NV, values_V = _counts(ratings_NR)
    kept = counts_NV.sum(axis=1) >= 2  # a rating without a partner says nothing about agreement
    counts_UV = counts_NV[kept]
    return _interval(
        lambda weights_U: _alpha(counts_UV, values_V, weights_U, level),
        counts_UV,
        np.asarray(clusters)[kept],
        draws,
        seed,
    )


def fleiss(ratings_NR: Floats, clusters: Labels, *, draws: int = DRAWS, seed: int = 0) -> Agreement:
    """Fleiss' kappa = (P - P_e) / (1 - P_e) of complete nominal ratings (two raters: Scott's pi); raises DataError if one is missing.

    Source: Fleiss 1971, equations 3 to 7.
    """
    if np.isnan(ratings_NR).any() or ratings_NR.shape[1] < 2:
        raise DataError(
            "fleiss: wanted two ratings or more of every unit and none missing; Krippendorff's alpha takes the others"
        )
    counts_NV, _ = _counts(ratings_NR)
    return _interval(
        lambda weights_N: _fleiss(counts_NV, weights_N), counts_NV, np.asarray(clusters), draws, seed
    )


def _counts(ratings_NR: Floats) -> tuple[Floats, Floats]:
    """How often each value was given to each unit, and the values in rising order."""
    given_NR = ~np.isnan(ratings_NR)
    values_V, place = np.unique(ratings_NR[given_NR], return_inverse=True)
    counts_NV = np.zeros((len(ratings_NR), len(values_V)))
    np.add.at(counts_NV, (np.nonzero(given_NR)[0], place.reshape(-1)), 1.0)
    return counts_NV, values_V


def _alpha(counts_UV: Floats, values_V: Floats, weights_U: Floats, level: Level) -> float:
    """Alpha with each unit counted `weights_U` times; NaN where no disagreement is to be expected."""
    sizes_U, totals_V = counts_UV.sum(axis=1), weights_U @ counts_UV
    n = float(totals_V.sum())
    if level == "nominal":
        apart_U = sizes_U**2 - (counts_UV**2).sum(axis=1)
        expected = n**2 - float((totals_V**2).sum())
    else:
        # the sum of (a - b)^2 over ordered pairs is 2 (n sum a^2 - (sum a)^2)
        s_V = values_V if level == "interval" else np.cumsum(totals_V) - totals_V / 2
        s_V = s_V - float(totals_V @ s_V) / max(n, 1.0)  # distances do not move, squares stay small
        apart_U = 2 * (sizes_U * (counts_UV @ s_V**2) - (counts_UV @ s_V) ** 2)
        expected = 2 * (n * float(totals_V @ s_V**2) - float(totals_V @ s_V) ** 2)
    if expected <= 1e-12 * n * n:
        return math.nan
    return 1 - (n - 1) * float(weights_U @ (apart_U / (sizes_U - 1))) / expected


def _fleiss(counts_NV: Floats, weights_N: Floats) -> float:
    """Kappa with each unit counted `weights_N` times; NaN where chance agrees always."""
    raters, n = float(counts_NV[0].sum()), float(weights_N.sum())
    agreed_N = ((counts_NV**2).sum(axis=1) - raters) / (raters * (raters - 1))
    chance = float((((weights_N @ counts_NV) / (n * raters)) ** 2).sum())
    return math.nan if chance > 1 - 1e-12 else (float(weights_N @ agreed_N) / n - chance) / (1 - chance)


def _interval(
    coefficient: Callable[[Floats], float], counts_UV: Floats, clusters_U: Labels, draws: int, seed: int
) -> Agreement:
    """A coefficient and the percentiles of its values over resampled clusters, levels widened for few of them (Hesterberg 2015)."""
    units, ratings = len(counts_UV), int(counts_UV.sum())
    value = coefficient(np.ones(units)) if units else math.nan
    if math.isnan(value):
        return Agreement(None, None, None, units, ratings)
    index_U, counts_RG = cluster_draws(clusters_U, draws=draws, seed=seed)
    G = counts_RG.shape[1]
    if G < 2:
        return Agreement(value, None, None, units, ratings)
    values_R = np.array([coefficient(drawn_G[index_U].astype(float)) for drawn_G in counts_RG])
    low, high = percentile(values_R, expanded(G))
    if high - low < 1e-12:  # nothing varied between resamples: that is no certainty
        return Agreement(value, None, None, units, ratings)
    return Agreement(value, low, high, units, ratings)
