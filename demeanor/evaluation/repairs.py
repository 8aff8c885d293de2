"""What one intervention does: failing items repaired, passing controls broken, the net change of all, axis by axis, and its cost.

In: an item's rows under the intervention and as it was. Out: a Repair with intervals, then p-values corrected over all of them. The net
weighs controls up to what they stand for, so an intervention that flips answers at random has a net of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy import special

from demeanor.evaluation import statistics
from demeanor.evaluation.cells import Cells
from demeanor.evaluation.statistics import Floats
from demeanor.types import Item

Kind: TypeAlias = Literal[
    "again",
    "off",
    "stage",
    "rule",
    "template",
    "decoding",
    "prompt",
    "examples",
    "passage",
    "tools",
    "reference",
]
AS_IS = "as it is"
ALPHA = 1 - statistics.CONFIDENCE
FEW = 5
"""Fewer moved clusters than this prove nothing: their signs alone come out so with probability 2^-m >= 0.0625."""
FAMILIES = 2
"""All items together, and axis by axis: two families of tests, each corrected by Holm, which share the 5%."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """A change to replay: its name, its kind, the layer it accuses if it repairs (`""`: none), and what to do then."""

    name: str
    kind: Kind
    layer: str
    advice: str


class Net(NamedTuple):
    """A weighted mean change with its interval and p against zero."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class AxisNet:
    """What an intervention did on one axis."""

    axis: str
    failing: int
    repaired: int
    controls: int
    broken: int
    net: float | None
    net_low: float | None
    net_high: float | None
    p: float | None
    p_corrected: float | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """What one intervention did: failing items made right, controls made wrong, and the change of the whole population of items.

    `net` weighs the controls up to all that pass, so an intervention that flips answers at random has a net of zero; `p` and
    `p_corrected` (Holm over the interventions) test it. Costs are differences to the stack as it is, per answer.
    """

    name: str
    kind: Kind
    layer: str
    advice: str
    failing: int
    repaired: int
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    controls: int
    broken: int
    broken_rate: float | None
    broken_low: float | None
    broken_high: float | None
    net: float | None
    net_low: float | None
    net_high: float | None
    p: float | None
    p_corrected: float | None
    prompt_tokens: float
    completion_tokens: float
    ms: float
    axes: tuple[AxisNet, ...]
    repaired_ids: tuple[str, ...]
    broken_ids: tuple[str, ...]
    shown: bool = False
    """Whether it makes the whole better: the net's interval lies above zero and the corrected p agrees."""

    @property
    def helped(self) -> tuple[AxisNet, ...]:
        """Axes that it is shown to make better, without making the whole worse."""
        return tuple(a for a in self.axes if a.shown and (self.net or 0.0) > 0)


def right(cells: Cells, variant: str, items: Sequence[Item]) -> Floats:
    """1 where the variant has an item right, 0 where wrong, NaN where unscored."""
    place = {item.id: (item.axis, n) for axis in cells.axes.values() for n, item in enumerate(axis)}
    by_axis = {axis: cells.values_N(variant, axis) for axis in {item.axis for item in items}}
    values_N = np.array([by_axis[place[item.id][0]][place[item.id][1]] for item in items], dtype=float)
    return np.where(np.isnan(values_N), np.nan, (values_N >= 0.5).astype(float))


def repair(
    cells: Cells,
    x: Intervention,
    failing: Sequence[Item],
    controls: Sequence[Item],
    population: tuple[int, int],
) -> Repair:
    """Judge one intervention; `population` is how many items fail and pass in all, of which those given are samples."""
    up_N, down_N = right(cells, x.name, failing), 1 - right(cells, x.name, controls)
    rate, broken = share(up_N, failing), share(down_N, controls)
    items, d_N = [*failing, *controls], np.concatenate([up_N, -down_N])
    weights_N = np.repeat(
        [population[0] / max(1, len(failing)), population[1] / max(1, len(controls))],
        [len(failing), len(controls)],
    )
    net = _net(d_N, weights_N, items)
    spent, before = _cost(cells, x.name), _cost(cells, AS_IS)
    return Repair(
        x.name,
        x.kind,
        x.layer,
        x.advice,
        int((~np.isnan(up_N)).sum()),
        int(np.nansum(up_N)),
        *rate,
        int((~np.isnan(down_N)).sum()),
        int(np.nansum(down_N)),
        *broken,
        *net,
        None,
        spent[0] - before[0],
        spent[1] - before[1],
        spent[2] - before[2],
        _axes(d_N, weights_N, items, len(failing)),
        tuple(i.id for i, v in zip(failing, up_N) if v == 1),
        tuple(i.id for i, v in zip(controls, down_N) if v == 1),
    )


