"""Cumulative ablation (the ladder): what each added layer changed on the same items, and what the whole loses without each layer.

In: a stack, or rows and items. Out: a `Result`: paired differences with intervals, corrected over the family of comparisons; the items
that changed; training curves; caveats. It renders nothing.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from demeanor.core.errors import DataError
from demeanor.core.files import origin
from demeanor.core.types import Item
from demeanor.evaluation import statistics, suites
from demeanor.evaluation.experiment import CONCURRENCY, Experiment
from demeanor.evaluation.external import external_models, probe
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.judge import ensure
from demeanor.evaluation.profile import cost_of, mean_of, refusals, robustness, stated
from demeanor.evaluation.result import (
    TRAINED,
    Answer,
    Axis,
    Change,
    Comparison,
    Curve,
    Delta,
    Question,
    Regression,
    Result,
    Scalar,
    Variant,
    Verdict,
)
from demeanor.evaluation.result_rows import PairedTable, Row, value
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.training_report import is_online_metric, is_rounding_metric
from demeanor.stack.stack import Stack

POINTS = 120
SHOWN = ("loss", "accurac", "margin")


def curve(name: str, ledger: Sequence[Mapping[str, object]]) -> Curve:
    """Losses, accuracies, margins and what an online stage measured of its answers, each averaged into at most `POINTS` points."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in ledger:
        step = row.get("step")
        for metric, number in row.items():
            if (
                _drawn(metric)
                and isinstance(step, int | float)
                and isinstance(number, int | float)
                and math.isfinite(number)
            ):
                lines.setdefault(metric, []).append((float(step), float(number)))
    return Curve(name, {metric: _thin_points(points) for metric, points in lines.items()})


def _drawn(metric: str) -> bool:
    known = any(word in metric for word in SHOWN) or is_online_metric(metric)
    return is_rounding_metric(metric) or (known and not metric.endswith(("/low", "/high")))


