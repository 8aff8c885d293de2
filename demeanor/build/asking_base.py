"""The base asked in several ways: raw, with examples, and through every template, so that no stage gets credit for mere prompting.

In: a Stack with trained weights. Out: results/NAME.base.json, and a section in NAME.html where `eval` wrote NAME.json. Examples are right
answers of the whole stack to other items of the axis; rows are kept in NAME.base.rows.jsonl and reused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from demeanor.build import measure
from demeanor.build.bench import Bench, rows_of
from demeanor.build.house import House
from demeanor.build.interventions import TEMPLATES, retemplated
from demeanor.build.trials import Trial, Wrap
from demeanor.errors import DemeanorError
from demeanor.evaluation.fairness import Fairness, fairness
from demeanor.evaluation.repairs import Intervention
from demeanor.evaluation.row import Row
from demeanor.spec import Import, Remote
from demeanor.stack import Stack
from demeanor.train.lineage import Runs
from demeanor.types import Event, Item, Message, Messages, Respond, Turn

SHOTS = 3
RAW, SHOT, STAGE, WHOLE = "raw", "few-shot", "next stage", "whole"
NO_TOKENS: tuple[int, ...] = ()


def run(stack: Stack, runs: Runs, folder: Path, *, limit: int | None, name: str | None) -> Fairness:
    """Ask the base in every way, compare the stage after it with the best, and write the result.

    Raises DemeanorError if there is no such stage, or the base is on another server.
    """
    name, items = measure.named(stack, name, limit), measure.suite(stack, limit)
    chain = stack.chain(stack.serve)
    if isinstance(stack.spec.weights.base, Remote) or len(chain) < 2:
        raise DemeanorError(
            "weights: wanted a base that is here and a stage trained on it, to tell prompting from training"
        )
    bench = Bench(House(stack, runs, memory={}, operational=False))
    try:
        rows, ways = asyncio.run(_measure(bench, stack, items, folder / f"{name}.base.rows.jsonl", chain[1]))
    finally:
        bench.close()
    found = fairness(rows, items, name=name, ways={way: way for way in ways}, declared=ways[0], stage=STAGE)
    found = replace(found, stage=chain[1])
    tree = {"stack_key": stack.key(), **asdict(found)}
    measure.write(
        folder / f"{name}.base.json", json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return found


async def _measure(
    bench: Bench, stack: Stack, items: Sequence[Item], out: Path, after: str
) -> tuple[list[Row], list[str]]:
    whole = Trial(Intervention(WHOLE, "again", "", ""), stack)
    score = bench.scorer(items, out)
    told = await rows_of(bench, [whole], items, out, score)
    planned = [
        *ways(stack, shots(items, told)),
        Trial(Intervention(STAGE, "stage", "", ""), stack.variant(after)),
    ]
    planned = bench.able(planned)
    rows = await rows_of(bench, planned, items, out, score)
    return rows, [t.about.name for t in planned if t.about.name != STAGE]


def ways(stack: Stack, examples: Mapping[Messages, Messages]) -> list[Trial]:
    """The base alone, first as the stack declares it; `examples`: what is put before each item for few-shot prompting."""
    base = stack.variant("base")
    stack.key()
    found = [Trial(Intervention(_own(stack), "template", "", ""), base)]
    names = (*(("model",) if isinstance(stack.spec.weights.base, Import) else ()), *TEMPLATES)
    found += [
        Trial(Intervention(name, "template", "", ""), retemplated(base, name))
        for name in names
        if name != _own(stack)
    ]
    found.append(Trial(Intervention(RAW, "template", "", ""), base, raw, ("raw",)))
    if examples:
        marks = (
            "few-shot",
            sorted((m[-1].content, [x.content for x in shown]) for m, shown in examples.items()),
        )
        found.append(Trial(Intervention(SHOT, "examples", "", ""), base, shown(examples), marks))
    return found


def _own(stack: Stack) -> str:
    """The template through which the stack itself asks its base."""
    return str(getattr(stack.spec.weights.base, "template", None) or stack.spec.template)


def raw(inner: Respond) -> Respond:
    """No template: the conversation's texts, a line each, to be gone on with until a line ends."""

    def respond(turn: Turn) -> AsyncIterator[Event]:
        if turn.raw is not None:
            return inner(turn)  # it is read and not answered
        text = "\n".join(m.content for m in turn.messages if m.content) + "\n"
        decoding = replace(turn.decoding, stop=(*turn.decoding.stop, "\n"))
        return inner(
            replace(turn, messages=(Message("user", text),), tools=(), raw=NO_TOKENS, decoding=decoding)
        )

    return respond


def shown(examples: Mapping[Messages, Messages]) -> Wrap:
    """A few questions of the same kind with right answers before the conversation; as it is where there are none."""

    def wrap(inner: Respond) -> Respond:
        def respond(turn: Turn) -> AsyncIterator[Event]:
            before = examples.get(turn.messages, ()) if turn.raw is None else ()
            return inner(replace(turn, messages=(*before, *turn.messages)))

        return respond

    return wrap


def shots(items: Sequence[Item], rows: Sequence[Row]) -> dict[Messages, Messages]:
    """For each item, right answers of other clusters of its axis as a conversation; the first ones in suite order, the same each time."""
    right = {
        row.item_id: row.text
        for row in rows
        if row.value is not None and row.value >= 1 and row.text.strip() and not row.refused_by
    }
    found: dict[Messages, Messages] = {}
    for item in items:
        others = [
            x
            for x in items
            if x.axis == item.axis and x.cluster != item.cluster and x.id in right and len(x.messages) == 1
        ]
        picked = list({x.cluster: x for x in reversed(others)}.values())[::-1][:SHOTS]
        if picked:
            found[item.messages] = tuple(
                m for x in picked for m in (*x.messages, Message("assistant", right[x.id]))
            )
    return found