def _axes(d_N: Floats, weights_N: Floats, items: Sequence[Item], failing: int) -> tuple[AxisNet, ...]:
    """The same by axis, for the axes of failing items."""
    found = []
    for axis in dict.fromkeys(item.axis for item in items[:failing]):
        here = np.array([item.axis == axis for item in items], dtype=bool)
        up_N, down_N = d_N[:failing][here[:failing]], -d_N[failing:][here[failing:]]
        counts = (
            int((~np.isnan(up_N)).sum()),
            int(np.nansum(up_N)),
            int((~np.isnan(down_N)).sum()),
            int(np.nansum(down_N)),
        )
        net = _net(d_N[here], weights_N[here], [item for item, one in zip(items, here) if one])
        found.append(AxisNet(axis, *counts, *net))
    return tuple(found)


def share(values_N: Floats, items: Sequence[Item]) -> tuple[float | None, float | None, float | None]:
    """A share with its cluster-robust Wilson interval; items without a score are left out."""
    kept = ~np.isnan(values_N)
    if not kept.any():
        return None, None, None
    found = statistics.mean(values_N[kept], np.array([i.cluster for i in items])[kept])
    return found.value, found.low, found.high


def _net(d_N: Floats, weights_N: Floats, items: Sequence[Item]) -> Net:
    """The weighted mean change with its cluster-robust t interval and p; items without a score are left out.

    Clusters in which nothing moves say nothing of the spread of those in which something does, so the degrees of freedom are
    those of the m clusters that moved. Fewer than two: no interval; fewer than `FEW`: p is at least 2^-m.
    """
    kept = ~np.isnan(d_N)
    if not kept.any() or not weights_N[kept].sum():
        return Net(None, None, None, None)
    values_N = (d_N * weights_N)[kept] * kept.sum() / weights_N[kept].sum()
    clusters = [item.cluster for item, one in zip(items, kept) if one]
    value, se = float(values_N.mean()), statistics.cluster_se(values_N, clusters)
    moved = len({c for c, v in zip(clusters, values_N) if v})
    if se is None or moved < 2:
        return Net(value, None, None, None)
    if se < 1e-12:
        return Net(value, value, value, 0.5**moved)
    t = float(special.stdtrit(moved - 1, (1 + statistics.CONFIDENCE) / 2))
    p = 2.0 * float(special.stdtr(moved - 1, -abs(value) / se))
    return Net(
        value, max(-1.0, value - t * se), min(1.0, value + t * se), p if moved >= FEW else max(p, 0.5**moved)
    )


def _cost(cells: Cells, variant: str) -> tuple[float, float, float]:
    """Mean prompt tokens, completion tokens and milliseconds of an answer, failed ones left out."""
    rows = [row for of_item in cells.of(variant).values() for row in of_item if not row.error]
    if not rows:
        return math.nan, math.nan, math.nan
    return (
        float(np.mean([r.prompt_tokens for r in rows])),
        float(np.mean([r.completion_tokens for r in rows])),
        float(np.mean([r.work_ms for r in rows])),
    )


def corrected(repairs: Sequence[Repair]) -> tuple[Repair, ...]:
    """Holm over the interventions, and over interventions and axes; the same stack again is no candidate and in neither family."""
    real = [r for r in repairs if r.kind != "again"]
    whole = iter(statistics.holm([r.p for r in real if r.p is not None]))
    by_axis = iter(statistics.holm([a.p for r in real for a in r.axes if a.p is not None]))

    def axis(a: AxisNet) -> AxisNet:
        if a.p is None:
            return a
        p = min(1.0, FAMILIES * next(by_axis))
        return replace(a, p_corrected=p, shown=p < ALPHA and a.net_low is not None and a.net_low > 0)

    found = []
    for r in repairs:
        if r.kind == "again":
            found.append(r)
            continue
        p = None if r.p is None else min(1.0, FAMILIES * next(whole))
        shown = p is not None and p < ALPHA and r.net_low is not None and r.net_low > 0
        found.append(replace(r, axes=tuple(map(axis, r.axes)), p_corrected=p, shown=shown))
    return tuple(found)
