"""A learning curve of the last trained stage: trained again on a quarter and a half of its rows, and measured on what fails.

In: a Stack with a stage that trains. Out: share right by share of rows, and what doubling the rows did, in a sentence. It trains:
minutes where the stage took minutes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from demeanor import app
from demeanor.app import StackRuntime
from demeanor.core.errors import DemeanorError
from demeanor.core.types import Item
from demeanor.evaluation import measure, statistics
from demeanor.evaluation.diagnosis import cases, replay
from demeanor.evaluation.diagnosis.analysis import AS_IS, Diagnosis, diagnose
from demeanor.evaluation.diagnosis.cases import Scope
from demeanor.evaluation.diagnosis.interventions import interventions
from demeanor.evaluation.diagnosis.replay import ReplayHarness, as_it_is, rows_of
from demeanor.evaluation.experiment import sampled
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.table import PairedTable
from demeanor.stack.schema import Stage
from demeanor.stack.stack import Stack
from demeanor.train.runs import Runs

SHARES = (0.25, 0.5)
Curve = tuple[tuple[float, float], ...]


def last_trained(stack: Stack) -> Stage:
    """The last stage before what is served that learns from rows; raises DemeanorError where there is none."""
    for name in reversed(stack.chain(stack.serve)[1:]):
        if isinstance(stage := stack.stage(name), Stage):
            return stage
    raise DemeanorError(
        f"--learning-curve: nothing that leads to '{stack.serve}' in {stack.path} is trained on rows, "
        "so there is nothing to vary; leave it out"
    )


def smaller(stack: Stack, share: float) -> Stack:
    """The stack whose last trained stage reads a fixed share of each of its sources."""
    stage = last_trained(stack)
    less = stage.model_copy(
        update={"data": tuple(s.model_copy(update={"weight": s.weight * share}) for s in stage.data)}
    )
    stages = tuple(less if s.name == stage.name else s for s in stack.spec.weights.stages)
    weights = stack.spec.weights.model_copy(update={"stages": stages})
    return replace(stack, spec=stack.spec.model_copy(update={"weights": weights}), keys={})


def curve(stack: Stack, runs: Runs, items: Sequence[Item], out: Path) -> tuple[Curve, str]:
    """Train and measure each share of the rows, and all of them, on the same items."""
    stage, right, values = last_trained(stack), [], []
    for share in (*SHARES, 1.0):
        variant = stack if share == 1.0 else smaller(stack, share)
        app.train(variant, runs, only=[variant.serve])
        bench = ReplayHarness(StackRuntime(variant, runs, memory={}, operational=False))
        try:
            rows = asyncio.run(rows_of(bench, [as_it_is(variant)], items, out, bench.scorer(items, out)))
        finally:
            bench.close()
        cells = PairedTable(rows, items)
        (name,) = cells.rows
        values.append(np.concatenate([cells.values_N(name, axis) for axis in cells.axes]))
        right.append((share, float(np.nanmean(values[-1]))))
    clusters = np.array([item.cluster for axis in cells.axes.values() for item in axis])
    kept = ~np.isnan(values[-2] + values[-1])
    gain = statistics.paired(values[-2][kept], values[-1][kept], clusters[kept])
    return tuple(right), said(stage.name, gain)


def said(stage: str, gain: statistics.Estimate) -> str:
    """What doubling the rows of a stage did to the items, and what follows."""
    bounds = (
        "" if gain.low is None or gain.high is None else f" ({100 * gain.low:+.0f} to {100 * gain.high:+.0f})"
    )
    measured = f"from half of the rows of {stage} to all of them: {100 * gain.value:+.1f} points{bounds}"
    if gain.low is not None and gain.low > 0:
        return (
            f"Learning curve, {measured}; twice as many rows are worth a try, and should be measured again."
        )
    if gain.high is not None and gain.high < 0:
        return f"Learning curve, {measured}: more rows like these do harm."
    return f"Learning curve, {measured}; more rows like these are not shown to help."


EXAMPLES = 4


def run(
    stack: Stack,
    runs: Runs,
    folder: Path,
    scope: Scope,
    *,
    name: str | None,
    house: StackRuntime | None = None,
    lender: StackRuntime | None = None,
    learn: bool = False,
) -> Diagnosis:
    """Find what fails, replay every intervention and write the diagnosis; `learn` adds a learning curve, which trains.

    `house` serves the stack and `lender` the healthy one (default: new ones); both are closed at the end.
    """
    name = measure.named(stack, name, scope.limit)
    items = () if scope.turns else cases.chosen(measure.suite(stack, scope.limit), scope)
    bench = ReplayHarness(house or StackRuntime(stack, runs, memory={}, operational=False))
    if lender:
        bench.lenders[lender.stack.key()] = lender
    out = folder / f"{name}.diagnosis.rows.jsonl"
    try:
        with tempfile.TemporaryDirectory(prefix="demeanor-") as scratch:
            found = asyncio.run(_diagnose(bench, stack, runs, items, scope, out, Path(scratch), name))
    finally:
        bench.close()
    if scope.turns:
        found = replace(
            found,
            recommendation=f"Nobody has judged the new answers; as far as answers change: {found.recommendation}",
        )
    if learn and found.failing:
        axes = {item.axis for item in items if item.id in found.wrong}
        points, said = curve(
            stack, runs, sampled([i for i in items if i.axis in axes], cases.MOST_FAILING), out
        )
        found = replace(found, curve=points, learnt=said)
    write(found, folder, stack.key())
    return found


def write(found: Diagnosis, folder: Path, stack_key: str) -> None:
    """Write NAME.diagnosis.json atomically."""
    tree = {"stack_key": stack_key, **asdict(found)}
    measure.write(
        folder / f"{found.name}.diagnosis.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    )


async def _diagnose(
    bench: ReplayHarness,
    stack: Stack,
    runs: Runs,
    items: Sequence[Item],
    scope: Scope,
    out: Path,
    scratch: Path,
    name: str,
) -> Diagnosis:
    found = (
        cases.of_turns(stack, scope.turns)
        if scope.turns
        else await cases.of_suite(bench, stack, items, scope, out)
    )
    lent = replay.swaps(stack, scope.against) if scope.against else []
    rows, axes = {row.item_id: row for row in found.rows}, {item.axis for item in found.failing}
    examples = [(i, rows[i.id].text) for i in sampled([i for i in found.spare if i.axis in axes], EXAMPLES)]
    trained = [s for s in stack.chain(stack.serve) if s == "base" or runs.complete(stack.stage_key(s))]
    tools = bench.house.tools()
    planned = [
        *lent,
        *interventions(stack, trained, found.failing, found.controls, rows, examples, tools, scratch),
    ]
    planned = bench.able(planned)
    both = [*found.failing, *found.controls]
    if found.failing:
        print(
            f"replaying {len(planned)} interventions on {len(found.failing)} failing items and {len(found.controls)} controls",
            file=sys.stderr,
        )
    replayed = await rows_of(bench, planned, both, out, found.judge) if found.failing else []
    kept = {item.id for item in both}
    return diagnose(
        [*(replace(r, variant=AS_IS) for r in found.rows if r.item_id in kept), *replayed],
        found.failing,
        found.controls,
        found.passing,
        [t.about for t in planned],
        name=name,
        scope=str(scope),
        judged=found.judged,
        suite=suite_hash(items),
        wrong=found.wrong,
    )
