"""Was the base asked fairly: its answers under several ways of asking, and what the next stage adds to the best of them.

In: rows of the base by way, rows of the stage after it. Out: one `Fairness` tree. The best of several ways looks better than it is on the
items it was picked on, so each half of the clusters is answered in the way that was best on the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demeanor.evaluation import statistics
from demeanor.evaluation.cells import Cells
from demeanor.evaluation.row import Row
from demeanor.evaluation.statistics import Floats
from demeanor.evaluation.suite import suite_hash
from demeanor.types import Item

ALL = "all"


@dataclass(frozen=True, slots=True)
class Gain:
    """What the stage adds on an axis, in the mean over its items: to the base as declared, and to the base asked in the best way."""

    axis: str
    ways: dict[str, float]
    """The base's mean by way."""
    picked: tuple[str, ...]
    """The way that was best on either half."""
    best: float
    """The mean of the base where each half is asked in the way that was best on the other."""
    stage: float
    declared: float
    low_declared: float | None
    high_declared: float | None
    fair: float
    low: float | None
    high: float | None
    n: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Fairness:
    """Every axis, and all items together last."""

    name: str
    suite_hash: str
    stage: str
    declared: str
    ways: tuple[str, ...]
    gains: tuple[Gain, ...]


def fairness(
    rows: Sequence[Row],
    items: Sequence[Item],
    *,
    name: str,
    ways: Mapping[str, str],
    declared: str,
    stage: str,
) -> Fairness:
    """Compare the variant `stage` with the base; `ways`: name of the way -> variant of its rows, `declared`: the one that the stack uses.

    Items without a score in some way or in the stage are left out.
    """
    cells = Cells(rows, items)
    parts: list[tuple[Floats, list[str]]] = []
    gains = []
    for axis, some in cells.axes.items():
        table_NW = np.stack([cells.values_N(variant, axis) for variant in (*ways.values(), stage)], axis=1)
        scored = np.flatnonzero(~np.isnan(table_NW).any(axis=1))
        if not len(scored):
            continue
        clusters, values_NW = [some[i].cluster for i in scored], table_NW[scored]
        best_N, picked = cross_fitted(values_NW[:, :-1], clusters, list(ways))
        gains.append(_gain(axis, values_NW, best_N, picked, clusters, list(ways), declared))
        parts.append((values_NW, clusters))
    if len(parts) > 1:  # of all items one way, for one model is asked in one way
        whole_NW, clusters = np.concatenate([p[0] for p in parts]), [c for p in parts for c in p[1]]
        best_N, picked = cross_fitted(whole_NW[:, :-1], clusters, list(ways))
        gains.append(_gain(ALL, whole_NW, best_N, picked, clusters, list(ways), declared))
    return Fairness(name, suite_hash(items), stage, declared, tuple(ways), tuple(gains))


def cross_fitted(values_NW: Floats, clusters: Sequence[str], ways: Sequence[str]) -> tuple[Floats, list[str]]:
    """Each item's value in the way that is best on the half of the clusters that it is not in; ties go to the first way.

    With a single cluster in a half there is nothing to pick on, and the first way is taken.
    """
    first_N = np.array([half(c) for c in clusters])
    found_N, picked = np.empty(len(values_NW)), []
    for mine_N in (first_N, ~first_N):
        if not mine_N.any():
            continue
        others_NW = values_NW[~mine_N]
        way = int(others_NW.mean(axis=0).argmax()) if len(others_NW) else 0
        found_N[mine_N] = values_NW[mine_N, way]
        picked.append(ways[way])
    return found_N, list(dict.fromkeys(picked))


def half(cluster: str) -> bool:
    """Which half a cluster is in, whatever else is in the suite."""
    return hashlib.sha256(cluster.encode()).digest()[0] % 2 == 0


def _gain(
    axis: str,
    values_NW: Floats,
    best_N: Floats,
    picked: Sequence[str],
    clusters: Sequence[str],
    ways: Sequence[str],
    declared: str,
) -> Gain:
    base_N, stage_N = values_NW[:, list(ways).index(declared)], values_NW[:, -1]
    plain, fair = statistics.paired(base_N, stage_N, clusters), statistics.paired(best_N, stage_N, clusters)
    return Gain(
        axis,
        {way: float(values_NW[:, i].mean()) for i, way in enumerate(ways)},
        tuple(picked),
        float(best_N.mean()),
        float(stage_N.mean()),
        plain.value,
        plain.low,
        plain.high,
        fair.value,
        fair.low,
        fair.high,
        fair.n,
        fair.clusters,
    )
