"""Which items fail and which pass as the stack is: measured now, read from rows that `eval` left, or logged turns with feedback.

In: a Stack and a Scope. Out: Cases. Of logged turns nobody knows what is right: a disliked answer counts as repaired when it changes,
a liked one as broken when it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from demeanor.core.errors import DataError, unknown
from demeanor.core.types import Completion, Item, Score
from demeanor.evaluation.diagnosis.replay import ReplayHarness, as_it_is, rows_of
from demeanor.evaluation.experiment import JUDGED, Scorer, sampled, score_again
from demeanor.evaluation.items import item_hash
from demeanor.evaluation.measure import CONCURRENCY
from demeanor.evaluation.rows import Row, RowKey, read_rows, row_of
from demeanor.evaluation.scorers import scored_from_text as scorable_from_text
from demeanor.stack.stack import Stack, decoding_of, digest
from demeanor.store import database
from demeanor.store.database import Stored

CONTROLS, MOST_FAILING = 160, 200
LOGGED, ANONYMOUS = "logged turns", "anonymous"
BY_SCORERS, BY_CHANGE = (
    "by the scorers of the items",
    "by whether the answer changed (nobody has judged the new ones)",
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which items to diagnose: of an axis, by id, or all; `against` a healthy stack, or rows from `before`, only what was right there.

    As the stack is they are answered now, or were in `rows` of `eval`; or they are the `turns` with feedback of a database.
    """

    axis: str | None = None
    ids: tuple[str, ...] = ()
    limit: int | None = None
    against: Stack | None = None
    before: Path | None = None
    rows: Path | None = None
    turns: Path | None = None

    def __str__(self) -> str:
        if self.turns:
            return f"the turns with feedback in {self.turns}"
        what = (
            f"axis {self.axis}" if self.axis else f"{len(self.ids)} named items" if self.ids else "all items"
        )
        if self.against:
            return f"{what} that {self.against.path} has right"
        return f"{what} that were right in {self.before}" if self.before else what


@dataclass(frozen=True, slots=True)
class Cases:
    """Failing items and controls, the numbers they were sampled from, their rows as the stack is, and passing items left over."""

    failing: list[Item]
    wrong: int
    controls: list[Item]
    passing: int
    rows: list[Row]
    spare: list[Item]
    judge: Scorer
    judged: str


async def of_suite(
    bench: ReplayHarness, stack: Stack, items: Sequence[Item], scope: Scope, out: Path
) -> Cases:
    """Items of the suite, by what the stack answers to them."""
    score = bench.scorer(items, out)
    as_is = (
        await scored_anew(recorded(scope.rows, stack, items), items, score)
        if scope.rows
        else await rows_of(bench, [as_it_is(stack)], items, out, score)
    )
    if scope.against:
        bar = await rows_of(
            ReplayHarness(bench.lender(scope.against)), [as_it_is(scope.against)], items, out, score
        )
        right = {row.item_id for row in bar if (row.value or 0.0) >= 0.5}
        items = [item for item in items if item.id in right]
    elif scope.before:
        right = right_before(scope.before, stack)
        items = [item for item in items if item.id in right]
    values: dict[str, list[float]] = {}
    for row in as_is:
        if row.value is not None:
            values.setdefault(row.item_id, []).append(row.value)
    wrong = {i for i, found in values.items() if sum(found) / len(found) < 0.5}
    wanted = {
        item.id
        for item in items
        if scope.axis in (None, item.axis) and (not scope.ids or item.id in scope.ids)
    }
    return _cases(
        [i for i in items if i.id in wrong and i.id in wanted],
        [i for i in items if i.id in values and i.id not in wrong],
        as_is,
        score,
        BY_SCORERS + (f", and {bench.court.judge.model} where they need a judge" if bench.court else ""),
    )


def _cases(
    bad: Sequence[Item], good: Sequence[Item], rows: Sequence[Row], score: Scorer, judged: str
) -> Cases:
    failing, controls = sampled(bad, MOST_FAILING), sampled(good, CONTROLS)
    taken = {item.id for item in controls}
    kept = {item.id for item in (*failing, *good)}
    return Cases(
        failing,
        len(bad),
        controls,
        len(good),
        [r for r in rows if r.item_id in kept],
        [i for i in good if i.id not in taken],
        score,
        judged,
    )


def chosen(items: Sequence[Item], scope: Scope) -> tuple[Item, ...]:
    """The items of the suite, checked against the scope; raises DataError for an axis or id that is not there."""
    axes, ids = {item.axis for item in items}, {item.id for item in items}
    if scope.axis is not None and scope.axis not in axes:
        raise DataError(f"--axis: {unknown(scope.axis, axes, noun='axis')}")
    if wrong := [i for i in scope.ids if i not in ids]:
        raise DataError(
            f"--items: no item of the suite has the id '{wrong[0]}'. Ids look like '{items[0].id}'."
        )
    return tuple(items)


