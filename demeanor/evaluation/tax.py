"""The alignment tax as a curve: what a training aimed at against everything else, along merges or a swept setting.

In: a stack with a family of weights between or beside its stages. Out: one `TaxCurve` tree, nothing rendered. Every point is
compared with the start of its family on the same items; the KL is from the start, too.
Source: Ouyang et al. 2022, arXiv 2203.02155, figures 33 and 34; merging: Lin et al. 2023, arXiv 2309.06256.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from demeanor.core.errors import DataError, UsageError
from demeanor.core.files import yaml_value
from demeanor.core.table import NONE, Block, Figure, Paragraph, Section, Table, estimate, number
from demeanor.core.types import Item
from demeanor.evaluation import statistics
from demeanor.evaluation.experiment import Experiment, sampled
from demeanor.evaluation.frontier import (
    ASKED,
    Answered,
    Divergence,
    KlFromParent,
    calibration_of,
    confidences,
    divergence,
    kl_from_parent,
)
from demeanor.evaluation.items import SAFE, UNSAFE, suite_hash
from demeanor.evaluation.result import Calibration, save
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.runtime import Services
from demeanor.stack import validate
from demeanor.stack.schema import MergeStage, OnlineStage, Remote, Stage
from demeanor.stack.stack import Stack


class Member(NamedTuple):
    """One set of weights of a family: its stage, its label, and where it stands (a share, or a setting's value)."""

    stage: str
    label: str
    at: float


class Family(NamedTuple):
    """Weights to compare with `start`, along one line; `stack` declares them all."""

    name: str
    start: str
    stack: Stack
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class TaxChange:
    """A mean difference to the start of the family on the same items, with its cluster-robust interval."""

    value: float
    low: float | None
    high: float | None
    items: int


@dataclass(frozen=True, slots=True)
class TaxPoint:
    """One set of weights: what it was trained for and everything else, against the start; KL from the start."""

    label: str
    at: float
    target: TaxChange
    rest: TaxChange
    divergence: Divergence | None
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class TaxFamily:
    """The points of one family in order; `start` is the stage that they are compared with."""

    name: str
    start: str
    points: tuple[TaxPoint, ...]


@dataclass(frozen=True, slots=True)
class TaxCurve:
    """All families, measured on one suite; `target` are the axes that the training aimed at."""

    name: str
    suite_hash: str
    target: tuple[str, ...]
    families: tuple[TaxFamily, ...]


# ---- families of weights ----


def between(stack: Stack, text: str, points: int) -> Family:
    """Merges of two stages, FROM:TO, at equal steps of the share; the ends are the stages themselves.

    Raises UsageError for stages that are unknown or no policies.
    """
    first, colon, last = text.partition(":")
    if not colon or first == last:
        raise UsageError(f"--between {text}: wanted FROM:TO, two stages such as sft:ppo")
    for name in (first, last):
        _policy(stack, name, f"--between {text}")
    if points < 2:
        raise UsageError(f"--points {points}: wanted at least 2, the two ends")
    members, stages = [], []
    for k in range(points):
        share = k / (points - 1)
        name = first if k == 0 else last if k == points - 1 else f"{first}_{last}_{round(1000 * share):04d}"
        members.append(Member(name, f"{first}>{last} {share:.0%}", share))
        if 0 < k < points - 1:
            stages.append(MergeStage(kind="merge", name=name, of=(first, last), weights=(1 - share, share)))
    return Family(f"{first} to {last}", first, _extended(stack, stages, {}), tuple(members))


def sweep(stack: Stack, text: str) -> Family:
    """Copies of a stage with one setting changed, STAGE.SETTING=VALUE,VALUE; they are trained where they are not.

    Raises UsageError for a stage that is not trained, or a value that its setting does not take.
    """
    path, equals, written = text.partition("=")
    name, dot, setting = path.partition(".")
    if not equals or not dot:
        raise UsageError(
            f"--sweep {text}: wanted STAGE.SETTING=VALUE,VALUE, such as ppo.objective.kl_coef=0.01,0.1"
        )
    _policy(stack, name, f"--sweep {text}")
    stage = None if name == "base" else stack.stage(name)
    if not isinstance(stage, Stage):
        raise UsageError(f"--sweep {text}: {name} is not trained here, so it has no settings to sweep")
    members, stages, objectives = [], [], {}
    for k, value in enumerate(yaml_value(each, f"--sweep {text}") for each in written.split(",")):
        values = {**stage.model_dump(mode="json"), "objective": _objective(stack, name)}
        copy = f"{name}_{k}_{setting.rpartition('.')[2]}".lower()
        _set(values, setting.split("."), value, text)
        values |= {"name": copy, "parent": stack.parent(name)}
        try:
            changed = type(stage).model_validate(values)
        except ValueError as error:
            raise UsageError(f"--sweep {text}: {value!r}: {error}") from None
        spec, problems = validate.plugin("demeanor.objectives", changed.objective, f"--sweep {text}")
        if spec is None or problems:
            raise UsageError("; ".join(f"{p.where}: {p.what}" for p in problems))
        stages.append(changed)
        objectives[copy] = spec
        members.append(Member(copy, f"{setting} {value}", float(value)))
    return Family(path, stack.parent(name), _extended(stack, stages, objectives), tuple(members))


def _policy(stack: Stack, name: str, where: str) -> None:
    if name != "base" and not stack.is_policy(stack.stage(name).name):
        raise UsageError(f"{where}: {name} is a reward model; wanted a policy")


def _objective(stack: Stack, name: str) -> dict[str, Any]:
    return {
        "kind": stack.objective_kind(name),
        **stack.objectives[name].model_dump(mode="json", exclude_unset=True),
    }


def _set(values: dict[str, Any], path: Sequence[str], value: Any, text: str) -> None:
    for step in path[:-1]:
        if not isinstance(values.get(step), dict):
            raise UsageError(
                f"--sweep {text}: '{step}' is not set in the stage, so nothing below it can be swept"
            )
        values = values[step]
    values[path[-1]] = value


def _extended(stack: Stack, stages: Sequence[Any], objectives: dict[str, Any]) -> Stack:
    """The stack with more stages; what it serves, and every key it has, stay."""
    weights = stack.spec.weights
    weights = weights.model_copy(update={"stages": (*weights.stages, *stages), "serve": stack.serve})
    spec = stack.spec.model_copy(update={"weights": weights})
    return replace(stack, spec=spec, objectives={**stack.objectives, **objectives}, keys=dict(stack.keys))


def aimed_at(stack: Stack, stage: str, items: Sequence[Item]) -> tuple[str, ...]:
    """The axes that an online stage trains on by its items; for other stages the unsafe prompts."""
    found = None if stage == "base" else stack.stage(stage)
    axes = {item.axis for item in items}
    named = {axis for x in found.prompts for axis in x.axes} if isinstance(found, OnlineStage) else set()
    return tuple(sorted(named & axes)) or ((UNSAFE,) if UNSAFE in axes else ())


# ---- the analysis ----


def curve(
    rows: Sequence[Row],
    items: Sequence[Item],
    families: Sequence[Family],
    *,
    name: str,
    target: Sequence[str],
    moved: dict[str, list[KlFromParent]] | None = None,
    answered: dict[str, list[Answered]] | None = None,
) -> TaxCurve:
    """Compare every member with the start of its family. Raises DataError if no item is on the target axes, or on others."""
    cells = PairedTable(rows, items)
    axes = {item.axis for item in items}
    unknown = [axis for axis in target if axis not in axes]
    rest = tuple(sorted(axes - set(target) - {SAFE, UNSAFE}))
    if unknown or not target or not rest:
        raise DataError(
            f"tax: target axes {', '.join(target) or '(none)'}: wanted axes of the suite, and others beside them to "
            f"lose on; it has {', '.join(sorted(axes))}"
        )
    found = []
    for family in families:
        start = family.stack.variant(family.start).model_id
        points = []
        for member in family.members:
            variant = family.stack.variant(member.stage).model_id
            points.append(
                TaxPoint(
                    member.label,
                    member.at,
                    _change(cells, start, variant, target),
                    _change(cells, start, variant, rest),
                    divergence((moved or {}).get(variant, ())),
                    calibration_of((answered or {}).get(variant, ()), variant),
                )
            )
        found.append(TaxFamily(family.name, family.start, tuple(points)))
    return TaxCurve(name, suite_hash(items), tuple(target), tuple(found))


def _change(cells: PairedTable, start: str, variant: str, axes: Sequence[str]) -> TaxChange:
    before_N, after_N = (
        np.concatenate([cells.values_N(which, axis) for axis in axes]) for which in (start, variant)
    )
    clusters = [item.cluster for axis in axes for item in cells.axes[axis]]
    known_N = ~np.isnan(before_N + after_N)
    if not known_N.any():
        raise DataError(f"tax: no item on {', '.join(axes)} was scored for both {start} and {variant}")
    labels = [label for label, known in zip(clusters, known_N) if known]
    change = statistics.paired(before_N[known_N], after_N[known_N], labels)
    return TaxChange(change.value, change.low, change.high, change.n)


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    *,
    merges: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    points: int = 5,
    target: Sequence[str] = (),
    limit: int | None = None,
    name: str | None = None,
) -> TaxCurve:
    """Make or train the families' weights, measure all on the stack's suites, write NAME.tax.json."""
    if isinstance(stack.spec.weights.base, Remote):
        raise UsageError("a base on another server has no weights to merge or to train")
    families: list[Family] = []
    whole = stack
    for text in merges:
        families.append(between(whole, text, points))
        whole = families[-1].stack
    for text in sweeps:
        families.append(sweep(whole, text))
        whole = families[-1].stack
    families = [family._replace(stack=whole) for family in families]
    stages = list(dict.fromkeys(m.stage for f in families for m in f.members if m.stage != "base"))
    services.train(whole, stages)
    with Experiment(whole, services, folder, name=name, limit=limit, kind="tax") as experiment:
        aimed = tuple(target) or aimed_at(stack, families[0].members[-1].stage, experiment.items)
        starts = [family.start for family in families]
        variants = {whole.variant(s).model_id: whole.variant(s) for s in dict.fromkeys([*starts, *stages])}
        rows, moved, answered = asyncio.run(_measure(experiment, families, variants))
    found = curve(
        rows, experiment.items, families, name=experiment.name, target=aimed, moved=moved, answered=answered
    )
    save(folder, found.name, "tax", found, stack_key=stack.key())
    return found


