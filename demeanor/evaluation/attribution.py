"""Attribution: how much each layer contributes to every behaviour, from a factorial of weight stages and runtime layers.

In: rows and items of every cell, and the factorial (weight chain, switches). Out: one `Attribution` tree, nothing rendered. All views
are contrasts of the same cells on the same items, so each has a value per item: intervals resample clusters and keep an item's
cells together, p-values are the paired cluster-robust t test of those item values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from demeanor.core.errors import DataError, UsageError, unknown
from demeanor.core.table import (
    NONE,
    NOT_SCREEN,
    PAGE,
    SCREEN,
    Block,
    Figure,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    Table,
    axis_name,
    difference,
    first_of,
    number,
    plain,
    plural,
    points,
)
from demeanor.core.types import Item
from demeanor.evaluation import statistics
from demeanor.evaluation.experiment import Experiment
from demeanor.evaluation.factorial import (
    Cell,
    Factorial,
    FractionalDesign,
    Resolution,
    Weights,
    contrast,
    plan,
)
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result import save
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import Floats, benjamini_hochberg, holm
from demeanor.stack.schema import DecodingSpec
from demeanor.stack.stack import Stack

ALL = "all"
"""The axis of every item together, each item counting once."""
DRAWS = 2000
PLACES = 13
"""A contrast is rounded so far: the dust of sums would look like spread, 1e-18 with an interval that excludes zero."""
ALPHA = 1 - statistics.CONFIDENCE
Correction: TypeAlias = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True, slots=True)
class Effect:
    """One contrast on one axis: value with its cluster-bootstrap interval, p, p corrected over its family, and what it could find."""

    name: str
    axis: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    detectable: float | None
    n: int
    clusters: int
    shown: bool = False
    """Whether the interval excludes zero and the corrected p agrees."""


@dataclass(frozen=True, slots=True)
class ChangedItems:
    """Single items that a factor changed when it joined in declared order: ids made right, ids made wrong, by axis."""

    name: str
    before: str
    after: str
    fixed: dict[str, tuple[str, ...]]
    regressed: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Attribution:
    """A whole attribution; `total` is v(full) - v(base) by axis, and every factor's Shapley values sum to it."""

    name: str
    suite_hash: str
    chain: tuple[str, ...]
    switches: tuple[str, ...]
    items: int
    unscored: int
    cells: dict[str, dict[str, float]]
    total: tuple[Effect, ...]
    shapley: tuple[Effect, ...]
    waterfall: tuple[Effect, ...]
    leave_one_out: tuple[Effect, ...]
    interactions: tuple[Effect, ...]
    changed: tuple[ChangedItems, ...]
    generations: int | None = None
    """Answers that the weights wrote in the run that measured (earlier rows are not made again), of `asked`; None: not known."""
    confirmed: int = 0
    """Further distinct prompts whose answer the same weights had given elsewhere word for word, so that it was only checked."""
    asked: int = 0
    reused: int = 0
    design: str = ""
    aliases: tuple[str, ...] = ()
    suspect: str = "none"
    """The factor without which the whole is shown to be better over all items (leave-one-out, corrected); `none` where there is none."""


