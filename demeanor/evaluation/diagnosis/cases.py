"""Which items fail and which pass as the stack is: measured now, read from rows that `eval` left, or logged turns with feedback.

In: a Stack and a Scope. Out: Cases. What is right for a logged turn is not known: a disliked answer counts as fixed when it changes, a liked
one as regressed when it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demeanor.core.errors import DataError, unknown
from demeanor.core.types import Completion, Item, RatedTurn, Score
from demeanor.evaluation.diagnosis.replay import ReplayHarness, as_it_is
from demeanor.evaluation.experiment import Scorer, content_hash, sampled
from demeanor.evaluation.rows import Row, RowKey, read_rows, row_of
from demeanor.stack.stack import Stack, decoding_of

CONTROLS, MOST_FAILING = 160, 200
LOGGED, ANONYMOUS = "logged turns", "anonymous"
BY_SCORERS, BY_CHANGE = (
    "by the scorers of the items",
    "by whether the answer changed (nobody has judged the new ones)",
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which items to diagnose: of an axis, by id, or all; `against` a reference stack, or rows from `before`, only what was right there.

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
    score: Scorer | None
    """None: the scorers of the items."""
    judged: str


async def of_suite(harness: ReplayHarness, scope: Scope) -> Cases:
    """Items of the suite, by what the stack answers to them."""
    experiment = harness.experiment
    stack, items = experiment.stack, experiment.items
    if scope.rows:
        as_is = await experiment.scored_anew(recorded(scope.rows, stack, items))
    else:
        as_is = await harness.replay([as_it_is(stack)])
    if scope.against:
        reference = harness.reference(scope.against)
        bar = await ReplayHarness(reference).replay([as_it_is(scope.against)])
        right = {row.item_id for row in bar if (row.value or 0.0) >= 0.5}
        items = tuple(item for item in items if item.id in right)
    elif scope.before:
        right = right_before(scope.before, stack)
        items = tuple(item for item in items if item.id in right)
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
        None,
        BY_SCORERS
        + (f", and {experiment.judge.judge.model} where they need a judge" if experiment.judge else ""),
    )


def _cases(
    bad: Sequence[Item], good: Sequence[Item], rows: Sequence[Row], score: Scorer | None, judged: str
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
    wanted = {item.id: content_hash(item, decoding_of(stack)) for item in items}
    found = [row for row in every if row.stack_key == stack.key() and wanted.get(row.item_id) == row.cell]
    if not found:
        known = ", ".join(sorted({f"{row.variant} ({row.stack_key})" for row in every})) or "nothing"
        raise DataError(
            f"--rows {path}: no row of this stack ({stack.key()}) on these items; it holds {known}. Measure it: demeanor eval "
            f"{stack.path}"
        )
    return found


def right_before(path: Path, stack: Stack) -> set[str]:
    """Items that the whole stack of this name had right in an earlier result's rows; raises DataError where it has none there."""
    if not path.is_file():
        raise DataError(
            f"--against {path}: no such file; wanted a reference stack (.yaml) or the rows of an earlier result (.rows.jsonl)"
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


def of_turns(turns: Sequence[RatedTurn], path: Path) -> Cases:
    """Turns with bad feedback, and those with good feedback as controls; raises DataError where none is bad."""
    items = {turn.turn.id: item_of(turn) for turn in turns}
    bad = [items[turn.turn.id] for turn in turns if turn.rating < 0]
    good = [items[turn.turn.id] for turn in turns if turn.rating > 0]
    if not bad:
        raise DataError(
            f"--turns {path}: none of {len(turns)} turns with feedback was disliked (a value below 0), "
            "so there is nothing to diagnose"
        )
    rows = []
    for turn in turns:
        key = RowKey(AS_LOGGED, turn.turn.stack_key, items[turn.turn.id], turn.turn.id, 0)
        rows.append(row_of(key, turn.completion, Score(float(turn.rating > 0)), turn.ms))
    return _cases(bad, good, rows, as_liked, BY_CHANGE)


AS_LOGGED = "as logged"


def item_of(rated: RatedTurn) -> Item:
    """A recorded turn as an item; turns of one known user belong together."""
    turn = rated.turn
    cluster = turn.id if turn.user == ANONYMOUS else turn.user
    target = {"said": rated.completion.text, "liked": rated.rating > 0}
    return Item(turn.id, turn.messages, LOGGED, target, LOGGED, cluster, None, (), turn.tools)


def as_liked(item: Item, completion: Completion) -> Score:
    """1 where a disliked answer has become another one, or a liked one has stayed, but for spaces and case."""
    same = " ".join(completion.text.lower().split()) == " ".join(str(item.target["said"]).lower().split())
    return Score(
        float(same == item.target["liked"]), completion.text, "as logged" if same else "another answer"
    )
