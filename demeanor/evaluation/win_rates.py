"""Length-controlled win rates and Bradley-Terry ratings of comparisons, with intervals that resample clusters.

In: preferences_N in [0, 1] (1: the candidate won, 0.5: a tie), lengths, opponents, clusters. Out: `Wins` and `Rating`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from scipy import special

from demeanor.evaluation.statistics import (
    Floats,
    Labels,
    cluster_draws,
    expanded,
    mean,
    percentile,
)

DRAWS = 500


RIDGE = 1e-3
"""Penalty that keeps separated data finite; in units of one preference."""


ELO = 400 / np.log(10)


class Wins(NamedTuple):
    """A raw and a length-controlled win rate, each with its 95% interval (None with one cluster), and the slope of the length term."""

    raw: float
    raw_low: float | None
    raw_high: float | None
    controlled: float
    low: float | None
    high: float | None
    slope: float
    n: int


def win_rate(
    preferences_N: Floats,
    lengths_N: Floats,
    other_lengths_N: Floats,
    clusters: Labels,
    *,
    seed: int,
    draws: int = DRAWS,
) -> Wins:
    """The win rate as it would be if both answers were equally long: sigma(b0) of P(win) = sigma(b0 + b1 tanh(dl / sd dl)).

    The interval refits the regression in every cluster resample. Source: Dubois et al. 2024 (2404.04475) without its per-item
    difficulty; AlpacaEval's own standard error ignores the coefficients' uncertainty.
    """
    y_N = np.asarray(preferences_N, dtype=float)
    longer_N = np.asarray(lengths_N, dtype=float) - np.asarray(other_lengths_N, dtype=float)
    spread = float(longer_N.std())
    x_N = np.tanh(longer_N / spread) if spread > 0 else np.zeros_like(longer_N)
    index_N, counts_RG = cluster_draws(clusters, draws=draws, seed=seed)
    b0, b1 = _logistic(x_N, y_N, np.ones_like(y_N))
    fits = np.array([_logistic(x_N, y_N, counts_G[index_N].astype(float)) for counts_G in counts_RG])
    weights_RN = counts_RG[:, index_N]
    few = counts_RG.shape[1]
    raw: tuple[float | None, float | None]
    controlled: tuple[float | None, float | None]
    if few < 2:
        return Wins(float(y_N.mean()), None, None, float(special.expit(b0)), None, None, b1, len(y_N))
    if (
        np.ptp(y_N) == 0
    ):  # every resample says the same, and the fit's penalty says the rest: that is no certainty
        whole = mean(y_N, clusters)
        raw = controlled = (whole.low, whole.high)
    else:
        raw = percentile(weights_RN @ y_N / weights_RN.sum(1), expanded(few))
        controlled = percentile(special.expit(fits[:, 0]), expanded(few))
    return Wins(float(y_N.mean()), *raw, float(special.expit(b0)), *controlled, b1, len(y_N))


def _logistic(x_N: Floats, y_N: Floats, weights_N: Floats) -> tuple[float, float]:
    """Weighted logistic regression on one feature by Newton's method."""
    design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    b_2 = np.zeros(2)
    for _ in range(50):
        p_N = special.expit(design_N2 @ b_2)
        gradient = design_N2.T @ (weights_N * (y_N - p_N)) - RIDGE * b_2
        hessian = (design_N2 * (weights_N * p_N * (1 - p_N))[:, None]).T @ design_N2 + RIDGE * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -4, 4)
        b_2 = b_2 + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(b_2[0]), float(b_2[1])


@dataclass(frozen=True, slots=True)
class Rating:
    """A Bradley-Terry strength in Elo points (mean of all variants 0) with its 95% interval.

    `open_ended` says where a variant won or lost all, so that only a penalty keeps its rating finite.
    """

    player: str
    rating: float
    low: float | None
    high: float | None
    games: int
    open_ended: str = ""


def ratings(
    first: Sequence[str],
    second: Sequence[str],
    preferences_N: Floats,
    clusters: Labels,
    *,
    seed: int,
    draws: int = DRAWS,
) -> list[Rating]:
    """Bradley-Terry by maximum likelihood, ties as half a win, best first; intervals resample clusters of duels.

    P(first wins) = sigma(s_first - s_second); points are s * 400 / ln 10. Source: Bradley & Terry 1952.
    """
    players = sorted({*first, *second})
    place = {name: i for i, name in enumerate(players)}
    a_N, b_N = np.array([place[x] for x in first]), np.array([place[x] for x in second])
    y_N = np.asarray(preferences_N, dtype=float)
    index_N, counts_RG = cluster_draws(clusters, draws=draws, seed=seed)
    best_P = _strengths(a_N, b_N, y_N, np.ones_like(y_N), len(players))
    draws_RP = np.array(
        [_strengths(a_N, b_N, y_N, counts_G[index_N].astype(float), len(players)) for counts_G in counts_RG]
    )
    games = np.bincount(np.concatenate([a_N, b_N]), minlength=len(players))
    found = [
        Rating(name, float(best_P[i]), low, high, int(games[i]))
        for name, i in place.items()
        for low, high in [_bounds(draws_RP[:, i], counts_RG.shape[1])]
    ]
    return sorted(found, key=lambda r: -r.rating)


def _bounds(values_R: Floats, clusters: int) -> tuple[float, float] | tuple[None, None]:
    """The percentiles of resamples, levels widened for few clusters; None with one cluster, and where no resample differs."""
    if clusters < 2 or np.ptp(values_R) < 1e-9:
        return None, None
    return percentile(values_R, expanded(clusters))


def _strengths(
    a_N: np.ndarray[tuple[int, ...], np.dtype[np.int_]],
    b_N: np.ndarray[tuple[int, ...], np.dtype[np.int_]],
    y_N: Floats,
    weights_N: Floats,
    players: int,
) -> Floats:
    wins_PP, lost_PP = np.zeros((players, players)), np.zeros((players, players))
    np.add.at(wins_PP, (a_N, b_N), weights_N * y_N)
    np.add.at(lost_PP, (a_N, b_N), weights_N * (1 - y_N))
    won_PP = wins_PP + lost_PP.T

    def loss(s_P: Floats) -> tuple[float, Floats]:
        gap_PP = s_P[:, None] - s_P[None, :]
        pull_PP = won_PP * special.expit(-gap_PP)
        nll = -float((won_PP * special.log_expit(gap_PP)).sum()) + RIDGE / 2 * float(s_P @ s_P)
        return nll, -(pull_PP.sum(1) - pull_PP.sum(0)) + RIDGE * s_P

    s_P = np.asarray(
        scipy.optimize.minimize(
            loss, np.zeros(players), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 1e-14}
        ).x
    )
    return np.asarray((s_P - s_P.mean()) * ELO, dtype=float)
