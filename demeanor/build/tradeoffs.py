"""The frontier of a stack: its stages bare and behind all layers, with and without policy, on the same items.

In: a Stack with trained weights. Out: results/NAME.frontier.json, and a section in NAME.html where `eval` wrote NAME.json.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from demeanor.build import certainty, measure, thresholds
from demeanor.build.cases import sampled
from demeanor.build.house import House
from demeanor.evaluation.frontier import Answered, Frontier, Moved, frontier
from demeanor.evaluation.row import Row
from demeanor.evaluation.suite import SAFE, UNSAFE
from demeanor.spec import Remote
from demeanor.stack import Stack
from demeanor.train.lineage import Runs
from demeanor.types import Item

POLICY = "policy"
ASKED = 160
"""Items, at most, that the weights of a stage are asked about their own answers."""


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


def sweep(
    variants: dict[str, Stack],
    labels: dict[str, str],
    before: dict[str, str],
    items: Sequence[Item],
    scratch: Path,
) -> dict[str, tuple[str, float, bool]]:
    """Add every point with a policy at every threshold of its rules of cues; returns rule, threshold, and whether it was added."""
    found: dict[str, tuple[str, float, bool]] = {}
    for model_id, variant in list(variants.items()):
        for cut in thresholds.cuts(variant, items, scratch):
            if not cut.declared:
                variants[cut.variant.model_id] = cut.variant
                labels[cut.variant.model_id] = f"{labels[model_id]}@{cut.threshold:g}"
                if model_id in before:
                    before[cut.variant.model_id] = before[model_id]
                found[cut.variant.model_id] = cut.rule, cut.threshold, True
            else:
                found[model_id] = cut.rule, cut.threshold, False
    return found


def run(stack: Stack, runs: Runs, folder: Path, *, limit: int | None, name: str | None) -> Frontier:
    """Measure every point, and of the bare stages also how far they moved and how sure they are; write the frontier."""
    name, items = measure.named(stack, name, limit), measure.suite(stack, limit)
    variants, labels, before = points(stack)
    house = House(stack, runs, memory={}, operational=False)
    with tempfile.TemporaryDirectory(prefix="demeanor-") as scratch:
        swept = sweep(variants, labels, before, items, Path(scratch))
        try:
            rows, moved, answered = asyncio.run(
                _measure(house, variants, items, folder / f"{name}.rows.jsonl")
            )
        finally:
            house.close()
    found = frontier(rows, items, labels, before, name=name, moved=moved, answered=answered, thresholds=swept)
    tree = {"stack_key": stack.key(), **asdict(found)}
    measure.write(folder / f"{name}.frontier.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    return found


async def _measure(
    house: House, variants: dict[str, Stack], items: Sequence[Item], out: Path
) -> tuple[list[Row], dict[str, list[Moved]], dict[str, list[Answered]]]:
    rows, _ = await measure.rows_of(house, variants, items, out)
    if isinstance(house.stack.spec.weights.base, Remote):
        return rows, {}, {}  # its tokens are another server's
    bare = {i: v for i, v in variants.items() if not any(x.behaviour for x in v.layers)}
    some = [item for item in sampled(items, ASKED) if item.messages]
    able = [item for item in some if item.axis not in (SAFE, UNSAFE)]
    moved = {
        i: await certainty.moved(house, v, house.stack.parent(v.serve), some)
        for i, v in bare.items()
        if v.serve != "base"
    }
    return rows, moved, {i: await certainty.answered(house, v, able) for i, v in bare.items()}
