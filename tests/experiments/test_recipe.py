"""Why the demo's recipe is what it is: optimiser and initialisation of the base, on the same tokens. `make experiments`.

Each cell trains the demo's base (minutes), prompts it as a transcript and counts right answers on two axes of the suite.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from demeanor import app
from demeanor.app import StackRuntime, load_stack
from demeanor.core.files import origin
from demeanor.core.intervals import wilson
from demeanor.core.types import Turn, complete
from demeanor.evaluation.experiment import suite
from demeanor.evaluation.scorers import score_item
from demeanor.stack.stack import decoding_of
from demeanor.training.runs import Runs
from tests.conftest import REPOSITORY

AXES = ("facts", "extraction")


@pytest.mark.experiment
def test_muon_and_mimetic_initialisation_each_beat_what_they_replace() -> None:
    rows = []
    for optimizer in ("adamw", "muon"):
        for init in ("normal", "mimetic"):
            sets = [f"weights.base.optim.kind={optimizer}", f"weights.base.model.init={init}"]
            stack = load_stack(REPOSITORY / "stacks/demo/demo.yaml", sets)
            runs = Runs(REPOSITORY / "runs")
            app.train(stack, runs, only=["base"])
            rows.append(
                {
                    "optimizer": optimizer,
                    "init": init,
                    **accuracies(StackRuntime(stack, runs, operational=False)),
                }
            )
    table = Table(title="the demo's base, same tokens and learning rate", title_justify="left", box=None)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(
            *(
                x if isinstance(x, str) else f"{x['right']}/{x['n']} ({x['low']:.2f}-{x['high']:.2f})"
                for x in row.values()
            )
        )
    Console(width=120).print(table)
    out = REPOSITORY / "results" / "experiments" / "recipe.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, **origin()}, indent=1) + "\n")
    found = {(r["optimizer"], r["init"]): r for r in rows}
    assert found["muon", "mimetic"]["facts"]["right"] > found["adamw", "mimetic"]["facts"]["right"]
    assert found["muon", "mimetic"]["extraction"]["right"] > found["muon", "normal"]["extraction"]["right"]


def accuracies(house: StackRuntime) -> dict[str, dict[str, float]]:
    """Right answers of the base per axis, with Wilson intervals (items are not independent within a port: read them as narrow)."""
    variant = house.stack.resolve(f"{house.stack.spec.name}:base")
    respond = house.respond(variant)

    async def values(axis: str) -> list[float]:
        turns = [
            (i, Turn(i.messages, decoding_of(house.stack), id=i.id))
            for i in suite(house.stack)
            if i.axis == axis
        ]
        done = await asyncio.gather(*(complete(respond, t) for _, t in turns))
        return [score_item(i, c).value or 0.0 for (i, _), c in zip(turns, done)]

    try:
        found = {axis: asyncio.run(values(axis)) for axis in AXES}
    finally:
        house.close()
    return {
        axis: {
            "right": int(sum(v)),
            "n": len(v),
            "low": wilson(sum(v), len(v))[0],
            "high": wilson(sum(v), len(v))[1],
        }
        for axis, v in found.items()
    }


def test_the_experiments_read_axes_that_exist() -> None:
    stack = load_stack(REPOSITORY / "stacks/demo/demo.yaml")
    assert set(AXES) <= {i.axis for i in suite(stack)}
    assert Path(REPOSITORY / "stacks/demo/demo.yaml").is_file()