async def _measure(
    experiment: Experiment, families: Sequence[Family], variants: dict[str, Stack]
) -> tuple[list[Row], dict[str, list[KlFromParent]], dict[str, list[Answered]]]:
    rows, runtime = await experiment.rows(experiment.variants(variants.values())), experiment.runtime
    some = [item for item in sampled(experiment.items, ASKED) if item.messages]
    able = [item for item in some if item.axis not in (SAFE, UNSAFE)]
    start_of = {
        family.stack.variant(m.stage).model_id: family.start for family in families for m in family.members
    }
    moved = {
        i: await kl_from_parent(runtime, v, start_of[i], some) for i, v in variants.items() if i in start_of
    }
    return rows, moved, {i: await confidences(runtime, v, able) for i, v in variants.items()}


# ---- what a person reads ----


def section(found: TaxCurve) -> Section:
    """A picture and a table for each family: gain, tax, KL and calibration along it."""
    blocks: list[Block] = []
    for family in found.families:
        blocks += [
            Figure("tax_curve", {"family": family}, title=f"{family.name}, against {family.start}"),
            Table(
                ("", "KL", "target, points", "everything else, points", "calibration error"),
                tuple(_row(point) for point in family.points),
                f"{family.name}, against {family.start}",
            ),
        ]
    return Section(
        "tax",
        "Tax",
        "What the training gained, and what it cost elsewhere",
        (
            Paragraph(
                f"Target: {', '.join(found.target)}. Everything else: all other axes but the contrast twins. Differences in the share "
                "right to the start of the family, on the same items, with 95% intervals over clusters. KL: nats per answer from the start. "
                "A merge that keeps more of the gain than its share, or loses less, lies above the straight line between the ends.",
                "lead",
            ),
            *blocks,
        ),
    )


def _row(point: TaxPoint) -> tuple[str, ...]:
    kl, sure = point.divergence, point.calibration
    return (
        point.label,
        estimate(kl.value, kl.low, kl.high) if kl else NONE,
        _shown(point.target),
        _shown(point.rest),
        number(sure.ece, 3) if sure else NONE,
    )


def _shown(change: TaxChange) -> str:
    """The change in points (hundredths)."""
    low, high = (None if x is None else 100 * x for x in (change.low, change.high))
    return estimate(100 * change.value, low, high, 1)