def recorded(path: Path, stack: Stack, items: Sequence[Item]) -> list[Row]:
    """The rows that the stack, as it is now, left in a file; raises DataError where there are none of these items and this decoding."""
    if not path.is_file():
        raise DataError(f"--rows {path}: no such file; `demeanor eval` writes results/NAME.rows.jsonl")
    every = read_rows(path)
    wanted = {
        item.id: digest([item_hash(item), asdict(replace(decoding_of(stack), seed=None))]) for item in items
    }
    found = [row for row in every if row.stack_key == stack.key() and wanted.get(row.item_id) == row.cell]
    if not found:
        known = ", ".join(sorted({f"{row.variant} ({row.stack_key})" for row in every})) or "nothing"
        raise DataError(
            f"--rows {path}: no row of this stack ({stack.key()}) on these items; it holds {known}. Measure it: demeanor eval "
            f"{stack.path}"
        )
    return found


async def scored_anew(rows: Sequence[Row], items: Sequence[Item], score: Scorer) -> list[Row]:
    """The rows with what the scorers of this run say, and its judge or nobody of judged items: the word of others is not comparable."""
    by, free = (
        {item.id: item for item in items if item.scorer == JUDGED or scorable_from_text(item)},
        asyncio.Semaphore(CONCURRENCY),
    )

    async def one(row: Row) -> Row:
        if row.error or row.item_id not in by:
            return row
        async with free:
            return await score_again(row, by[row.item_id], score)

    return await asyncio.gather(*map(one, rows))


def right_before(path: Path, stack: Stack) -> set[str]:
    """Items that the whole stack of this name had right in an earlier result's rows; raises DataError where it has none there."""
    if not path.is_file():
        raise DataError(
            f"--against {path}: no such file; wanted a healthy stack (.yaml) or the rows of an earlier result (.rows.jsonl)"
        )
    values: dict[str, list[float]] = {}
    every = read_rows(path)
    for row in every:
        if row.variant == stack.spec.name and row.value is not None:
            values.setdefault(row.item_id, []).append(row.value)
    if not values:
        known = ", ".join(sorted({row.variant for row in every})) or "nothing"
        raise DataError(f"--against {path}: no row of '{stack.spec.name}'; it holds {known}")
    return {i for i, found in values.items() if sum(found) / len(found) >= 0.5}


# ---- logged turns ----


def of_turns(stack: Stack, path: Path) -> Cases:
    """Turns of a database with bad feedback, and those with good feedback as controls; raises DataError where none is bad."""
    if not path.is_file():
        raise DataError(f"--turns {path}: no such database; the `record` layer writes one")
    if not database.holds_turns(path):  # opening would make an empty one of it
        raise DataError(f"--turns {path}: holds no turns; wanted a database that the `record` layer wrote")
    store = database.open_url(f"sqlite:///{path.resolve()}", root=Path.cwd())
    try:
        given: dict[str, list[float]] = {}
        for feedback in store.feedback():
            given.setdefault(feedback.turn_id, []).append(feedback.value)
        stored = {
            i: turn for i in given if (turn := store.turn(i)) is not None and turn.finish_reason is not None
        }
    finally:
        store.close()
    opinion = {i: sum(given[i]) / len(given[i]) for i in stored}
    items = {i: item_of(turn, opinion[i] > 0) for i, turn in stored.items()}
    bad, good = (
        [items[i] for i, v in opinion.items() if v < 0],
        [items[i] for i, v in opinion.items() if v > 0],
    )
    if not bad:
        raise DataError(
            f"--turns {path}: none of {len(given)} turns with feedback was disliked (a value below 0), "
            "so there is nothing to diagnose"
        )
    rows = [
        row_of(
            RowKey(AS_LOGGED, turn.turn.stack_key, items[i], i, 0),
            turn.completion,
            Score(float(opinion[i] > 0)),
            _ms(turn),
        )
        for i, turn in stored.items()
    ]
    return _cases(bad, good, rows, as_liked, BY_CHANGE)


AS_LOGGED = "as logged"


def item_of(stored: Stored, liked: bool) -> Item:
    """A recorded turn as an item; turns of one known user belong together."""
    turn = stored.turn
    cluster = turn.id if turn.user == ANONYMOUS else turn.user
    return Item(
        turn.id,
        turn.messages,
        LOGGED,
        {"said": stored.completion.text, "liked": liked},
        LOGGED,
        cluster,
        None,
        (),
        turn.tools,
    )


def as_liked(item: Item, completion: Completion) -> Score:
    """1 where a disliked answer has become another one, or a liked one has stayed, but for spaces and case."""
    same = " ".join(completion.text.lower().split()) == " ".join(str(item.target["said"]).lower().split())
    return Score(
        float(same == item.target["liked"]), completion.text, "as logged" if same else "another answer"
    )


def _ms(stored: Stored) -> float:
    return (stored.finished - stored.started).total_seconds() * 1000
