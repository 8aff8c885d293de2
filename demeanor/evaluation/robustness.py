"""Does an answer survive other words? Means, worst cases and flips over groups of items that say the same thing (tag `same:NAME`).

In: rows, items, a variant. Out: one `Steadiness` per axis that has such groups. An item's value is the mean over its seeds, right from
0.5; a group with an unscored wording is counted apart. It judges nothing: the gate's `stability` rule does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demeanor.core.types import Item
from demeanor.evaluation.design import clopper_pearson
from demeanor.evaluation.rows import Row
from demeanor.evaluation.table import SAME, PairedTable, value

WORDING = "wording:"
"""An item's tag `wording:NAME` says in which way it is worded."""
PLAIN = "plain"
"""The wording that the others are measured against."""
ALIKE = 1e-9


@dataclass(frozen=True, slots=True)
class Robustness:
    """What rewording does to a variant on an axis; every number is over the scored groups, None where nothing allows it."""

    axis: str
    variant: str
    groups: int
    clusters: int
    unscored: int
    """Groups left out because a wording has no score."""
    mean: float | None
    """Mean over groups of the mean over wordings: every question weighs the same."""
    worst: float | None
    """Share of groups in which every wording is right."""
    best: float | None
    """Share of groups in which some wording is right."""
    wordings: dict[str, float]
    """The mean of each wording, over the groups that have all wordings of the axis: the same questions."""
    spread: float | None
    """The best of these less the worst; None below two wordings."""
    flip_rate: float | None
    """Share of groups whose wordings are not all scored alike."""
    flip_low: float
    flip_high: float
    drop: float | None
    """1 - accuracy of the other wordings / accuracy of the plain one, over the groups that have both; below 0 where others do better."""
    flipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    cluster: str
    values: tuple[float, ...]
    wordings: tuple[str | None, ...]

    def mean_of(self, wording: str) -> float:
        return float(np.mean([v for v, w in zip(self.values, self.wordings) if w == wording]))

    def flips(self) -> bool:
        return max(self.values) - min(self.values) > ALIKE


def robustness(rows: Sequence[Row], items: Sequence[Item], variant: str) -> tuple[Robustness, ...]:
    """One entry per axis with a group of two or more, in suite order; raises DataError if the variant was never run."""
    cells = PairedTable(rows, items)
    measured = cells.of(variant)
    found = ((axis, _groups(some, measured)) for axis, some in cells.axes.items())
    return tuple(_steadiness(axis, variant, groups) for axis, groups in found if groups)


def _groups(items: Sequence[Item], rows: Mapping[str, Sequence[Row]]) -> list[_Group]:
    """The groups of an axis; a group lies in its first item's cluster."""
    members: dict[str, list[Item]] = {}
    for item in items:
        for tag in dict.fromkeys(item.tags):
            if tag.startswith(SAME):
                members.setdefault(tag.removeprefix(SAME), []).append(item)
    return [
        _Group(
            name, some[0].cluster, tuple(value(rows.get(x.id, ())) for x in some), tuple(map(_wording, some))
        )
        for name, some in members.items()
        if len(some) > 1
    ]


def _wording(item: Item) -> str | None:
    return next((tag.removeprefix(WORDING) for tag in item.tags if tag.startswith(WORDING)), None)


def _steadiness(axis: str, variant: str, groups: Sequence[_Group]) -> Robustness:
    scored = [g for g in groups if not np.isnan(g.values).any()]
    wordings = _wordings(scored)
    spread = max(wordings.values()) - min(wordings.values()) if len(wordings) > 1 else None
    flipped = tuple(g.name for g in scored if g.flips())
    low, high = _interval(len(flipped), [g.cluster for g in scored])
    return Robustness(
        axis,
        variant,
        len(scored),
        len({g.cluster for g in scored}),
        len(groups) - len(scored),
        _mean([float(np.mean(g.values)) for g in scored]),
        _mean([float(min(g.values) >= 0.5) for g in scored]),
        _mean([float(max(g.values) >= 0.5) for g in scored]),
        wordings,
        spread,
        len(flipped) / len(scored) if scored else None,
        low,
        high,
        _drop(scored),
        flipped,
    )


def _wordings(groups: Sequence[_Group]) -> dict[str, float]:
    names = dict.fromkeys(w for g in groups for w in g.wordings if w is not None)
    whole = [g for g in groups if set(names) <= set(g.wordings)]
    return {name: float(np.mean([g.mean_of(name) for g in whole])) for name in names} if whole else {}


def _drop(groups: Sequence[_Group]) -> float | None:
    """As the mean loss over the plain accuracy, which is the same and exactly 0 where nothing differs."""
    both = [g for g in groups if PLAIN in g.wordings and set(g.wordings) != {PLAIN}]
    plain = _mean([g.mean_of(PLAIN) for g in both])
    losses = [
        float(np.mean([g.mean_of(PLAIN) - v for v, w in zip(g.values, g.wordings) if w != PLAIN]))
        for g in both
    ]
    return float(np.mean(losses)) / plain if plain else None


def _interval(flips: int, clusters: Sequence[str]) -> tuple[float, float]:
    """The exact 95% interval of a flip rate; groups of one cluster as if they always flipped together.

    With n groups in clusters of m there are n^2 / sum(m^2) trials (Kish 1965 at a correlation of 1): n where each has its own.
    """
    n = len(clusters)
    if not n:
        return 0.0, 1.0
    sizes = np.unique(np.asarray(clusters), return_counts=True)[1]
    trials = max(1, n * n // int((sizes**2).sum()))
    return clopper_pearson(flips * trials // n, trials)[0], clopper_pearson(-(-flips * trials // n), trials)[
        1
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
