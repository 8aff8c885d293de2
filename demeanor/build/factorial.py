"""The full factorial of weights and switches, measured on the same items and split among the layers.

In: a Stack with trained weights. Out: results/NAME.attribution.json, and a section in NAME.html where `eval` wrote NAME.json.
Rows go to the same NAME.rows.jsonl as those of `eval`: what was measured there is not measured again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demeanor.build import measure
from demeanor.build.house import House
from demeanor.errors import DemeanorError, unknown
from demeanor.evaluation.attribution import Attribution, attribute
from demeanor.evaluation.shapley import Cell, Game
from demeanor.stack import Stack
from demeanor.train.lineage import Runs

MOST_SWITCHES = 8


def game_of(stack: Stack, weights: Sequence[str] | None, layers: Sequence[str] | None) -> Game:
    """The game to play: default the whole chain of the served weights and every layer that can change an answer.

    Raises DemeanorError for an unknown name, weights out of training order, or more switches than anybody can wait for.
    """
    chain = stack.chain(stack.serve)
    chosen, switches = list(weights or chain), list(stack.switches if layers is None else layers)
    for name in chosen:
        if name not in stack.policies:
            raise DemeanorError(f"--weights: {unknown(name, stack.policies, noun='weights')}")
    for name in switches:
        if name not in stack.switches:
            raise DemeanorError(f"--layers: {unknown(name, stack.switches, noun='layer')}")
    line = stack.chain(chosen[-1])
    if chosen != [name for name in line if name in chosen]:
        raise DemeanorError(f"--weights {' '.join(chosen)}: not in the order they were trained in, each from the one before. "
                            f"The way to '{chosen[-1]}' is: {' '.join(line)}")
    if len(set(switches)) != len(switches) or len(switches) > MOST_SWITCHES:
        raise DemeanorError(f"--layers: {len(switches)} switches make {2 ** len(switches)} subsets; wanted distinct ones, "
                            f"{MOST_SWITCHES} at most. Known: {', '.join(stack.switches)}")
    return Game(tuple(chosen), tuple(switches))


def variant_of(stack: Stack, game: Game, cell: Cell) -> Stack:
    """The variant that a cell of the game stands for."""
    stage, on = cell
    return stack.variant(game.chain[stage], *(name for name in game.switches if name in on))


def run(stack: Stack, runs: Runs, folder: Path, *, weights: Sequence[str] | None, layers: Sequence[str] | None, limit: int | None,
        name: str | None) -> Attribution:
    """Measure every cell and write the attribution."""
    name = name or stack.spec.name
    game = game_of(stack, weights, layers)
    variants = {cell: variant_of(stack, game, cell) for cell in game.cells}
    items = measure.suite(stack, limit)
    memory: dict[Any, Any] = {}
    house = House(stack, runs, memory=memory, operational=False)
    try:
        rows, reused = asyncio.run(measure.rows_of(house, {v.model_id: v for v in variants.values()}, items, folder / f"{name}.rows.jsonl"))
    finally:
        house.close()
    ids = {cell: v.model_id for cell, v in variants.items()}
    found = attribute(rows, items, game, ids, name=name, generations=len(memory), reused=reused)
    measure.write(folder / f"{name}.attribution.json", json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found
