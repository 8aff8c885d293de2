"""Was the base asked fairly: its answers under several ways of asking, and what the next stage adds to the best of them.

In: rows of the base by way, rows of the stage after it. Out: one `Fairness` tree. The best of several ways looks better than it is on the
items it was picked on, so each half of the clusters is answered in the way that was best on the other half.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from demeanor.app import StackRuntime
from demeanor.core.errors import DemeanorError
from demeanor.core.types import Event, Item, Message, Messages, Respond, Turn
from demeanor.evaluation import measure, statistics
from demeanor.evaluation.diagnosis.analysis import Intervention, InterventionInfo, Wrap
from demeanor.evaluation.diagnosis.interventions import TEMPLATES, retemplated
from demeanor.evaluation.diagnosis.replay import ReplayHarness, rows_of
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.rows import Row
from demeanor.evaluation.statistics import Floats
from demeanor.evaluation.table import PairedTable
from demeanor.stack.schema import Import, Remote
from demeanor.stack.stack import Stack
from demeanor.train.runs import Runs

ALL = "all"


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
    declared: float
    low_declared: float | None
    high_declared: float | None
    fair: float
    low: float | None
    high: float | None
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
    declared: str,
) -> Gain:
    base_N, stage_N = values_NW[:, list(ways).index(declared)], values_NW[:, -1]
    plain, fair = statistics.paired(base_N, stage_N, clusters), statistics.paired(best_N, stage_N, clusters)
    return Gain(
        axis,
        {way: float(values_NW[:, i].mean()) for i, way in enumerate(ways)},
        tuple(picked),
        float(best_N.mean()),
        float(stage_N.mean()),
        plain.value,
        plain.low,
        plain.high,
        fair.value,
        fair.low,
        fair.high,
        fair.n,
        fair.clusters,
    )


SHOTS = 3
RAW, SHOT, STAGE, WHOLE = "raw", "few-shot", "next stage", "whole"
NO_TOKENS: tuple[int, ...] = ()


def run(stack: Stack, runs: Runs, folder: Path, *, limit: int | None, name: str | None) -> BasePrompting:
    """Ask the base in every way, compare the stage after it with the best, and write the result.

    Raises DemeanorError if there is no such stage, or the base is on another server.
    """
    name, items = measure.named(stack, name, limit), measure.suite(stack, limit)
    chain = stack.chain(stack.serve)
    if isinstance(stack.spec.weights.base, Remote) or len(chain) < 2:
        raise DemeanorError(
            "weights: wanted a base that is here and a stage trained on it, to tell prompting from training"
        )
    bench = ReplayHarness(StackRuntime(stack, runs, memory={}, operational=False))
    try:
        rows, ways = asyncio.run(_measure(bench, stack, items, folder / f"{name}.base.rows.jsonl", chain[1]))
    finally:
        bench.close()
    found = compare_base_prompts(
        rows, items, name=name, ways={way: way for way in ways}, declared=ways[0], stage=STAGE
    )
    found = replace(found, stage=chain[1])
    tree = {"stack_key": stack.key(), **asdict(found)}
    measure.write(
        folder / f"{name}.base.json", json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return found


async def _measure(
    bench: ReplayHarness, stack: Stack, items: Sequence[Item], out: Path, after: str
) -> tuple[list[Row], list[str]]:
    whole = Intervention(InterventionInfo(WHOLE, "again", "", ""), stack)
    score = bench.scorer(items, out)
    told = await rows_of(bench, [whole], items, out, score)
    planned = [
        *ways(stack, shots(items, told)),
        Intervention(InterventionInfo(STAGE, "stage", "", ""), stack.variant(after)),
    ]
    planned = bench.able(planned)
    rows = await rows_of(bench, planned, items, out, score)
    return rows, [t.about.name for t in planned if t.about.name != STAGE]


def ways(stack: Stack, examples: Mapping[Messages, Messages]) -> list[Intervention]:
    """The base alone, first as the stack declares it; `examples`: what is put before each item for few-shot prompting."""
    base = stack.variant("base")
    stack.key()
    found = [Intervention(InterventionInfo(_own(stack), "template", "", ""), base)]
    names = (*(("model",) if isinstance(stack.spec.weights.base, Import) else ()), *TEMPLATES)
    found += [
        Intervention(InterventionInfo(name, "template", "", ""), retemplated(base, name))
        for name in names
        if name != _own(stack)
    ]
    found.append(Intervention(InterventionInfo(RAW, "template", "", ""), base, raw, ("raw",)))
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


def raw(inner: Respond) -> Respond:
    """No template: the conversation's texts, a line each, to be gone on with until a line ends."""

    def respond(turn: Turn) -> AsyncIterator[Event]:
        if turn.raw is not None:
            return inner(turn)  # it is read and not answered
        text = "\n".join(m.content for m in turn.messages if m.content) + "\n"
        decoding = replace(turn.decoding, stop=(*turn.decoding.stop, "\n"))
        return inner(
            replace(turn, messages=(Message("user", text),), tools=(), raw=NO_TOKENS, decoding=decoding)
        )

    return respond


def shown(examples: Mapping[Messages, Messages]) -> Wrap:
    """A few questions of the same kind with right answers before the conversation; as it is where there are none."""

    def wrap(inner: Respond) -> Respond:
        def respond(turn: Turn) -> AsyncIterator[Event]:
            before = examples.get(turn.messages, ()) if turn.raw is None else ()
            return inner(replace(turn, messages=(*before, *turn.messages)))

        return respond

    return wrap


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
