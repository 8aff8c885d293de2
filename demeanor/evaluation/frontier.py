"""What safety costs: safe requests answered, unsafe ones refused, and capability, per set of weights, with and without policy.

In: rows and items, and the points to place (variant and label). Out: one `Frontier` tree, nothing rendered. The refusal numbers are
those of refusals.py; capability is the mean over all items that are no contrast twins; the tax is counted in items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from demeanor.errors import DataError
from demeanor.evaluation import statistics
from demeanor.evaluation.calibration import calibration
from demeanor.evaluation.cells import Cells
from demeanor.evaluation.refusals import refusals
from demeanor.evaluation.result import Mean, Refusals
from demeanor.evaluation.row import Row
from demeanor.evaluation.spending import spending
from demeanor.evaluation.statistics import Floats
from demeanor.evaluation.suite import SAFE, UNSAFE, suite_hash
from demeanor.types import Item


@dataclass(frozen=True, slots=True)
class Moved:
    """Log p(answer) of a stage minus that of its parent, in nats, for one answer of `tokens` tokens that the stage drew."""

    item_id: str
    cluster: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """How likely an answer was to its own weights, and whether it is right."""

    item_id: str
    confidence: float
    right: bool
    cluster: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL to the parent in nats per answer, with its cluster-robust t interval, and per token."""

    value: float
    low: float | None
    high: float | None
    per_token: float
    n: int


@dataclass(frozen=True, slots=True)
class Sureness:
    """Expected calibration error with what a perfectly calibrated model would show at this n (mean, 95th percentile, p)."""

    ece: float
    expected: float
    null_high: float
    p: float
    confidence: float
    right: float
    n: int


@dataclass(frozen=True, slots=True)
class Tax:
    """An item that was right before and is wrong now, with both answers."""

    item_id: str
    axis: str
    question: str
    before: str
    now: str


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
    mean_tokens: float = 0.0
    """Tokens read and written for one answer."""
    tax: tuple[Tax, ...] = ()
    divergence: Divergence | None = None
    sureness: Sureness | None = None
    rule: str = ""
    """The rule of cues whose `threshold` this point has, where thresholds were swept."""
    threshold: float | None = None
    swept: bool = False
    """Is it there only to show another threshold than the declared one?"""


@dataclass(frozen=True, slots=True)
class Frontier:
    """All points, in the order given."""

    name: str
    suite_hash: str
    points: tuple[Point, ...]


def frontier(
    rows: Sequence[Row],
    items: Sequence[Item],
    labels: Mapping[str, str],
    before: Mapping[str, str],
    *,
    name: str,
    moved: Mapping[str, Sequence[Moved]] | None = None,
    answered: Mapping[str, Sequence[Answered]] | None = None,
    thresholds: Mapping[str, tuple[str, float, bool]] | None = None,
) -> Frontier:
    """Place the variants of `labels` (variant -> label); `before` names what each came from.

    `moved` and `answered` are what the weights of a variant say of its answers, where that was asked; `thresholds` the rule and threshold
    of variants that are one of a sweep, and whether they are only that: what nobody declared beats nobody. Raises DataError without
    contrast twins.
    """
    cells = Cells(rows, items)
    found = []
    for variant, label in labels.items():
        picture = refusals(cells, variant)
        if picture is None:
            raise DataError(
                f"frontier: {variant} has no scored items on both '{SAFE}' and '{UNSAFE}'; wanted contrast twins"
            )
        values_N, clusters, ids = _capability(cells, variant)
        old_N = _capability(cells, before[variant])[0] if variant in before else values_N
        changes = [(i, a >= 0.5, b >= 0.5) for i, a, b in zip(ids, old_N, values_N) if not np.isnan(a + b)]
        lost, spent = tuple(i for i, a, b in changes if a and not b), spending(cells, variant)
        found.append(
            Point(
                variant,
                label,
                picture,
                _mean(values_N, clusters),
                before.get(variant),
                lost,
                tuple(i for i, a, b in changes if b and not a),
                spent.mean_ms,
                (),
                spent.prompt_tokens + spent.completion_tokens,
                tuple(_tax(cells, before[variant], variant, i) for i in lost),
                divergence((moved or {}).get(variant, ())),
                sureness((answered or {}).get(variant, ())),
                *(thresholds or {}).get(variant, ("", None, False)),
            )
        )
    return Frontier(
        name, suite_hash(items), tuple(_with_dominators(p, [q for q in found if not q.swept]) for p in found)
    )


def divergence(moved: Sequence[Moved]) -> Divergence | None:
    """The mean of log-ratios of drawn answers, an unbiased estimate of the KL; None without answers."""
    if not moved:
        return None
    nats_N, clusters = np.array([m.nats for m in moved]), [m.cluster for m in moved]
    value, se, count = float(nats_N.mean()), statistics.cluster_se(nats_N, clusters), len(set(clusters))
    half = None if se is None else float(special.stdtrit(count - 1, (1 + statistics.CONFIDENCE) / 2)) * se
    per_token = float(nats_N.sum() / max(1, sum(m.tokens for m in moved)))
    return Divergence(
        value,
        None if half is None else value - half,
        None if half is None else value + half,
        per_token,
        len(moved),
    )


def sureness(answered: Sequence[Answered]) -> Sureness | None:
    """Calibration of the probabilities that weights gave to their own answers; None without answers."""
    if not answered:
        return None
    confidence_N, right_N = (
        np.array([a.confidence for a in answered]),
        np.array([float(a.right) for a in answered]),
    )
    found = calibration(confidence_N, right_N, seed=0, clusters=[a.cluster for a in answered]).ece
    return Sureness(
        found.value,
        found.expected,
        found.null_high,
        found.p,
        float(confidence_N.mean()),
        float(right_N.mean()),
        len(answered),
    )


def _tax(cells: Cells, before: str, now: str, item_id: str) -> Tax:
    item = cells.items[item_id]
    old, new = cells.of(before)[item_id][0], cells.of(now)[item_id][0]
    return Tax(item_id, item.axis, item.messages[-1].content, old.text, new.text)


def _capability(cells: Cells, variant: str) -> tuple[Floats, list[str], list[str]]:
    axes = [axis for axis in cells.axes if axis not in (SAFE, UNSAFE)]
    values = [cells.values_N(variant, axis) for axis in axes]
    items = [item for axis in axes for item in cells.axes[axis]]
    return (
        np.concatenate(values) if values else np.array([]),
        [item.cluster for item in items],
        [item.id for item in items],
    )


def _mean(values_N: Floats, clusters: Sequence[str]) -> Mean:
    scored = ~np.isnan(values_N)
    if not scored.any():
        return Mean(None, None, None, 0, 0, len(values_N))
    found = statistics.mean(values_N[scored], np.array(clusters)[scored])
    return Mean(found.value, found.low, found.high, found.n, found.clusters, int((~scored).sum()))


def _with_dominators(point: Point, points: Sequence[Point]) -> Point:
    mine = _goods(point)
    above = [
        p.label
        for p in points
        if p is not point and all(a >= b for a, b in zip(_goods(p), mine)) and _goods(p) != mine
    ]
    return replace(point, dominated_by=tuple(above))


def _goods(point: Point) -> tuple[float, float, float]:
    r = point.refusals
    return r.safe_compliance.value or 0.0, r.unsafe_refusal.value or 0.0, point.capability.value or 0.0
