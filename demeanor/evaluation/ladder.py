"""What each layer did: every rung of the ladder against the one below, every layer against the whole without it.

In: rows, items, and the caller's order of steps. Out: one `Result` tree, nothing rendered. All comparisons are paired on the
same items, clustered, and corrected over their family; a comparison whose interval covers zero is "no change shown".
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from demeanor.errors import DataError
from demeanor.evaluation import statistics
from demeanor.evaluation.calibration import stated
from demeanor.evaluation.cells import Cells, value
from demeanor.evaluation.curves import curve
from demeanor.evaluation.doubts import doubts
from demeanor.evaluation.refusals import refusals
from demeanor.evaluation.result import (
    Answer,
    Axis,
    Change,
    Comparison,
    Cost,
    Delta,
    Mean,
    Question,
    Result,
    Scalar,
    Variant,
    Verdict,
)
from demeanor.evaluation.row import Row
from demeanor.evaluation.spending import spending
from demeanor.evaluation.stability import stability
from demeanor.evaluation.suite import suite_hash
from demeanor.types import Item

ALPHA = 1 - statistics.CONFIDENCE


def ladder(
    rows: Sequence[Row],
    items: Sequence[Item],
    *,
    name: str,
    steps: Sequence[str],
    without: Mapping[str, str],
    axes: Mapping[str, str] | None = None,
    settings: Mapping[str, Scalar] | None = None,
    training: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    commands: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> Result:
    """Analyse an evaluation. `steps`: variant ids in ladder order; `without`: layer -> variant that lacks only it.

    `beside`: variants that are no part of the stack; the last step is compared with each of them, as a family of its own.
    `axes` orders and explains the axes; `training` holds ledger rows by stage. Raises DataError if a named variant has no rows.
    """
    if not steps:
        raise DataError("a ladder needs at least one step")
    cells = Cells(rows, items)
    used = list(dict.fromkeys([*steps, *without.values(), *beside]))
    labels = label_steps(steps, without) | {variant: variant for variant in beside}
    order = [axis for axis in (axes or {}) if axis in cells.axes] + [
        axis for axis in cells.axes if axis not in (axes or {})
    ]
    climbed = _family(cells, order, [(labels[b].lstrip("+"), a, b) for a, b in itertools.pairwise(steps)])
    removed = _family(
        cells, order, [(layer, variant, steps[-1]) for layer, variant in without.items()], with_changes=False
    )
    others = _family(cells, order, [(variant, variant, steps[-1]) for variant in beside])
    whole = _family(cells, order, [("everything", steps[0], steps[-1])][: len(steps) - 1], with_changes=False)
    return Result(
        name=name,
        items=len(items),
        seeds=tuple(sorted({row.seed for row in rows})),
        suite_hash=suite_hash(items),
        confidence=statistics.CONFIDENCE,
        variants=tuple(Variant(v, labels[v], _stack_key(cells, v)) for v in used),
        axes=tuple(_axis(cells, axis, (axes or {}).get(axis, ""), used, climbed) for axis in order),
        steps=climbed,
        whole=whole[0] if whole else None,
        without=removed,
        costs=_costs(climbed, removed),
        refusals=tuple(found for v in used if (found := refusals(cells, v))),
        spending=tuple(spending(cells, v) for v in used),
        questions={
            i: _question(cells.items[i])
            for i in dict.fromkeys(c.item_id for x in (*climbed, *others) for c in x.changes)
        },
        curves=tuple(curve(stage, ledger) for stage, ledger in (training or {}).items()),
        settings=dict(settings or {}),
        commands=tuple(commands),
        warnings=tuple(doubts(cells, used)),
        beside=others,
        confidences=tuple(told for v in used if (told := stated(v, _answers(cells, v)))),
        steadiness=tuple(x for v in used for x in stability(rows, items, v)),
    )


def _answers(cells: Cells, variant: str) -> list[tuple[str, str]]:
    """What the scorers took from a variant's scored answers, with clusters; of several seeds the first: one item's are not independent."""
    firsts = (min(rows, key=lambda row: row.seed) for rows in cells.of(variant).values())
    return [(row.answer, row.cluster) for row in firsts if row.value is not None]


def label_steps(steps: Sequence[str], without: Mapping[str, str]) -> dict[str, str]:
    """Short labels from model ids: `base`, then `+x` for the part that each rung adds, `-x` for everything but x."""
    labels: dict[str, str] = {variant: f"-{layer}" for layer, variant in without.items()}
    before: list[str] = []
    for number, variant in enumerate(steps):
        _, colon, tail = variant.partition(":")
        parts = tail.split("+") if colon else [*before, *(x for x in without if x not in before)]
        new = [part for part in parts if part not in before]
        short = "+".join(new) if new else variant
        labels[variant] = f"+{short}" if number else short
        before = list(dict.fromkeys([*before, *parts]))
    return labels


# ---- comparisons ----


def _family(
    cells: Cells, axes: Sequence[str], pairs: Sequence[tuple[str, str, str]], *, with_changes: bool = True
) -> tuple[Comparison, ...]:
    """Compare each (name, before, after) on every axis and correct the p-values over all of them together."""
    raw = {(name, axis): _delta(cells, axis, before, after) for name, before, after in pairs for axis in axes}
    tested = {key: delta.p for key, delta in raw.items() if delta.p is not None}
    corrected = dict(zip(tested, statistics.holm(list(tested.values()))))
    return tuple(
        Comparison(
            name,
            before,
            after,
            tuple(_judged(raw[name, axis], corrected.get((name, axis))) for axis in axes),
            tuple(change for axis in axes for change in _changes(cells, axis, before, after))
            if with_changes
            else (),
        )
        for name, before, after in pairs
    )


def _delta(cells: Cells, axis: str, before: str, after: str) -> Delta:
    a_N, b_N = cells.values_N(before, axis), cells.values_N(after, axis)
    both = ~(np.isnan(a_N) | np.isnan(b_N))
    clusters_N = cells.clusters_N(axis)[both]
    if not both.any():
        return Delta(axis, None, None, None, None, None, None, 0, 0, 0, 0, None, False, "not measured")
    found = statistics.paired(a_N[both], b_N[both], clusters_N)
    was, now = a_N[both] >= 0.5, b_N[both] >= 0.5
    fixed, broken = int((~was & now).sum()), int((was & ~now).sum())
    return Delta(
        axis,
        found.value,
        found.low,
        found.high,
        found.p,
        None,
        statistics.mcnemar_midp(fixed, broken),
        found.n,
        found.clusters,
        fixed,
        broken,
        statistics.minimal_detectable(found),
        shown=found.low is not None and found.high is not None and (found.low > 0 or found.high < 0),
        verdict="not measured",
    )


def _judged(delta: Delta, p_holm: float | None) -> Delta:
    """The delta with its corrected p-value and the verdict that follows from it."""
    verdict: Verdict = "not measured"
    if p_holm is not None and delta.value is not None:
        verdict = "no change shown"
        if p_holm < ALPHA and delta.shown:
            verdict = "better" if delta.value > 0 else "worse"
    return replace(delta, p_holm=p_holm, verdict=verdict)


def _changes(cells: Cells, axis: str, before: str, after: str) -> list[Change]:
    """Items of an axis that crossed one half, breaks first: those are what somebody must look at."""
    found = []
    for item in cells.axes[axis]:
        was, now = cells.of(before).get(item.id, []), cells.of(after).get(item.id, [])
        a, b = value(was), value(now)
        if np.isnan(a) or np.isnan(b) or (a >= 0.5) == (b >= 0.5):
            continue
        old, new = _telling(was, now)
        found.append(Change(item.id, axis, b > a, _answer(old), _answer(new)))
    return sorted(found, key=lambda change: change.fixed)


def _telling(before: Sequence[Row], after: Sequence[Row]) -> tuple[Row, Row]:
    """The first seed that shows the change."""
    for old in before:
        for new in after:
            if old.seed == new.seed and old.value != new.value:
                return old, new
    return before[0], after[0]


def _answer(row: Row) -> Answer:
    return Answer(row.text, 0.0 if row.value is None else row.value, row.refused_by, row.rule, row.events)


def _costs(climbed: Sequence[Comparison], removed: Sequence[Comparison]) -> tuple[Cost, ...]:
    """Every delta whose own interval lies below zero, worst first; not hidden behind the correction, which is noted beside it."""
    found = [
        Cost("step", x.name, d, d.verdict == "worse")
        for x in climbed
        for d in x.deltas
        if d.shown and (d.value or 0) < 0
    ]
    found += [
        Cost("layer", x.name, d, d.verdict == "worse")
        for x in removed
        for d in x.deltas
        if d.shown and (d.value or 0) < 0
    ]
    return tuple(sorted(found, key=lambda cost: cost.delta.value or 0.0))


# ---- the rest of the tree ----


def _axis(
    cells: Cells, axis: str, about: str, variants: Sequence[str], climbed: Sequence[Comparison]
) -> Axis:
    mine = [d.detectable for x in climbed for d in x.deltas if d.axis == axis and d.detectable is not None]
    clusters_N = cells.clusters_N(axis)
    return Axis(
        axis,
        about,
        len(clusters_N),
        len(set(clusters_N.tolist())),
        max(mine, default=None),
        {v: mean(cells, v, axis) for v in variants},
    )


def mean(cells: Cells, variant: str, axis: str) -> Mean:
    """The mean of an axis on a variant over its scored items."""
    x_N = cells.values_N(variant, axis)
    scored = ~np.isnan(x_N)
    unscored = int((~scored).sum())
    if not scored.any():
        return Mean(None, None, None, 0, 0, unscored)
    found = statistics.mean(x_N[scored], cells.clusters_N(axis)[scored])
    return Mean(found.value, found.low, found.high, found.n, found.clusters, unscored)


def _question(item: Item) -> Question:
    target = ", ".join(
        f"{k}: {' | '.join(map(str, v)) if isinstance(v, list | tuple) else v}"
        for k, v in item.target.items()
    )
    messages = tuple((m.role, m.content) for m in item.messages)
    return Question(item.axis, item.cluster, item.tags, messages, f"{item.scorer} ({target})")


def _stack_key(cells: Cells, variant: str) -> str:
    return next(iter(cells.of(variant).values()))[0].stack_key
