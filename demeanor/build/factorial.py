"""The full factorial of weights and switches, or a fraction of it, measured on the same items and split among the layers.

In: a Stack with trained weights. Out: results/NAME.attribution.json, and a section in NAME.html where `eval` wrote NAME.json.
Rows go to the same NAME.rows.jsonl as those of `eval`: what was measured there is not measured again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from demeanor.build import measure
from demeanor.build.house import House
from demeanor.build.interventions import retemplated
from demeanor.errors import UsageError, unknown
from demeanor.evaluation.attribution import Attribution, attribute
from demeanor.evaluation.fractions import Resolution, plan
from demeanor.evaluation.shapley import Cell, Game
from demeanor.spec import DecodingSpec
from demeanor.stack import Stack
from demeanor.train.lineage import Runs

MOST_SWITCHES = 8
MOST_OF_A_FRACTION = 11
TEMPLATE, DECODING = "template", "decoding"
PLAIN = "transcript"
"""Without its template a stack is prompted as its base is, or else with this one."""


def game_of(
    stack: Stack, weights: Sequence[str] | None, layers: Sequence[str] | None, most: int = MOST_SWITCHES
) -> Game:
    """The game to play: default the whole chain of the served weights and every layer that can change an answer.

    `template` and `decoding` may be switched as layers are: off is the base's template, and greedy. Raises DemeanorError for an
    unknown name, a switch that changes nothing, weights out of training order, or more switches than anybody can wait for.
    """
    chain = stack.chain(stack.serve)
    chosen, switches = list(weights or chain), list(stack.switches if layers is None else layers)
    for name in chosen:
        if name not in stack.policies:
            raise UsageError(f"--weights: {unknown(name, stack.policies, noun='weights')}")
    for name in switches:
        if name not in (*stack.switches, TEMPLATE, DECODING):
            raise UsageError(
                f"--layers: {unknown(name, [*stack.switches, TEMPLATE, DECODING], noun='layer')}"
            )
    for name, same in (
        (TEMPLATE, plain_template(stack) == stack.spec.template),
        (DECODING, greedy(stack) == stack.spec.decoding),
    ):
        if name in switches and name not in stack.switches and same:
            raise UsageError(
                f"--layers {name}: the stack's {name} is the neutral one already, so there is nothing to switch"
            )
    line = stack.chain(chosen[-1])
    if chosen != [name for name in line if name in chosen]:
        raise UsageError(
            f"--weights {' '.join(chosen)}: not in the order they were trained in, each from the one before. "
            f"The way to '{chosen[-1]}' is: {' '.join(line)}"
        )
    if len(set(switches)) != len(switches) or len(switches) > most:
        more = "" if most > MOST_SWITCHES else f" (with --fraction {MOST_OF_A_FRACTION})"
        raise UsageError(
            f"--layers: {len(switches)} switches make {2 ** len(switches)} subsets; wanted distinct ones, "
            f"{most} at most{more}. Known: {', '.join([*stack.switches, TEMPLATE, DECODING])}"
        )
    return Game(tuple(chosen), tuple(switches))


def plain_template(stack: Stack) -> str:
    """The template that stands in for the stack's: its base's own, else `PLAIN`."""
    return getattr(stack.spec.weights.base, "template", None) or PLAIN


def greedy(stack: Stack) -> DecodingSpec:
    """The decoding that stands in for the stack's: greedy, and nothing else but how long an answer may be and where it stops."""
    return DecodingSpec(
        temperature=0.0, max_tokens=stack.spec.decoding.max_tokens, stop=stack.spec.decoding.stop
    )


def variant_of(stack: Stack, game: Game, cell: Cell) -> Stack:
    """The variant that a cell of the game stands for."""
    stage, on = cell
    found = stack.variant(
        game.chain[stage], *(name for name in game.switches if name in on and name in stack.switches)
    )
    if (
        TEMPLATE in game.switches
        and TEMPLATE not in on
        and TEMPLATE not in stack.switches
        and found.template != plain_template(stack)
    ):
        found = replace(
            retemplated(found, plain_template(stack)), model_id=f"{found.model_id}~{plain_template(stack)}"
        )
    if DECODING in game.switches and DECODING not in on and DECODING not in stack.switches:
        found.key()
        spec = found.spec.model_copy(update={"decoding": greedy(stack)})
        found = replace(found, spec=spec, model_id=f"{found.model_id}~greedy")
    return found


def run(
    stack: Stack,
    runs: Runs,
    folder: Path,
    *,
    weights: Sequence[str] | None,
    layers: Sequence[str] | None,
    limit: int | None,
    name: str | None,
    fraction: Resolution = "full",
    house: House | None = None,
) -> Attribution:
    """Measure every cell of the design and write the attribution; `house` (default: a new one) is closed at the end."""
    name = measure.named(stack, name, limit)
    stack.key()
    game = game_of(stack, weights, layers, MOST_SWITCHES if fraction == "full" else MOST_OF_A_FRACTION)
    design = plan(game, fraction)
    variants = {cell: variant_of(stack, game, cell) for cell in design.cells}
    items = measure.suite(stack, limit)
    house = house or House(stack, runs, memory={}, operational=False)
    try:
        rows, reused = asyncio.run(
            measure.rows_of(
                house, {v.model_id: v for v in variants.values()}, items, folder / f"{name}.rows.jsonl"
            )
        )
    finally:
        house.close()
    ids = {cell: v.model_id for cell, v in variants.items()}
    found = attribute(
        rows,
        items,
        game,
        ids,
        name=name,
        design=design,
        reused=reused,
        generations=None if house.memory is None else len(house.memory) - house.drafts.confirmed,
        confirmed=house.drafts.confirmed,
    )
    tree = {"stack_key": stack.key(), **asdict(found)}
    measure.write(
        folder / f"{name}.attribution.json",
        json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    return found
