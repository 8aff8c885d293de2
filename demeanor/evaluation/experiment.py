"""How an item is put to a variant: one turn; or the reading of given choices; or a dialogue whose later questions wait for answers.

In: a respond, a turn, an item. Out: one Completion. A `choice` or `likelihood` item is read as raw text, prefix and prefix + choice,
nothing said (`Decoding.prompt_logprobs`); a `judged` item with `turns` goes on asking. It refuses to know how an answer is scored.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

from demeanor.core.errors import DemeanorError, RequestError
from demeanor.core.types import (
    Completion,
    Decoding,
    Event,
    FinishReason,
    Item,
    Message,
    PromptRead,
    Refusal,
    Respond,
    Score,
    Turn,
    complete,
    fold,
)
from demeanor.evaluation.items import item_hash
from demeanor.evaluation.rows import (
    WEIGHTS,
    Row,
    RowKey,
    as_line,
    declined,
    error_row,
    read_rows,
    row_of,
    whole_bytes,
)
from demeanor.stack.stack import digest

READING = Decoding(temperature=0.0, max_tokens=0, prompt_logprobs=0)
READ = frozenset({"choice", "likelihood"})
"""Scorers whose items are read and not answered."""
NO_TOKENS: tuple[int, ...] = ()
"""As `raw` of a turn: the text of its message stands for itself, and the weights' own tokenizer reads it."""


async def ask(respond: Respond, turn: Turn, item: Item) -> Completion:
    """The variant's answer to an item, with the events of all that was asked for it."""
    if item.scorer in READ:
        return await read_choices(
            respond, turn, [str(x) for x in item.target.get("choices", [item.target.get("text", "")])]
        )
    later = item.target.get("turns", ()) if item.scorer == "judged" else ()
    return await dialogue(respond, turn, [str(x) for x in later]) if later else await complete(respond, turn)


async def read_choices(respond: Respond, turn: Turn, choices: list[str]) -> Completion:
    """How likely each choice is after the turn's last message: a PromptRead of the prefix and of prefix + choice; stops at a refusal."""
    prefix, events = turn.messages[-1].content, list[Event]()
    for text in (prefix, *(prefix + choice for choice in choices)):
        asked = replace(turn, messages=(Message("user", text),), tools=(), decoding=READING, raw=NO_TOKENS)
        found = [event async for event in respond(asked)]
        events += found
        if not any(isinstance(e, PromptRead) for e in found) or any(isinstance(e, Refusal) for e in found):
            break
    return fold(events)


async def dialogue(respond: Respond, turn: Turn, later: list[str]) -> Completion:
    """The answer to the last of several user turns; each waits for the answer before, and a refused one is an answer too."""
    done = await complete(respond, turn)
    events, answers = list(done.events), [done.text]
    for text in later:
        turn = replace(
            turn, messages=(*turn.messages, Message("assistant", done.text), Message("user", text))
        )
        done = await complete(respond, turn)
        events += done.events
        answers.append(done.text)
    whole = fold(events)
    return replace(
        whole,
        text="\n\n".join(f"[{n}] {answer}" for n, answer in enumerate(answers, 1)),
        refusal=done.refusal,
    )


Scorer: TypeAlias = Callable[[Item, Completion], Score | Awaitable[Score]]
JUDGED = "judged"
"""The scorer whose verdict depends on who judges."""

_scored_here: dict[Path, set[tuple[str, str, int]]] = {}
"""Rows of a file that this process has scored: its scorers do not change while it runs."""
log = logging.getLogger("demeanor.evaluation")

TOO_MANY_REQUESTS = 429
PATIENCE_S = 120.0
"""How long one item may be told to wait by a rate limit before that is an error."""


@dataclass(frozen=True, slots=True)
class ExperimentProgress:
    """How far a run is: cells done of all (`reused` of them from an earlier run), and how many of them failed."""

    done: int
    total: int
    reused: int
    errors: int
    last: Row | None = None