def attribute(
    rows: Sequence[Row],
    items: Sequence[Item],
    factorial: Factorial,
    variants: Mapping[Cell, str],
    *,
    name: str,
    generations: int | None = None,
    confirmed: int = 0,
    reused: int = 0,
    draws: int = DRAWS,
    design: FractionalDesign | None = None,
) -> Attribution:
    """Split every axis among the factors; `variants` names the variant of each cell, `design` (None: all cells) says which.

    Items without a score in any cell are left out of all. Holm corrects the Shapley values (the declared family: factors x axes);
    Benjamini-Hochberg the other views, each its own family. Raises DataError if a cell was not measured.
    """
    design = design or plan(factorial)
    if absent := [cell for cell in design.cells if cell not in variants]:
        raise DataError(
            f"attribution: {len(absent)} of {len(design.cells)} cells are not measured, first {absent[0]}"
        )
    cells = PairedTable(rows, items)
    measured = {axis: _table(cells, axis, design, variants) for axis in cells.axes}
    whole = (
        np.concatenate([values_NC for values_NC, _ in measured.values()]),
        [cluster for _, clusters in measured.values() for cluster in clusters],
    )
    tables = {ALL: whole, **measured} if len(measured) > 1 else measured
    tables = {axis: table for axis, table in tables.items() if len(table[0])}

    def view(contrasts: Mapping[str, Weights], correct: Correction) -> tuple[Effect, ...]:
        effects = []
        for axis, (values_NC, clusters) in tables.items():
            for name, wanted in contrasts.items():
                weights, span = design.weights(factorial, wanted), sum(map(abs, wanted.values())) / 2
                d_N = contrast(weights, design.cells, values_NC).round(PLACES)
                reach = max(1.0, sum(map(abs, weights.values())) / 2)
                effects.append(_effect(name, axis, d_N, clusters, span, reach, draws))
        return _corrected(effects, correct)

    factors = factorial.factors
    pairs = [pair for pair in factorial.pairs if design.pairs or pair[0] in factorial.chain]
    left_out = view({f: factorial.leave_one_out(f) for f in factors}, benjamini_hochberg)
    overall = next(iter(tables), ALL)
    steps = {f: factorial.waterfall(f) for f in factors}
    return Attribution(
        name,
        suite_hash(items),
        factorial.chain,
        factorial.switches,
        len(items),
        len(items) - len(whole[0]),
        {
            variants[cell]: {axis: float(values_NC[:, i].mean()) for axis, (values_NC, _) in tables.items()}
            for i, cell in enumerate(design.cells)
        },
        total=view({"everything": {factorial.full: 1.0, factorial.empty: -1.0}} if factors else {}, holm),
        shapley=view({f: factorial.shapley(f) for f in factors}, holm),
        waterfall=view(steps, benjamini_hochberg),
        leave_one_out=left_out,
        interactions=view({f"{a} x {b}": factorial.interaction(a, b) for a, b in pairs}, benjamini_hochberg),
        changed=tuple(
            _changed(cells, f, step, variants) for f, step in steps.items() if set(step) <= set(variants)
        ),
        generations=generations,
        confirmed=confirmed,
        asked=len(rows),
        reused=reused,
        design=design.about,
        aliases=design.aliases,
        suspect=suspect_among({e.name: (e.value, e.shown) for e in left_out if e.axis == overall}),
    )


def suspect_among(effects: Mapping[str, tuple[float, bool]]) -> str:
    """The factor whose leaving makes the whole better by most, of {factor: (whole minus the whole without it, shown)}; else `none`."""
    harmful = {factor: value for factor, (value, shown) in effects.items() if shown and value < 0}
    return min(harmful, key=lambda factor: harmful[factor]) if harmful else "none"


def _table(
    cells: PairedTable, axis: str, design: FractionalDesign, variants: Mapping[Cell, str]
) -> tuple[Floats, list[str]]:
    """Values of an axis (items x cells) and clusters, of the items that every cell has a score for."""
    values_NC = np.stack([cells.values_N(variants[cell], axis) for cell in design.cells], axis=1)
    scored_N = ~np.isnan(values_NC).any(1)
    return values_NC[scored_N], [str(c) for c in cells.clusters_N(axis)[scored_N]]


def _effect(
    name: str, axis: str, d_N: Floats, clusters: Sequence[str], span: float, reach: float, draws: int
) -> Effect:
    """One contrast from its value for each item; its truth lies in [-span, span], which a fraction's least squares do not know.

    The items' values lie in [-reach, reach], [-2, 2] for an interaction; `paired` reads [-1, 1].
    """
    found = statistics.paired(np.zeros_like(d_N), d_N / reach, clusters)
    value, detectable = float(d_N.mean()), statistics.minimal_detectable(found)
    if found.low is None or found.high is None:
        return Effect(name, axis, value, None, None, None, None, None, found.n, found.clusters)
    sums_R2 = statistics.cluster_bootstrap(
        np.stack([d_N, np.ones_like(d_N)], axis=1), clusters, draws=draws, seed=0
    )
    low, high = statistics.percentile(sums_R2[:, 0] / sums_R2[:, 1], statistics.expanded(found.clusters))
    if math.isclose(low, high):  # nothing varied between resamples: that is no certainty
        low, high = reach * found.low, reach * found.high
    return Effect(
        name,
        axis,
        value,
        max(-span, low),
        min(span, high),
        found.p,
        None,
        None if detectable is None else reach * detectable,
        found.n,
        found.clusters,
    )


