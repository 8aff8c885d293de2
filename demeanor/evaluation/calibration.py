"""Does a stated confidence mean what it says: equal-mass ECE and Brier, each with what a perfect forecaster would show.

In: confidences_N and outcomes_N (0 or 1). Out: numbers. It refuses to know where a confidence comes from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from demeanor.evaluation.statistics import CONFIDENCE, Floats, Labels, cluster_index

TOLD = re.compile(r"(\d+(?:\.\d+)?)% (right|wrong)")
"""How the `confidence` scorer tells in an answer what was claimed and whether it was right."""
BINS = 10
DRAWS = 2000


class Calibrated(NamedTuple):
    """A score with its null: `expected` and `null_high` (95th percentile) of the same confidences being true; p is one-sided."""

    value: float
    expected: float
    null_high: float
    p: float


class Calibration(NamedTuple):
    """ECE against a perfectly calibrated model, and Brier against outcomes shuffled among the items (no discrimination)."""

    ece: Calibrated
    brier: float
    brier_shuffled: float
    brier_p: float
    n: int


@dataclass(frozen=True, slots=True)
class StatedConfidence:
    """What a variant's stated confidences are worth: ECE beside what a perfect forecaster would show at this n, Brier beside no skill."""

    variant: str
    n: int
    mean_confidence: float
    right: float
    ece: float
    expected: float
    null_high: float
    p: float
    brier: float
    brier_shuffled: float
    brier_p: float


def stated(variant: str, answers: Sequence[tuple[str, str]]) -> StatedConfidence | None:
    """The calibration of answers, each with its cluster, that state a confidence ("80% right"); None where none does."""
    told = [(match, cluster) for answer, cluster in answers if (match := TOLD.fullmatch(answer))]
    if not told:
        return None
    confidences_N = np.array([float(m.group(1)) / 100 for m, _ in told])
    outcomes_N = np.array([float(m.group(2) == "right") for m, _ in told])
    found = calibration(confidences_N, outcomes_N, seed=0, clusters=[cluster for _, cluster in told])
    return StatedConfidence(
        variant,
        found.n,
        float(confidences_N.mean()),
        float(outcomes_N.mean()),
        found.ece.value,
        found.ece.expected,
        found.ece.null_high,
        found.ece.p,
        found.brier,
        found.brier_shuffled,
        found.brier_p,
    )


def ece(confidences_N: Floats, outcomes_N: Floats, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass: sum_b n_b/n |mean outcome - mean confidence|; ties share a bin's mean.

    Source: Nguyen & O'Connor 2015 (adaptive bins). Items of equal confidence have their mean outcome, so order cannot matter.
    """
    c_N, y_N = np.asarray(confidences_N, dtype=float), np.asarray(outcomes_N, dtype=float)
    return float(_ece(c_N, y_N[None, :], bins)[0])


def _ece(c_N: Floats, outcomes_RN: Floats, bins: int) -> Floats:
    """ECE of every row of outcomes."""
    values, tie_N = np.unique(c_N, return_inverse=True)
    counts = np.bincount(tie_N)
    gap_RN = (
        np.stack([np.bincount(tie_N, weights=row, minlength=len(values)) for row in outcomes_RN - c_N])
        / counts
    )
    order_gap = np.repeat(gap_RN, counts, axis=1)  # sorted by confidence
    edges = np.linspace(0, len(c_N), min(bins, len(c_N)) + 1).round().astype(int)
    return np.asarray(np.abs(np.add.reduceat(order_gap, edges[:-1], axis=1)).sum(1) / len(c_N), dtype=float)


def calibration(
    confidences_N: Floats,
    outcomes_N: Floats,
    *,
    seed: int,
    bins: int = BINS,
    draws: int = DRAWS,
    clusters: Labels | None = None,
) -> Calibration:
    """ECE and Brier with their nulls; deterministic in `seed`.

    The ECE of a perfect model is not 0 at finite n, so it is compared with outcomes drawn from the confidences themselves; items of one of
    the `clusters` share their draw, for they may be right and wrong together (None: each has its own), which is cautious. Brier's null
    shuffles outcomes (permutation): a model whose confidence says nothing about its item.
    """
    c_N, y_N = np.asarray(confidences_N, dtype=float), np.asarray(outcomes_N, dtype=float)
    rng = np.random.default_rng(seed)
    index_N, G = cluster_index(np.arange(len(c_N)) if clusters is None else clusters)
    null_R = _ece(c_N, (rng.random((draws, G))[:, index_N] < c_N).astype(float), bins)
    found = ece(c_N, y_N, bins)
    shuffled_RN = rng.permuted(np.tile(y_N, (draws, 1)), axis=1)
    brier, brier_R = float(((c_N - y_N) ** 2).mean()), ((c_N - shuffled_RN) ** 2).mean(1)
    return Calibration(
        Calibrated(
            found, float(null_R.mean()), float(np.quantile(null_R, CONFIDENCE)), _p(null_R >= found - 1e-12)
        ),
        brier,
        float(brier_R.mean()),
        _p(brier_R <= brier + 1e-12),
        len(c_N),
    )


def _p(as_extreme_R: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    """A Monte Carlo p-value, the seen value counted among the draws."""
    return float((1 + as_extreme_R.sum()) / (1 + len(as_extreme_R)))
