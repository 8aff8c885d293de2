"""Training seeds: the same ladder trained with several seeds, to tell an effect of the recipe from chance of one training run.

In: results of the same stack trained with different seeds, on the same items. Out: one `Spread` per step and axis, whose interval covers
another training and other items: the variances of seeds and of items add up, with Satterthwaite's degrees of freedom. It knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import special

from demeanor.core.errors import DataError, UsageError
from demeanor.core.table import (
    NONE,
    TERMINAL,
    WRITTEN,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    Table,
    axis_name,
    difference,
    listed,
    number,
    percent,
    plural,
    points,
)
from demeanor.evaluation.experiment import named
from demeanor.evaluation.ladder import evaluate
from demeanor.evaluation.result import Delta, Result, save
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import CONFIDENCE
from demeanor.stack.schema import Scratch, Stage
from demeanor.stack.stack import Stack


@dataclass(frozen=True, slots=True)
class Spread:
    """What a step did on an axis, seed by seed, and what another seed may be expected to do."""

    step: str
    axis: str
    values: tuple[float, ...]
    """Change in the mean, by seed."""
    mean: float
    low: float | None
    high: float | None
    between: float
    """Standard deviation over seeds."""
    within: float | None
    """Root mean square of the standard errors that the items leave, from each seed's own interval; None where one has none."""
    clusters: int
    shown: int
    """Seeds whose own interval excludes zero on the side of the mean."""


@dataclass(frozen=True, slots=True)
class Level:
    """The mean of a variant of the ladder on an axis, by seed."""

    variant: str
    axis: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Seeds:
    """A ladder over several trainings."""

    name: str
    suite_hash: str
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    levels: tuple[Level, ...]
    steps: tuple[Spread, ...]


def seeds(results: Mapping[int, Result], *, name: str) -> Seeds:
    """Put the results of several training seeds together; raises DataError unless they measured the same ladder on the same items."""
    found = list(results.values())
    if len(found) < 2:
        raise DataError(f"seeds: {len(found)} training, so nothing varies; wanted at least 2")
    first = found[0]
    labels = [_labels(r) for r in found]
    if any(r.suite_hash != first.suite_hash for r in found) or any(x != labels[0] for x in labels):
        raise DataError(
            "seeds: the results are of other items or other variants; wanted one ladder on one suite"
        )
    steps = [
        _spread(step.name, axis.name, [_delta(r, step.name, axis.name) for r in found])
        for step in first.steps
        for axis in first.axes
    ]
    levels = [
        _level(label, axis.name, [_mean(r, n, axis.name) for r in found])
        for n, label in enumerate(labels[0])
        for axis in first.axes
    ]
    return Seeds(
        name,
        first.suite_hash,
        tuple(results),
        tuple(labels[0]),
        tuple(x for x in levels if x),
        tuple(x for x in steps if x),
    )


def interval(
    values: Sequence[float], within: float | None, clusters: int
) -> tuple[float | None, float | None]:
    """Of the mean over K seeds: variance s^2 / K + within^2, Satterthwaite's degrees of freedom (1946), within [-1, 1].

    The seeds share their items, so averaging over seeds does not shrink what the items leave open: `within` counts whole, which is
    cautious. None without it: then nothing is known of the items.
    """
    if within is None or clusters < 2:
        return None, None
    seeds_, items_ = float(np.var(values, ddof=1)) / len(values), within**2
    total = seeds_ + items_
    if total == 0:
        return None, None
    dof = total**2 / (seeds_**2 / (len(values) - 1) + items_**2 / (clusters - 1))
    half = float(special.stdtrit(dof, (1 + CONFIDENCE) / 2)) * math.sqrt(total)
    mean = float(np.mean(values))
    return max(-1.0, mean - half), min(1.0, mean + half)


def _labels(result: Result) -> list[str]:
    label = {v.id: v.label for v in result.variants}
    return (
        [label[result.steps[0].before], *(label[s.after] for s in result.steps)]
        if result.steps
        else [result.variants[0].label]
    )


def _mean(result: Result, place: int, axis: str) -> float | None:
    variant = result.steps[0].before if place == 0 else result.steps[place - 1].after
    return next(a for a in result.axes if a.name == axis).means[variant].value


def _delta(result: Result, step: str, axis: str) -> Delta | None:
    return next((d for s in result.steps if s.name == step for d in s.deltas if d.axis == axis), None)


def _spread(step: str, axis: str, deltas: list[Delta | None]) -> Spread | None:
    known = [d for d in deltas if d is not None and d.value is not None]
    if len(known) < len(deltas):
        return None
    values = tuple(float(d.value or 0.0) for d in known)
    errors = [
        max(d.high - d.value, d.value - d.low)  # an end may be cut at 1
        / float(special.stdtrit(d.clusters - 1, (1 + CONFIDENCE) / 2))
        for d in known
        if d.value is not None and d.low is not None and d.high is not None and d.clusters > 1
    ]
    within = math.sqrt(float(np.mean(np.square(errors)))) if len(errors) == len(known) else None
    mean, clusters = float(np.mean(values)), min(d.clusters for d in known)
    low, high = interval(values, within, clusters)
    return Spread(
        step,
        axis,
        values,
        mean,
        low,
        high,
        float(np.std(values, ddof=1)),
        within,
        clusters,
        sum(d.shown and (d.value or 0.0) * mean > 0 for d in known),
    )