def _corrected(effects: Sequence[Effect], correct: Correction) -> tuple[Effect, ...]:
    tested = [e.p for e in effects if e.p is not None]
    corrected = iter(correct(tested))
    found = []
    for e in effects:
        p = None if e.p is None else next(corrected)
        excludes = e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
        found.append(replace(e, p_corrected=p, shown=excludes and p is not None and p < ALPHA))
    return tuple(found)


def _changed(cells: PairedTable, factor: str, step: Weights, variants: Mapping[Cell, str]) -> ChangedItems:
    after, before = (next(cell for cell, w in step.items() if w == sign) for sign in (1.0, -1.0))
    fixed: dict[str, tuple[str, ...]] = {}
    regressed: dict[str, tuple[str, ...]] = {}
    for axis, items in cells.axes.items():
        a_N, b_N = cells.values_N(variants[before], axis), cells.values_N(variants[after], axis)
        scored = ~(np.isnan(a_N) | np.isnan(b_N))
        up, down = scored & (a_N < 0.5) & (b_N >= 0.5), scored & (a_N >= 0.5) & (b_N < 0.5)
        for mask, where in ((up, fixed), (down, regressed)):
            if mask.any():
                where[axis] = tuple(item.id for item, moved in zip(items, mask) if moved)
    return ChangedItems(factor, variants[before], variants[after], fixed, regressed)


MOST_SWITCHES = 8
MOST_OF_A_FRACTION = 11
TEMPLATE, DECODING = "template", "decoding"
PLAIN = "transcript"
"""Without its template a stack is prompted as its base is, or else with this one."""


def factorial_of(
    stack: Stack, weights: Sequence[str] | None, layers: Sequence[str] | None, most: int = MOST_SWITCHES
) -> Factorial:
    """The factorial to measure: default the whole chain of the served weights and every layer that can change an answer.

    `template` and `decoding` may be switched as layers are: off is the base's template, and greedy. Raises DemeanorError for an
    unknown name, a switch that changes nothing, weights out of training order, or more switches than can be measured.
    """
    chain = stack.chain(stack.serve)
    chosen, switches = list(weights or chain), list(stack.switches if layers is None else layers)
    for name in chosen:
        if name not in stack.policies:
            raise UsageError(f"--weights: {unknown(name, stack.policies, noun='weights')}")
    for name in switches:
        if name not in (*stack.switches, TEMPLATE, DECODING):
            raise UsageError(
                f"--layers: {unknown(name, [*stack.switches, TEMPLATE, DECODING], noun='layer')}"
            )
    for name, same in (
        (TEMPLATE, plain_template(stack) == stack.spec.template),
        (DECODING, greedy(stack) == stack.spec.decoding),
    ):
        if name in switches and name not in stack.switches and same:
            raise UsageError(
                f"--layers {name}: the stack's {name} is the neutral one already, so there is nothing to switch"
            )
    line = stack.chain(chosen[-1])
    if chosen != [name for name in line if name in chosen]:
        raise UsageError(
            f"--weights {' '.join(chosen)}: not in the order they were trained in, each from the one before. "
            f"The way to '{chosen[-1]}' is: {' '.join(line)}"
        )
    if len(set(switches)) != len(switches) or len(switches) > most:
        more = "" if most > MOST_SWITCHES else f" (with --fraction {MOST_OF_A_FRACTION})"
        raise UsageError(
            f"--layers: {len(switches)} switches make {2 ** len(switches)} subsets; wanted distinct ones, "
            f"{most} at most{more}. Known: {', '.join([*stack.switches, TEMPLATE, DECODING])}"
        )
    return Factorial(tuple(chosen), tuple(switches))


def plain_template(stack: Stack) -> str:
    """The template that stands in for the stack's: its base's own, else `PLAIN`."""
    return getattr(stack.spec.weights.base, "template", None) or PLAIN


