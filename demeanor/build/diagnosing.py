"""Diagnosis of a stack: which items fail, every intervention replayed on them and on controls, and which layer that accuses.

In: a Stack with trained weights; optionally which items, or a healthy stack to take parts from. Out: results/NAME.diagnosis.json,
and a section in NAME.html where `eval` wrote NAME.json. Rows are kept in NAME.diagnosis.rows.jsonl and reused.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from demeanor.build import cases, grafts, learning, measure
from demeanor.build.bench import Bench, rows_of
from demeanor.build.cases import Scope
from demeanor.build.house import House
from demeanor.build.interventions import trials
from demeanor.evaluation.diagnosis import Diagnosis, diagnose
from demeanor.evaluation.repairs import AS_IS
from demeanor.evaluation.suite import suite_hash
from demeanor.stack import Stack
from demeanor.train.lineage import Runs
from demeanor.types import Item

EXAMPLES = 4


def run(
    stack: Stack,
    runs: Runs,
    folder: Path,
    scope: Scope,
    *,
    name: str | None,
    house: House | None = None,
    lender: House | None = None,
    learn: bool = False,
) -> Diagnosis:
    """Find what fails, replay every intervention and write the diagnosis; `learn` adds a learning curve, which trains.

    `house` serves the stack and `lender` the healthy one (default: new ones); both are closed at the end.
    """
    name = measure.named(stack, name, scope.limit)
    items = () if scope.turns else cases.chosen(measure.suite(stack, scope.limit), scope)
    bench = Bench(house or House(stack, runs, memory={}, operational=False))
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
        points, said = learning.curve(
            stack, runs, cases.sampled([i for i in items if i.axis in axes], cases.MOST_FAILING), out
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
    bench: Bench,
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
    lent = grafts.parts(stack, scope.against) if scope.against else []
    rows, axes = {row.item_id: row for row in found.rows}, {item.axis for item in found.failing}
    examples = [
        (i, rows[i.id].text) for i in cases.sampled([i for i in found.spare if i.axis in axes], EXAMPLES)
    ]
    trained = [s for s in stack.chain(stack.serve) if s == "base" or runs.complete(stack.stage_key(s))]
    tools = bench.house.kit_tools()
    planned = [*lent, *trials(stack, trained, found.failing, found.controls, rows, examples, tools, scratch)]
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
