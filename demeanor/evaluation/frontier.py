"""What safety costs: safe requests answered, unsafe ones refused, and capability, per set of weights, with and without policy.

In: rows and items, and the points to place (variant and label). Out: one `Frontier` tree, nothing rendered. The refusal numbers are
those of refusals.py; capability is the mean over all items that are no contrast twins; the tax is counted in items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demeanor.errors import DataError
from demeanor.evaluation import statistics
from demeanor.evaluation.cells import Cells
from demeanor.evaluation.refusals import refusals
from demeanor.evaluation.result import Mean, Refusals
from demeanor.evaluation.row import Row
from demeanor.evaluation.spending import spending
from demeanor.evaluation.statistics import Floats
from demeanor.evaluation.suite import SAFE, UNSAFE, suite_hash
from demeanor.types import Item


@dataclass(frozen=True, slots=True)
class Point:
    """One variant on the frontier; `lost` are the items that its predecessor `before` had right and it has wrong (the tax)."""

    variant: str
    label: str
    refusals: Refusals
    capability: Mean
    before: str | None
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    mean_ms: float
    dominated_by: tuple[str, ...]
    """Labels of points at least as good on all three measured values and better on one; values, not intervals."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """All points, in the order given."""

    name: str
    suite_hash: str
    points: tuple[Point, ...]


def frontier(rows: Sequence[Row], items: Sequence[Item], labels: Mapping[str, str], before: Mapping[str, str], *, name: str) -> Frontier:
    """Place the variants of `labels` (variant -> label); `before` names what each came from. Raises DataError without contrast twins."""
    cells = Cells(rows, items)
    found = []
    for variant, label in labels.items():
        picture = refusals(cells, variant)
        if picture is None:
            raise DataError(f"frontier: {variant} has no scored items on both '{SAFE}' and '{UNSAFE}'; wanted contrast twins")
        values_N, clusters, ids = _capability(cells, variant)
        old_N = _capability(cells, before[variant])[0] if variant in before else values_N
        moved = [(i, a >= 0.5, b >= 0.5) for i, a, b in zip(ids, old_N, values_N) if not np.isnan(a + b)]
        found.append(Point(
            variant, label, picture, _mean(values_N, clusters), before.get(variant), tuple(i for i, a, b in moved if a and not b),
            tuple(i for i, a, b in moved if b and not a), spending(cells, variant).mean_ms, ()))
    return Frontier(name, suite_hash(items), tuple(_with_dominators(p, found) for p in found))


def _capability(cells: Cells, variant: str) -> tuple[Floats, list[str], list[str]]:
    axes = [axis for axis in cells.axes if axis not in (SAFE, UNSAFE)]
    values = [cells.values_N(variant, axis) for axis in axes]
    items = [item for axis in axes for item in cells.axes[axis]]
    return np.concatenate(values) if values else np.array([]), [item.cluster for item in items], [item.id for item in items]


def _mean(values_N: Floats, clusters: Sequence[str]) -> Mean:
    scored = ~np.isnan(values_N)
    if not scored.any():
        return Mean(None, None, None, 0, 0, len(values_N))
    found = statistics.mean(values_N[scored], np.array(clusters)[scored])
    return Mean(found.value, found.low, found.high, found.n, found.clusters, int((~scored).sum()))


def _with_dominators(point: Point, points: Sequence[Point]) -> Point:
    mine = _goods(point)
    above = [p.label for p in points if p is not point and all(a >= b for a, b in zip(_goods(p), mine)) and _goods(p) != mine]
    return replace(point, dominated_by=tuple(above))


def _goods(point: Point) -> tuple[float, float, float]:
    r = point.refusals
    return r.safe_compliance.value or 0.0, r.unsafe_refusal.value or 0.0, point.capability.value or 0.0
