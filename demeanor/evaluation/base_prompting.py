"""Prompted baseline: the base model's answers in several prompt formats, and what the next stage adds to the best of them.

In: a stack, or rows of the base by format and of the stage after it. Out: one `BasePrompting`. The best of several ways looks better than it is on the
items it was picked on, so each half of the clusters is answered in the way that was best on the other half.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from demeanor.core.errors import UsageError
from demeanor.core.table import (
    Inline,
    Paragraph,
    Section,
    Table,
    axis_name,
    difference,
    listed,
    percent,
    plain,
)
from demeanor.core.types import Item, Message, Messages, Turn
from demeanor.evaluation import statistics
from demeanor.evaluation.diagnosis.analysis import InterventionInfo
from demeanor.evaluation.diagnosis.replay import TEMPLATES, Intervention, ReplayHarness
from demeanor.evaluation.experiment import NO_TOKENS, Experiment, Wrap, turned
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result import save
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import Floats
from demeanor.stack.schema import Import, Remote
from demeanor.stack.stack import Stack

ALL = "all"


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference with its interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """What the stage adds on an axis, in the mean over its items: to the base as declared, and to the base asked in the best way."""

    axis: str
    ways: dict[str, float]
    """The base's mean by way."""
    picked: tuple[str, ...]
    """The way that was best on either half."""
    best: float
    """The mean of the base where each half is asked in the way that was best on the other."""
    stage: float
    over_declared: Difference
    over_best: Difference
    n: int
    clusters: int


@dataclass(frozen=True, slots=True)
class BasePrompting:
    """Every axis, and all items together last."""

    name: str
    suite_hash: str
    stage: str
    declared: str
    ways: tuple[str, ...]
    gains: tuple[Gain, ...]


def compare_base_prompts(
    rows: Sequence[Row],
    items: Sequence[Item],
    *,
    name: str,
    ways: Mapping[str, str],
    declared: str,
    stage: str,
) -> BasePrompting:
    """Compare the variant `stage` with the base; `ways`: name of the way -> variant of its rows, `declared`: the one that the stack uses.

    Items without a score in some way or in the stage are left out.
    """
    cells = PairedTable(rows, items)
    parts: list[tuple[Floats, list[str]]] = []
    gains = []
    for axis, some in cells.axes.items():
        table_NW = np.stack([cells.values_N(variant, axis) for variant in (*ways.values(), stage)], axis=1)
        scored = np.flatnonzero(~np.isnan(table_NW).any(axis=1))
        if not len(scored):
            continue
        clusters, values_NW = [some[i].cluster for i in scored], table_NW[scored]
        best_N, picked = cross_fitted(values_NW[:, :-1], clusters, list(ways))
        gains.append(_gain(axis, values_NW, best_N, picked, clusters, list(ways), declared))
        parts.append((values_NW, clusters))
    if len(parts) > 1:  # of all items one way, for one model is asked in one way
        whole_NW, clusters = np.concatenate([p[0] for p in parts]), [c for p in parts for c in p[1]]
        best_N, picked = cross_fitted(whole_NW[:, :-1], clusters, list(ways))
        gains.append(_gain(ALL, whole_NW, best_N, picked, clusters, list(ways), declared))
    return BasePrompting(name, suite_hash(items), stage, declared, tuple(ways), tuple(gains))


def cross_fitted(values_NW: Floats, clusters: Sequence[str], ways: Sequence[str]) -> tuple[Floats, list[str]]:
    """Each item's value in the way that is best on the half of the clusters that it is not in; ties go to the first way.

    With a single cluster in a half there is nothing to pick on, and the first way is taken.
    """
    first_N = np.array([half(c) for c in clusters])
    found_N, picked = np.empty(len(values_NW)), []
    for mine_N in (first_N, ~first_N):
        if not mine_N.any():
            continue
        others_NW = values_NW[~mine_N]
        way = int(others_NW.mean(axis=0).argmax()) if len(others_NW) else 0
        found_N[mine_N] = values_NW[mine_N, way]
        picked.append(ways[way])
    return found_N, list(dict.fromkeys(picked))


def half(cluster: str) -> bool:
    """Which half a cluster is in, whatever else is in the suite."""
    return hashlib.sha256(cluster.encode()).digest()[0] % 2 == 0


def _gain(
    axis: str,
    values_NW: Floats,
    best_N: Floats,
    picked: Sequence[str],
    clusters: Sequence[str],
    ways: Sequence[str],
    declared_way: str,
) -> Gain:
    stage_N = values_NW[:, -1]
    declared = statistics.paired(values_NW[:, list(ways).index(declared_way)], stage_N, clusters)
    fair = statistics.paired(best_N, stage_N, clusters)
    return Gain(
        axis,
        {way: float(values_NW[:, i].mean()) for i, way in enumerate(ways)},
        tuple(picked),
        float(best_N.mean()),
        float(stage_N.mean()),
        Difference(declared.value, declared.low, declared.high),
        Difference(fair.value, fair.low, fair.high),
        fair.n,
        fair.clusters,
    )


SHOTS = 3
RAW, SHOT, STAGE, WHOLE = "raw", "few-shot", "next stage", "whole"


def run(
    stack: Stack, services: Services, folder: Path, *, limit: int | None = None, name: str | None = None
) -> BasePrompting:
    """Prompt the base in every format, compare the stage after it with the best, and write NAME.base.json.

    Raises DemeanorError if there is no such stage, or the base is on another server.
    """
    chain = stack.chain(stack.serve)
    if isinstance(stack.spec.weights.base, Remote) or len(chain) < 2:
        raise UsageError(
            "weights: wanted a base that is here and a stage trained on it, to tell prompting from training"
        )
    with Experiment(stack, services, folder, name=name, limit=limit, kind="base") as experiment:
        rows, formats = asyncio.run(measured_ways(experiment, chain[1]))
    found = compare_base_prompts(
        rows,
        experiment.items,
        name=experiment.name,
        ways={way: way for way in formats},
        declared=formats[0],
        stage=STAGE,
    )
    found = replace(found, stage=chain[1])
    save(folder, experiment.name, "base", found, stack_key=stack.key())
    return found


