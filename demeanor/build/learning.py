"""A learning curve of the last trained stage: trained again on a quarter and a half of its rows, and measured on what fails.

In: a Stack with a stage that trains. Out: share right by share of rows, and what doubling the rows did, in a sentence. It trains:
minutes where the stage took minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from demeanor.build import workshop
from demeanor.build.bench import Bench, as_it_is, rows_of
from demeanor.build.house import House
from demeanor.errors import DemeanorError
from demeanor.evaluation import statistics
from demeanor.evaluation.cells import Cells
from demeanor.spec import Stage
from demeanor.stack import Stack
from demeanor.train.lineage import Runs
from demeanor.types import Item

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
        workshop.train(variant, runs, only=[variant.serve])
        bench = Bench(House(variant, runs, memory={}, operational=False))
        try:
            rows = asyncio.run(rows_of(bench, [as_it_is(variant)], items, out, bench.scorer(items, out)))
        finally:
            bench.close()
        cells = Cells(rows, items)
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