def _thin_points(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    parts = np.array_split(np.array(points), min(POINTS, len(points)))
    return tuple((float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts)


FEW_CLUSTERS = 10
MANY_UNSCORED = 0.1
NAMED = 4
"""Names that a sentence lists; of more it says how many."""
LONGEST = 120
"""Characters of a reason."""


def caveats(cells: PairedTable, variants: Sequence[str]) -> Iterator[str]:
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


def _unscored(cells: PairedTable, variants: Sequence[str]) -> Iterator[str]:
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


def _dead(cells: PairedTable, variants: Sequence[str]) -> Iterator[str]:
    """Axes on which nobody earned anything."""
    dead = []
    for axis in cells.axes:
        scores = np.concatenate([cells.values_N(variant, axis) for variant in variants])
        if np.isfinite(scores).any() and np.nanmax(scores) == 0.0:
            dead.append(_name(axis))
    if dead:
        yield f"{_names(dead)}: every variant scores exactly 0 on every item: a broken target or scorer, or too hard for all of them; read some answers."


def _thin(cells: PairedTable) -> Iterator[str]:
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
    external: Sequence[str] = (),
) -> Result:
    """Analyse an evaluation. `steps`: variant ids in ladder order; `without`: layer -> variant that lacks only it.

    `external`: models that are no part of the stack; the last step is compared with each of them, as a family of its own.
    `axes` orders and explains the axes; `training` holds ledger rows by stage. Raises DataError if a named variant has no rows.
    """
    if not steps:
        raise DataError("a ladder needs at least one step")
    cells = PairedTable(rows, items)
    used = list(dict.fromkeys([*steps, *without.values(), *external]))
    labels = label_steps(steps, without) | {model: model for model in external}
    order = [axis for axis in (axes or {}) if axis in cells.axes] + [
        axis for axis in cells.axes if axis not in (axes or {})
    ]
    compared = _family(cells, order, [(labels[b].lstrip("+"), a, b) for a, b in itertools.pairwise(steps)])
    removed = _family(
        cells, order, [(layer, variant, steps[-1]) for layer, variant in without.items()], with_changes=False
    )
    others = _family(cells, order, [(model, model, steps[-1]) for model in external])
    whole = _family(cells, order, [("everything", steps[0], steps[-1])][: len(steps) - 1], with_changes=False)
    return Result(
        name=name,
        items=len(items),
        seeds=tuple(sorted({row.seed for row in rows})),
        suite_hash=suite_hash(items),
        confidence=statistics.CONFIDENCE,
        variants=tuple(Variant(v, labels[v], _stack_key(cells, v)) for v in used),
        axes=tuple(_axis(cells, axis, (axes or {}).get(axis, ""), used, compared) for axis in order),
        steps=compared,
        whole=whole[0] if whole else None,
        without=removed,
        regressions=_regressions(compared, removed),
        failed=len({row.identity for row in rows if row.error}),
        answers=len({row.identity for row in rows}),
        refusals=tuple(found for v in used if (found := refusals(cells, v))),
        cost=tuple(spent for v in used if (spent := cost_of(cells, v))),
        questions={
            i: _question(cells.items[i])
            for i in dict.fromkeys(c.item_id for x in (*compared, *others) for c in x.changes)
        },
        curves=tuple(curve(stage, ledger) for stage, ledger in (training or {}).items()),
        settings=dict(settings or {}),
        commands=tuple(commands),
        caveats=tuple(caveats(cells, used)),
        external=others,
        confidences=tuple(told for v in used if (told := stated(v, _answers(cells, v)))),
        robustness=tuple(x for v in used for x in robustness(cells, v)),
    )


def _answers(cells: PairedTable, variant: str) -> list[tuple[str, str]]:
    """What the scorers took from a variant's scored answers, with clusters; of several seeds the first: one item's are not independent."""
    firsts = (min(rows, key=lambda row: row.seed) for rows in cells.of(variant).values())
    return [(row.answer, row.cluster) for row in firsts if row.value is not None]


def label_steps(steps: Sequence[str], without: Mapping[str, str]) -> dict[str, str]:
    """Short labels from model ids: `base`, then `+x` for the part that each step adds, `-x` for everything but x."""
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
    cells: PairedTable,
    axes: Sequence[str],
    pairs: Sequence[tuple[str, str, str]],
    *,
    with_changes: bool = True,
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


def _delta(cells: PairedTable, axis: str, before: str, after: str) -> Delta:
    a_N, b_N = cells.values_N(before, axis), cells.values_N(after, axis)
    both = ~(np.isnan(a_N) | np.isnan(b_N))
    clusters_N = cells.clusters_N(axis)[both]
    if not both.any():
        return Delta(axis, None, None, None, None, None, None, 0, 0, 0, 0, None, False, "not measured")
    found = statistics.paired(a_N[both], b_N[both], clusters_N)
    was, now = a_N[both] >= 0.5, b_N[both] >= 0.5
    fixed, regressed = int((~was & now).sum()), int((was & ~now).sum())
    return Delta(
        axis,
        found.value,
        found.low,
        found.high,
        found.p,
        None,
        statistics.mcnemar_midp(fixed, regressed),
        found.n,
        found.clusters,
        fixed,
        regressed,
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


def _changes(cells: PairedTable, axis: str, before: str, after: str) -> list[Change]:
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


def _regressions(steps: Sequence[Comparison], removed: Sequence[Comparison]) -> tuple[Regression, ...]:
    """Every delta whose own interval lies below zero, worst first; not hidden behind the correction, which is noted beside it."""
    found = [
        Regression(
            "step" if comparison in steps else "layer", comparison.name, delta, delta.verdict == "worse"
        )
        for comparison in (*steps, *removed)
        for delta in comparison.deltas
        if delta.shown and (delta.value or 0) < 0
    ]
    return tuple(sorted(found, key=lambda regression: regression.delta.value or 0.0))


# ---- the rest of the tree ----


def _axis(
    cells: PairedTable, axis: str, about: str, variants: Sequence[str], compared: Sequence[Comparison]
) -> Axis:
    mine = [d.detectable for x in compared for d in x.deltas if d.axis == axis and d.detectable is not None]
    clusters_N = cells.clusters_N(axis)
    return Axis(
        axis,
        about,
        len(clusters_N),
        len(set(clusters_N.tolist())),
        max(mine, default=None),
        {v: mean_of(cells.values_N(v, axis), clusters_N) for v in variants},
    )


def _question(item: Item) -> Question:
    target = ", ".join(
        f"{k}: {' | '.join(map(str, v)) if isinstance(v, list | tuple) else v}"
        for k, v in item.target.items()
    )
    messages = tuple((m.role, m.content) for m in item.messages)
    return Question(item.axis, item.cluster, item.tags, messages, f"{item.scorer} ({target})")


def _stack_key(cells: PairedTable, variant: str) -> str:
    return next(iter(cells.of(variant).values()))[0].stack_key


# ---- the analysis, whole ----


def evaluate(
    stack: Stack,
    services: Services,
    folder: Path,
    *,
    variants: Sequence[str] | None = None,
    limit: int | None = None,
    name: str | None = None,
    compare: Sequence[str] = (),
    compare_keys: Sequence[str] = (),
) -> Result:
    """Measure the ladder and everything-but-one-layer (or the given model ids), other servers too, and write NAME.json."""
    steps, without = chosen_variants(stack, variants)
    chosen = {v.model_id: v for v in [*steps, *without.values()]}
    external = external_models(compare, compare_keys, taken=chosen) if compare or compare_keys else []
    with Experiment(stack, services, folder, name=name, limit=limit) as experiment:
        if experiment.judge is not None:
            ensure(experiment.judge)
        if not experiment.items:
            raise DataError(
                f"{stack.path}: evaluation.suites: no items to measure on; name a suite, such as [builtin:format]"
            )
        for model in external:
            probe(model, experiment.decoding, services.connect)
        rows = experiment.measure(chosen.values(), external)
    name = experiment.name
    compared = "".join(f" --compare {text}" for text in compare)
    found = ladder(
        rows,
        experiment.items,
        name=name,
        steps=[v.model_id for v in steps],
        without={layer: v.model_id for layer, v in without.items()},
        axes=suites.axes(stack.spec.evaluation.suites, stack.root),
        settings=_settings(stack, rows, experiment.runtime.num_generations, services.trained_on(stack)),
        training=services.training_curves(stack),
        commands=(
            f"demeanor train {stack.path}",
            f"demeanor eval {stack.path} --name {name}{compared}",
            f"demeanor report {folder / name}.json",
        ),
        external=[model.name for model in external],
    )
    found.save(folder / f"{name}.json")
    return found


def chosen_variants(stack: Stack, variants: Sequence[str] | None) -> tuple[list[Stack], dict[str, Stack]]:
    """The steps of the ladder, and by layer the variant that lacks only it; none of these where `variants` names the steps."""
    if variants:
        steps = [stack.resolve(v) for v in variants]
        again = [v for v, n in Counter(s.model_id for s in steps).items() if n > 1]
        if again:
            raise DataError(f"--variants: {', '.join(again)} stands there twice; wanted each once")
        return steps, {}
    without = {layer: stack.without(layer) for layer in stack.switches}
    if without and stack.serve != "base":
        without[stack.serve] = stack.without(stack.serve)
    return stack.ladder(), without


def _settings(stack: Stack, rows: Sequence[Row], generations: int, trained: str) -> dict[str, Scalar]:
    about, decoding, judge = origin(), stack.spec.decoding, stack.spec.evaluation.judge
    return {
        "stack": stack.spec.name,
        "stack key": stack.key(),
        "served weights": f"{stack.serve} ({stack.stage_key(stack.serve)})",
        **({TRAINED: trained} if trained else {}),
        "suites": ", ".join(stack.spec.evaluation.suites),
        "temperature": decoding.temperature,
        "max tokens": decoding.max_tokens,
        "turns measured": len(rows),
        "distinct model calls in this run": generations,
        "concurrency": CONCURRENCY,
        **({"judge": f"{judge.model} at {judge.url}"} if judge else {}),
        "git": about["git"],
        "torch": about["versions"]["torch"],
        "python": about["python"],
        "threads": about["threads"],
    }
