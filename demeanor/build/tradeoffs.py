"""The frontier of a stack: its stages bare and behind all layers, with and without policy, on the same items.

In: a Stack with trained weights. Out: results/NAME.frontier.json, and a section in NAME.html where `eval` wrote NAME.json.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from demeanor.build import measure
from demeanor.build.house import House
from demeanor.evaluation.frontier import Frontier, frontier
from demeanor.stack import Stack
from demeanor.train.lineage import Runs

POLICY = "policy"


def points(stack: Stack) -> tuple[dict[str, Stack], dict[str, str], dict[str, str]]:
    """Variants to place, their labels, and what each came from: bare stages; each behind all layers but policy; and behind all."""
    rules = [x.name for x in stack.layers if x.kind == POLICY]
    others = [name for name in stack.switches if name not in rules]
    variants: dict[str, Stack] = {}
    labels: dict[str, str] = {}
    before: dict[str, str] = {}
    for on, suffix in (((), ""), (tuple(others), "+layers"), (tuple(stack.switches), "+policy")):
        earlier = None
        for stage in stack.chain(stack.serve):
            variant = stack.variant(stage, *on)
            if variant.model_id in variants:
                continue
            variants[variant.model_id], labels[variant.model_id] = variant, f"{stage}{suffix}"
            came_from = stack.variant(stage, *others).model_id if suffix == "+policy" else earlier
            if came_from:
                before[variant.model_id] = came_from
            earlier = variant.model_id
    return variants, labels, before


def run(stack: Stack, runs: Runs, folder: Path, *, limit: int | None, name: str | None) -> Frontier:
    """Measure every point and write the frontier."""
    name, items = name or stack.spec.name, measure.suite(stack, limit)
    variants, labels, before = points(stack)
    house = House(stack, runs, memory={}, operational=False)
    try:
        rows, _ = asyncio.run(measure.rows_of(house, variants, items, folder / f"{name}.rows.jsonl"))
    finally:
        house.close()
    found = frontier(rows, items, labels, before, name=name)
    measure.write(folder / f"{name}.frontier.json", json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")
    return found