async def run(
    items: Sequence[Item],
    variants: Mapping[str, Respond],
    *,
    score: Scorer,
    seeds: Sequence[int],
    decoding: Decoding,
    keys: Mapping[str, str],
    out: Path,
    concurrency: int = 32,
    watch: Callable[[ExperimentProgress], None] | None = None,
    again: Callable[[Item], bool] | None = None,
) -> list[Row]:
    """Measure every (variant, item, seed) once and return its rows, variants in the order given.

    Variants with one stack key (`keys`: variant -> stack key) are one measurement. `out` is the JSONL file: its rows are
    reused by stack key, item content, decoding and seed; failed ones are tried again. An item that fails becomes a row
    without a value and is counted; a 429 is waited for. Reused answers to judged items, and to those that `again` says can be
    scored from what a row keeps, are scored again: neither who judges nor the scorer's code is in their identity. Raises DataError on
    a broken `out`.
    """
    missing = [v for v in variants if v not in keys]
    if missing:
        raise DemeanorError(f"no stack key for variant {', '.join(missing)}")
    hashes = {item.id: digest([item_hash(item), asdict(replace(decoding, seed=None))]) for item in items}
    cells = [
        RowKey(v, keys[v], item, hashes[item.id], seed) for v in variants for item in items for seed in seeds
    ]
    wanted = {c.identity for c in cells}
    known = {row.identity: row for row in read_rows(out) if row.identity in wanted and not row.error}
    here = _scored_here.setdefault(out.resolve(), set())
    todo = {
        c.identity: c
        for c in cells
        if c.identity not in known
        or c.item.scorer == JUDGED
        or (again and c.identity not in here and again(c.item))
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab", buffering=0) as file:
        file.truncate(whole_bytes(out))

        async def measure(cell: RowKey) -> Row:
            kept = known.get(cell.identity)
            row = await (
                _measure(cell, variants[cell.variant], score, decoding)
                if kept is None
                else score_again(kept, cell.item, score)
            )
            if row != kept:
                file.write(as_line(row).encode() + b"\n")  # one write: a kill tears at most the last line
            return row

        fresh = await _all(list(todo.values()), measure, concurrency, len(known), len(wanted), watch)
        os.fsync(file.fileno())
    here |= wanted
    _warn([row for identity, row in fresh.items() if identity not in known])
    found = {**known, **fresh}
    return [replace(found[c.identity], variant=c.variant) for c in cells]


async def _all(
    todo: Sequence[RowKey],
    measure: Callable[[RowKey], Awaitable[Row]],
    concurrency: int,
    reused: int,
    total: int,
    watch: Callable[[ExperimentProgress], None] | None,
) -> dict[tuple[str, str, int], Row]:
    """Measure the cells with `concurrency` workers and return the rows by identity."""
    fresh: dict[tuple[str, str, int], Row] = {}
    waiting, errors, before = iter(todo), 0, total - len(todo)

    async def work() -> None:
        nonlocal errors
        for cell in waiting:
            row = fresh[cell.identity] = await measure(cell)
            errors += bool(row.error)
            if watch:
                watch(ExperimentProgress(before + len(fresh), total, reused, errors, row))

    if watch:
        watch(ExperimentProgress(before, total, reused, 0))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(todo))):
            group.create_task(work())
    return fresh


async def _measure(cell: RowKey, respond: Respond, score: Scorer, decoding: Decoding) -> Row:
    item = cell.item
    turn = Turn(
        item.messages,
        replace(decoding, seed=cell.seed),
        item.tools,
        id=f"eval-{cell.content}-{cell.seed}",
        user="evaluation",
        variant=cell.variant,
        stack_key=cell.stack_key,
    )
    started = time.perf_counter()
    try:
        completion, started = await _answer(respond, turn, item)
        ms = 1000 * (time.perf_counter() - started)
        return row_of(cell, completion, await _scored(score, item, completion), ms)
    except Exception as error:
        return error_row(cell, error, 1000 * (time.perf_counter() - started))


async def _scored(score: Scorer, item: Item, completion: Completion) -> Score:
    found = score(item, completion)
    return found if isinstance(found, Score) else await found


async def score_again(row: Row, item: Item, score: Scorer) -> Row:
    """A kept answer with what the scorer of this run says of it; a scorer that fails leaves it unscored, and the answer stays."""
    layer = row.refused_by if row.refused_by not in ("", WEIGHTS) else ""
    refusal = Refusal(layer, row.rule, "", row.text) if layer else None
    try:
        found = await _scored(
            score, item, Completion(row.text, cast(FinishReason, row.finish_reason), refusal=refusal)
        )
    except Exception as error:
        found = Score(None, "", f"not scored: {type(error).__name__}: {error}")
    spoken = WEIGHTS if declined(item, found) else ""
    return replace(
        row, value=found.value, answer=found.answer, explanation=found.explanation, refused_by=layer or spoken
    )


async def _answer(respond: Respond, turn: Turn, item: Item) -> tuple[Completion, float]:
    """One answered turn and when its last try started (s); waits as told by a 429, `PATIENCE_S` at most in all."""
    waited = 0.0
    while True:
        started = time.perf_counter()
        try:
            return await ask(respond, turn, item), started
        except RequestError as error:
            wait_s = max(0.01, error.retry_after_s if error.retry_after_s is not None else 1.0)
            if error.status != TOO_MANY_REQUESTS or waited + wait_s > PATIENCE_S:
                raise
            waited += wait_s
            await asyncio.sleep(wait_s)


def _warn(rows: Sequence[Row]) -> None:
    """Say how many cells failed and with what; a result that hides them would be a lie."""
    failed = [row for row in rows if row.error]
    if failed:
        reasons = Counter(row.error for row in failed).most_common(3)
        log.warning(
            "%d of %d answers FAILED and have no score; run again to retry them. Most frequent: %s",
            len(failed),
            len(rows),
            "; ".join(f"{count} x {reason}" for reason, count in reasons),
        )


def sampled(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, the same ones each time, in suite order."""
    if len(items) <= most:
        return list(items)
    kept = set(random.Random(0).sample(range(len(items)), most))
    return [item for n, item in enumerate(items) if n in kept]
