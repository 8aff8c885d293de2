"""What a reader must know before believing a result: failed answers, dead axes, too few clusters. Sentences, from the cells.

What is true of several variants or axes is said once, with their names.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from demeanor.evaluation.cells import Cells

FEW_CLUSTERS = 10
MANY_UNSCORED = 0.1
NAMED = 4
"""Names that a sentence lists; of more it says how many."""
LONGEST = 120
"""Characters of a reason."""


def doubts(cells: Cells, variants: Sequence[str]) -> Iterator[str]:
    """One sentence per reason for doubt, the worst first."""
    for variant in variants:
        rows = [row for group in cells.of(variant).values() for row in group]
        errors = Counter(row.error for row in rows if row.error)
        if errors:
            yield (
                f"{variant}: {sum(errors.values())} of {len(rows)} answers failed and are left out "
                f"(most often: {errors.most_common(1)[0][0]})."
            )
        absent = len(cells.items) - len(cells.of(variant))
        if absent:
            yield f"{variant}: {absent} of {len(cells.items)} items were not run."
    yield from _unscored(cells, variants)
    yield from _dead(cells, variants)
    yield from _thin(cells)


def _unscored(cells: Cells, variants: Sequence[str]) -> Iterator[str]:
    """Axes where the scorer had no opinion on many answers (an empty one, mostly): their comparisons rest on the others."""
    for axis, items in cells.axes.items():
        alike: dict[tuple[int, int, str], list[str]] = defaultdict(list)
        causes: Counter[str] = Counter()
        for variant in variants:
            rows = [row for item in items for row in cells.of(variant).get(item.id, ()) if not row.error]
            empty = [row.explanation for row in rows if row.value is None]
            causes.update(empty)
            if rows and len(empty) > MANY_UNSCORED * len(rows):
                kind = Counter(why.partition(": ")[0] for why in empty).most_common(1)[0][0]
                alike[len(empty), len(rows), kind].append(variant)
        for (empty_rows, all_rows, kind), whose in alike.items():
            why = next(cause for cause, _ in causes.most_common() if cause.partition(": ")[0] == kind)
            who = "every variant" if len(whose) == len(variants) > 1 else _names(whose)
            reason = f" (most often: {textwrap.shorten(why, LONGEST, placeholder=' ...')})" if why else ""
            yield f"{who} on {_name(axis)}: {empty_rows} of {all_rows} answers have no score{reason} and are left out of every comparison."


def _dead(cells: Cells, variants: Sequence[str]) -> Iterator[str]:
    """Axes on which nobody earned anything."""
    dead = []
    for axis in cells.axes:
        scores = np.concatenate([cells.values_N(variant, axis) for variant in variants])
        if np.isfinite(scores).any() and np.nanmax(scores) == 0.0:
            dead.append(_name(axis))
    if dead:
        yield f"{_names(dead)}: every variant scores exactly 0 on every item; usually a broken target or scorer, not a bad model."


def _thin(cells: Cells) -> Iterator[str]:
    """Axes with few clusters, those with the fewest first."""
    thin: dict[int, list[str]] = defaultdict(list)
    for axis in cells.axes:
        clusters = len(set(cells.clusters_N(axis).tolist()))
        if clusters < FEW_CLUSTERS:
            thin[clusters].append(_name(axis))
    for clusters, axes in sorted(thin.items()):
        rest = f"intervals rest on {clusters - 1} degree{'s' * (clusters != 2)} of freedom"
        yield (
            f"{_names(axes)}: only {clusters} cluster{'s' * (clusters != 1)} of items, "
            f"so {'no interval is possible' if clusters == 1 else rest}."
        )


def _name(axis: str) -> str:
    return axis.replace("_", " ")


def _names(names: Iterable[str]) -> str:
    """`a, b and c`; of many the first few and how many more."""
    listed = list(names)
    if len(listed) > NAMED + 1:
        listed = [*listed[:NAMED], f"{len(listed) - NAMED} more"]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
