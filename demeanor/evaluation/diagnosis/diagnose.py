"""Diagnosis: what fixes the items that fail, and which layer is the suspect.

In: a Stack and a Scope. Out: a `Diagnosis`: every intervention replayed on failing items and on controls, and on request a learning curve
of the last trained stage, which trains it again on a quarter and a half of its rows.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Item
from demeanor.evaluation import statistics
from demeanor.evaluation.diagnosis import cases
from demeanor.evaluation.diagnosis.analysis import AS_IS, Diagnosis, diagnose
from demeanor.evaluation.diagnosis.cases import Scope
from demeanor.evaluation.diagnosis.interventions import interventions, swaps
from demeanor.evaluation.diagnosis.replay import ReplayHarness, as_it_is
from demeanor.evaluation.experiment import Experiment, named, sampled, suite
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result import save
from demeanor.evaluation.rows import PairedTable, Row
from demeanor.evaluation.runtime import Services
from demeanor.stack.schema import Stage
from demeanor.stack.stack import Stack

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


def curve(
    stack: Stack, services: Services, items: Sequence[Item], folder: Path, name: str
) -> tuple[Curve, str]:
    """Train and measure each share of the rows, and all of them, on the same items."""
    stage, right, values = last_trained(stack), [], []
    for share in (*SHARES, 1.0):
        variant = stack if share == 1.0 else smaller(stack, share)
        services.train(variant, [variant.serve])
        with Experiment(variant, services, folder, name=name, kind=KIND, items=items) as experiment:
            rows = asyncio.run(ReplayHarness(experiment).replay([as_it_is(variant)]))
        cells = PairedTable(rows, items)
        (measured,) = cells.rows
        values.append(np.concatenate([cells.values_N(measured, axis) for axis in cells.axes]))
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
KIND = "diagnosis"


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    scope: Scope,
    *,
    name: str | None = None,
    learn: bool = False,
) -> Diagnosis:
    """Find what fails, replay every intervention and write NAME.diagnosis.json; `learn` adds a learning curve, which trains."""
    items = () if scope.turns else cases.chosen(suite(stack, scope.limit), scope)
    name = named(stack, name, scope.limit)
    with (
        tempfile.TemporaryDirectory(prefix="demeanor-") as scratch,
        Experiment(stack, services, folder, name=name, kind=KIND, items=items) as experiment,
        ReplayHarness(experiment) as harness,
    ):
        found = asyncio.run(_diagnose(harness, scope, Path(scratch)))
    if scope.turns:
        about = "The new answers are not judged; as far as answers change"
        found = replace(found, recommendation=f"{about}: {found.recommendation}")
    if learn and found.failing:
        axes = {item.axis for item in items if item.id in found.wrong}
        some = sampled([i for i in items if i.axis in axes], cases.MOST_FAILING)
        points, said = curve(stack, services, some, folder, name)
        found = replace(found, curve=points, learnt=said)
    save(folder, name, KIND, found, stack_key=stack.key())
    return found


async def _diagnose(harness: ReplayHarness, scope: Scope, scratch: Path) -> Diagnosis:
    experiment = harness.experiment
    stack, services = experiment.stack, experiment.services
    if scope.turns:
        found = cases.of_turns(services.rated_turns(scope.turns), scope.turns)
    else:
        found = await cases.of_suite(harness, scope)
    lent = swaps(stack, scope.against) if scope.against else []
    rows, axes = {row.item_id: row for row in found.rows}, {item.axis for item in found.failing}
    examples = [(i, rows[i.id].text) for i in sampled([i for i in found.spare if i.axis in axes], EXAMPLES)]
    trained = [s for s in stack.chain(stack.serve) if s == "base" or services.is_trained(stack, s)]
    tools = experiment.runtime.tools()
    planned = harness.able(
        [
            *lent,
            *interventions(stack, trained, found.failing, found.controls, rows, examples, tools, scratch),
        ]
    )
    both, replayed = [*found.failing, *found.controls], list[Row]()
    if found.failing:
        print(
            f"replaying {len(planned)} interventions on {len(found.failing)} failing items and {len(found.controls)} controls",
            file=sys.stderr,
        )
        replayed = await harness.replay(planned, both, found.score)
    kept = {item.id for item in both}
    return diagnose(
        [*(replace(r, variant=AS_IS) for r in found.rows if r.item_id in kept), *replayed],
        found.failing,
        found.controls,
        found.passing,
        [x.about for x in planned],
        name=experiment.name,
        scope=str(scope),
        judged=found.judged,
        suite=suite_hash(experiment.items),
        wrong=found.wrong,
    )