def greedy(stack: Stack) -> DecodingSpec:
    """The decoding that stands in for the stack's: greedy, and nothing else but how long an answer may be and where it stops."""
    return DecodingSpec(
        temperature=0.0, max_tokens=stack.spec.decoding.max_tokens, stop=stack.spec.decoding.stop
    )


def variant_of(stack: Stack, factorial: Factorial, cell: Cell) -> Stack:
    """The variant that a cell of the factorial stands for."""
    stage, on = cell
    found = stack.variant(
        factorial.chain[stage],
        *(name for name in factorial.switches if name in on and name in stack.switches),
    )
    if (
        TEMPLATE in factorial.switches
        and TEMPLATE not in on
        and TEMPLATE not in stack.switches
        and found.template != plain_template(stack)
    ):
        name = plain_template(stack)
        found = replace(found.with_template(name), model_id=f"{found.model_id}~{name}")
    if DECODING in factorial.switches and DECODING not in on and DECODING not in stack.switches:
        found.key()
        spec = found.spec.model_copy(update={"decoding": greedy(stack)})
        found = replace(found, spec=spec, model_id=f"{found.model_id}~greedy")
    return found


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    *,
    weights: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    limit: int | None = None,
    name: str | None = None,
    fraction: Resolution = "full",
) -> Attribution:
    """Measure every cell of the design and write NAME.attribution.json."""
    stack.key()
    factorial = factorial_of(
        stack, weights, layers, MOST_SWITCHES if fraction == "full" else MOST_OF_A_FRACTION
    )
    design = plan(factorial, fraction)
    variants = {cell: variant_of(stack, factorial, cell) for cell in design.cells}
    with Experiment(stack, services, folder, name=name, limit=limit) as experiment:
        rows = experiment.measure(variants.values())
    runtime = experiment.runtime
    found = attribute(
        rows,
        experiment.items,
        factorial,
        {cell: v.model_id for cell, v in variants.items()},
        name=experiment.name,
        design=design,
        reused=experiment.reused,
        generations=runtime.num_generations - runtime.num_confirmed,
        confirmed=runtime.num_confirmed,
    )
    save(folder, experiment.name, "attribution", found, stack_key=stack.key())
    return found


# ---- what a person reads ----

VIEWS = (
    ("waterfall", "Each layer added to those before it, points"),
    ("leave_one_out", "The whole minus the whole without the layer, points"),
)
IDS, ALIASES = 6, 12
"""Ids of changed items and aliases that are listed before "and so many more"."""


def section(found: Attribution) -> Section:
    """Shapley values with their intervals, the other views, and the items that changed."""
    changed = [(c.name, axis, c) for c in found.changed for axis in sorted({*c.fixed, *c.regressed})]
    return Section(
        "attribution",
        "Attribution",
        "Which layer did it",
        (
            Paragraph(
                "A layer’s share is what it adds on average over every order in which the layers could have come, weights in the order "
                "of training; the shares of a row sum to the whole minus the base.",
                "lead",
            ),
            Paragraph(
                f"{plural(len(found.cells), 'combination')} of weights ({' < '.join(found.chain)}) and layers "
                f"({', '.join(found.switches) or 'none'}) answered the same {plural(found.items, 'item')}. {generations(found)}"
            ),
            *_picture(found),
            _effects(found.shapley, "Shapley, in the order of training, points", found.total),
            Paragraph(
                "Bold or *: the 95% interval, over resampled clusters, excludes zero, and the corrected test agrees (Holm over all Shapley "
                "values; Benjamini-Hochberg within each other table).",
                "note",
            ),
            Paragraph(" ".join(_remarks(found)), "note"),
            *(
                Fold(title, (_effects(getattr(found, view), ""),))
                for view, title in VIEWS
                if getattr(found, view)
            ),
            *_interactions(found),
            Fold(
                "Items that changed",
                (
                    OnlyFor(SCREEN, (_changed_table(changed, None),)),
                    OnlyFor(NOT_SCREEN, (_changed_table(changed, IDS),)),
                ),
            ),
        ),
    )


def summary(found: Attribution) -> str:
    """Every layer's share of the whole change over all items, in points."""
    axis = found.total[0].axis if found.total else ""
    shares = [f"{e.name} {plain(_cell(e))}" for e in found.shapley if e.axis == axis]
    whole = points(found.total[0].value if found.total else 0.0, 1)
    return f"Of {whole} points over all items: {', '.join(shares)}. Suspect: {found.suspect}."


