"""The same stack trained with several seeds and measured each time, so that a claim about a layer is one about its recipe.

In: a stack file. Out: weights of every seed in runs/, NAME.seedN.json of each, results/NAME.seeds.json, and a section in NAME.html where
`eval` wrote NAME.json. What is trained or measured already is reused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from demeanor.build import measure, workshop
from demeanor.errors import DemeanorError, UsageError
from demeanor.evaluation.result import Result
from demeanor.evaluation.seeds import Seeds, seeds
from demeanor.spec import Scratch, Stage
from demeanor.stack import Stack
from demeanor.train.lineage import Runs


def reseeded(path: Path, overrides: Sequence[str], seed: int) -> Stack:
    """The stack with every seed of its training set to one; raises DemeanorError if nothing of it is trained here."""
    stack = workshop.load_stack(path, overrides)
    base = stack.spec.weights.base
    places = ["weights.base.seed"] if isinstance(base, Scratch) else []
    places += [f"weights.stages.{s.name}.seed" for s in stack.spec.weights.stages if isinstance(s, Stage)]
    if not places:
        raise DemeanorError(f"{path}: nothing of it is trained here, so there is no seed to change")
    return workshop.load_stack(path, [*overrides, *(f"{place}={seed}" for place in places)])


def run(
    path: Path,
    overrides: Sequence[str],
    runs: Runs,
    folder: Path,
    *,
    chosen: Sequence[int],
    limit: int | None,
    name: str | None,
) -> Seeds:
    """Train and measure the stack with each seed, one after the other, and write what its steps did over all of them."""
    if len(set(chosen)) != len(chosen) or len(chosen) < 2:
        raise UsageError(f"--seeds: got {' '.join(map(str, chosen))}, wanted two or more, each once")
    found: dict[int, Result] = {}
    for number, seed in enumerate(chosen, 1):
        stack = reseeded(path, overrides, seed)
        name = measure.named(stack, name, limit)
        print(f"\nseed {seed} ({number} of {len(chosen)})")
        workshop.train(stack, runs)
        found[seed] = measure.evaluate(
            stack, runs, folder, variants=None, limit=limit, name=f"{name}.seed{seed}"
        )
    whole = seeds(found, name=str(name))
    tree = {"stack_key": workshop.load_stack(path, overrides).key(), **asdict(whole)}
    measure.write(
        folder / f"{name}.seeds.json", json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return whole