def _level(variant: str, axis: str, values: Sequence[float | None]) -> Level | None:
    known = tuple(v for v in values if v is not None)
    return Level(variant, axis, known) if len(known) == len(values) else None


Load: TypeAlias = Callable[[Sequence[str]], Stack]
"""Loads the stack with settings (`PATH=VALUE`) changed."""


def reseeded(load: Load, seed: int) -> Stack:
    """The stack with every seed of its training set to one; raises DemeanorError if nothing of it is trained here."""
    stack = load(())
    places = ["weights.base.seed"] if isinstance(stack.spec.weights.base, Scratch) else []
    places += [f"weights.stages.{s.name}.seed" for s in stack.spec.weights.stages if isinstance(s, Stage)]
    if not places:
        raise UsageError(f"{stack.path}: nothing of it is trained here, so there is no seed to change")
    return load([f"{place}={seed}" for place in places])


def run(
    load: Load,
    services: Services,
    folder: Path,
    *,
    chosen: Sequence[int],
    limit: int | None = None,
    name: str | None = None,
) -> Seeds:
    """Train and measure the stack with each seed, one after the other, and write NAME.seeds.json; each seed's result is NAME.seedN."""
    if len(set(chosen)) != len(chosen) or len(chosen) < 2:
        raise UsageError(f"--seeds: got {' '.join(map(str, chosen))}, wanted two or more, each once")
    found: dict[int, Result] = {}
    for place, seed in enumerate(chosen, 1):
        stack = reseeded(load, seed)
        name = named(stack, name, limit)
        print(f"\nseed {seed} ({place} of {len(chosen)})")
        services.train(stack, ())
        found[seed] = evaluate(stack, services, folder, limit=limit, name=f"{name}.seed{seed}")
    whole = seeds(found, name=str(name))
    save(folder, whole.name, "seeds", whole, stack_key=load(()).key())
    return whole


# ---- what a person reads ----

STEPS = ("step", "axis", "by seed", "mean (95%)", "between seeds", "between items", "shown in")


def section(found: Seeds) -> Section:
    """The ladder's means over seeds, the steps that hold, and every step seed by seed."""
    by = {(x.variant, x.axis): x.values for x in found.levels}
    axes = dict.fromkeys(x.axis for x in found.levels)
    ladder = tuple((axis_name(a), *(_means(by.get((v, a), ())) for v in found.variants)) for a in axes)
    every = tuple(_step_row(s) for s in found.steps)
    some = tuple(row for row, s in zip(every, found.steps) if _holds(s) or s.shown)
    note = Paragraph(
        "Bold or *: the 95% interval over seeds and items excludes zero (not corrected for the number of rows). Between seeds: standard "
        "deviation of the seeds' changes. Between items: standard error that the items leave within one training. Where the first is larger, "
        "an interval from one training is too narrow for the recipe.",
        "note",
    )
    return Section(
        "seeds",
        "Seeds",
        "Trained with other seeds",
        (
            Paragraph(
                f"The same recipe trained {len(found.seeds)} times, with seeds {listed(tuple(map(str, found.seeds)))}, and measured on the "
                f"same items. {summary(found)}"
            ),
            Table(("axis", *found.variants), ladder, "share right, %: mean over seeds (lowest to highest)"),
            OnlyFor(WRITTEN, (Fold("Every step, seed by seed", (Table(STEPS, every, text=(0, 1)), note)),)),
            OnlyFor(TERMINAL, (Table(STEPS, some, "changes in points", text=(0, 1)), note)),
        ),
    )


def summary(found: Seeds) -> str:
    """How many steps hold with another seed, and how the two kinds of noise compare."""
    sure = [s for s in found.steps if _holds(s)]
    once = [s for s in found.steps if s.shown and not _holds(s)]
    noisy = [s for s in found.steps if s.within is not None and s.between > s.within]
    return (
        f"{plural(len(sure), 'change')} of {len(found.steps)} (step by axis) hold over seeds and items. {len(once)} more were shown in some "
        f"training and do not hold. In {len(noisy)}, seeds differ by more than items do."
    )


def _holds(s: Spread) -> bool:
    return s.low is not None and s.high is not None and (s.low > 0 or s.high < 0)


def _means(values: Sequence[float]) -> str:
    if not values:
        return NONE
    low, high = percent(min(values)), percent(max(values))
    return f"{percent(sum(values) / len(values))}{'' if low == high else f' ({low} to {high})'}"


def _step_row(s: Spread) -> tuple[Inline, ...]:
    return (
        f"+{s.step}",
        axis_name(s.axis),
        ", ".join(map(points, s.values)),
        difference(s.mean, s.low, s.high, shown=_holds(s)),
        number(100 * s.between, 1),
        NONE if s.within is None else number(100 * s.within, 1),
        f"{s.shown} of {len(s.values)}",
    )