def generations(found: Attribution) -> str:
    """How much the combinations shared: answers generated of answers needed, and what only had to be checked."""
    fresh = found.asked - found.reused
    if found.generations is None or not fresh:
        return ""
    told = (
        f"{found.generations:,} generations were made for {fresh:,} answers ({found.generations / fresh:.0%})"
    )
    if found.confirmed:
        told += f"; {found.confirmed:,} more were only checked word by word against an earlier answer of the same weights"
    if found.reused:
        told += f"; {found.reused:,} answers had been measured before"
    return f"{told}."


def _remarks(found: Attribution) -> list[str]:
    """The design, what it cannot tell apart, what was left out, and the suspect layer."""
    told = [f"Design: {found.design}."] if found.design else []
    if found.aliases:
        told.append(f"Cannot be told apart: {first_of(found.aliases, ALIASES)}.")
    if found.unscored:
        told.append(f"{plural(found.unscored, 'item')} without a score in some combination left out of all.")
    if found.suspect == "none":
        return [*told, "Suspect: none. No layer is implicated: the whole without it is not better."]
    return [*told, f"Suspect: {found.suspect}. The whole is shown to be better without it."]


def _interactions(found: Attribution) -> list[Block]:
    """Those that are shown, and on the page all of them; none where the design cannot estimate any."""
    if not found.interactions:
        return []
    shown = [f"{e.name} on {axis_name(e.axis)} {plain(_cell(e))}" for e in found.interactions if e.shown]
    told = (
        f"Interactions, both together minus each alone: {len(shown)} of {len(found.interactions)} are shown"
    )
    return [
        Paragraph(f"{told}{': ' if shown else ''}{', '.join(shown)}.", "note"),
        OnlyFor(PAGE, (Fold("All interactions, points", (_effects(found.interactions, ""),)),)),
    ]


def _effects(effects: Sequence[Effect], title: str, total: Sequence[Effect] = ()) -> Table:
    """Axes down, layers across; with `total`, its column and the smallest effect that the weakest column would find."""
    by = {(e.name, e.axis): e for e in effects}
    names = list(dict.fromkeys(e.name for e in effects))
    sums = {e.axis: e.value for e in total}
    rows: list[tuple[Inline, ...]] = []
    for axis in dict.fromkeys(e.axis for e in effects):
        mine = [by[name, axis] for name in names]
        row: list[Inline] = [axis_name(axis), *map(_cell, mine)]
        if total:
            sizes = [100 * e.detectable for e in mine if e.detectable is not None]
            row += [points(sums[axis], 1), number(max(sizes), 1) if sizes else NONE]
        rows.append(tuple(row))
    return Table(("axis", *names, *(("sum", "detectable") if total else ())), tuple(rows), title)


def _cell(e: Effect) -> Inline:
    return difference(e.value, e.low, e.high, shown=e.shown)


def _changed_table(changed: Sequence[tuple[str, str, ChangedItems]], most: int | None) -> Table:
    """Ids of fixed and regressed items by layer and axis; all of them where `most` is None."""
    rows = []
    for name, axis, items in changed:
        ids = [of_axis.get(axis, ()) for of_axis in (items.fixed, items.regressed)]
        rows.append((name, axis_name(axis), *(first_of(x, most or len(x)) or NONE for x in ids)))
    return Table(("layer", "axis", "fixed", "regressed"), tuple(rows), text=(0, 1, 2, 3))


def _picture(found: Attribution) -> list[Figure]:
    """The way from the base to the whole over all items; none where the base was not measured alone."""
    axis = found.total[0].axis if found.total else ""
    base = next(iter(found.cells.values()), {}).get(axis)
    effects = [e for e in found.shapley if e.axis == axis]
    if base is None or not effects:
        return []
    about = "all items" if axis == "all" else axis_name(axis)
    caption = (
        f"Share right of {about}, from the bare base to the whole: each bar is a layer’s share, the line its 95% interval; pale where no "
        "effect is shown."
    )
    return [Figure("waterfall", {"effects": effects, "base": base}, caption=caption)]