async def measured_ways(experiment: Experiment, after: str) -> tuple[list[Row], list[str]]:
    stack, harness = experiment.stack, ReplayHarness(experiment)
    whole = await harness.replay([Intervention(InterventionInfo(WHOLE, "again", "", ""), stack)])
    stage = Intervention(InterventionInfo(STAGE, "stage", "", ""), stack.variant(after))
    planned = harness.able([*ways(stack, shots(experiment.items, whole)), stage])
    rows = await harness.replay(planned)
    return rows, [x.about.name for x in planned if x.about.name != STAGE]


def ways(stack: Stack, examples: Mapping[Messages, Messages]) -> list[Intervention]:
    """The base alone, first as the stack declares it; `examples`: what is put before each item for few-shot prompting."""
    base = stack.variant("base")
    stack.key()
    found = [Intervention(InterventionInfo(_own(stack), "template", "", ""), base)]
    names = (*(("model",) if isinstance(stack.spec.weights.base, Import) else ()), *TEMPLATES)
    found += [
        Intervention(InterventionInfo(name, "template", "", ""), base.with_template(name))
        for name in names
        if name != _own(stack)
    ]
    found.append(Intervention(InterventionInfo(RAW, "template", "", ""), base, turned(raw), ("raw",)))
    if examples:
        marks = (
            "few-shot",
            sorted((m[-1].content, [x.content for x in shown]) for m, shown in examples.items()),
        )
        found.append(Intervention(InterventionInfo(SHOT, "examples", "", ""), base, shown(examples), marks))
    return found


def _own(stack: Stack) -> str:
    """The template through which the stack itself asks its base."""
    return str(getattr(stack.spec.weights.base, "template", None) or stack.spec.template)


def raw(turn: Turn) -> Turn:
    """No template: the conversation's texts, a line each, to be continued until a line ends."""
    if turn.raw is not None:
        return turn  # it is read and not answered
    text = "\n".join(m.content for m in turn.messages if m.content) + "\n"
    decoding = replace(turn.decoding, stop=(*turn.decoding.stop, "\n"))
    return replace(turn, messages=(Message("user", text),), tools=(), raw=NO_TOKENS, decoding=decoding)


def shown(examples: Mapping[Messages, Messages]) -> Wrap:
    """A few questions of the same kind with right answers before the conversation; unchanged where there are none."""

    def change(turn: Turn) -> Turn:
        before = examples.get(turn.messages, ()) if turn.raw is None else ()
        return replace(turn, messages=(*before, *turn.messages))

    return turned(change)


def shots(items: Sequence[Item], rows: Sequence[Row]) -> dict[Messages, Messages]:
    """For each item, right answers of other clusters of its axis as a conversation; the first ones in suite order, the same each time."""
    right = {
        row.item_id: row.text
        for row in rows
        if row.value is not None and row.value >= 1 and row.text.strip() and not row.refused_by
    }
    found: dict[Messages, Messages] = {}
    for item in items:
        others = [
            x
            for x in items
            if x.axis == item.axis and x.cluster != item.cluster and x.id in right and len(x.messages) == 1
        ]
        picked = list({x.cluster: x for x in reversed(others)}.values())[::-1][:SHOTS]
        if picked:
            found[item.messages] = tuple(
                m for x in picked for m in (*x.messages, Message("assistant", right[x.id]))
            )
    return found


# ---- what a person reads ----


def section(found: BasePrompting) -> Section:
    """A row per axis: the base's means by way of asking, the best way, and the stage's gain over the base as declared and over the best."""
    columns = ("axis", *found.ways, "best way", found.stage, "gain over declared", "gain over best")
    return Section(
        "base",
        "Base",
        "Was the base prompted fairly",
        (
            Paragraph(
                "A base model is no assistant, and a poor prompt makes it look worse than it is. It was prompted in "
                f"{len(found.ways)} ways: {listed(found.ways)}. What {found.stage} adds to the best of them is training; the rest was "
                "prompting.",
                "lead",
            ),
            Table(
                columns, tuple(_row(g) for g in found.gains), "share right, %, by way of prompting the base"
            ),
            Paragraph(
                "Best way: each half of the clusters is prompted in the way that was best on the other half, so that the best of several "
                "is not flattered; of all items together one way. Bold or *: the 95% interval of the gain excludes zero. Where saying "
                "nothing is right (no secret told), the way that makes the base babble wins: read such an axis with that in mind.",
                "note",
            ),
            Paragraph(summary(found)),
        ),
    )


def summary(found: BasePrompting) -> str:
    """The gain over all items in a sentence."""
    g = found.gains[-1]
    about = "all items" if g.axis == "all" else axis_name(g.axis)
    return (
        f"On {about}, {found.stage} adds {plain(_gain_text(g.over_declared))} points to the base as declared ({found.declared}) and "
        f"{plain(_gain_text(g.over_best))} to the base prompted in the best way."
    )


def _row(g: Gain) -> tuple[Inline, ...]:
    return (
        axis_name(g.axis),
        *(percent(value) for value in g.ways.values()),
        f"{percent(g.best)} ({listed(g.picked)})",
        percent(g.stage),
        _gain_text(g.over_declared),
        _gain_text(g.over_best),
    )


def _gain_text(d: Difference) -> Inline:
    shown = d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)
    return difference(d.value, d.low, d.high, shown=shown, places=0)
