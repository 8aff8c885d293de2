"""Diagnosis: what fixes the items that fail, and which layer is the suspect.

In: a Stack and a Scope. Out: a `Diagnosis`: every intervention replayed on failing items and on controls, and on request a learning curve
of the last trained stage, which trains it again on a quarter and a half of its rows. What is right for a logged turn is not known: a
disliked answer counts as fixed when it changes, a liked one as regressed when it does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from demeanor.core.addresses import shown
from demeanor.core.errors import DataError, UsageError, unknown
from demeanor.core.types import Completion, Item, RatedTurn, Score
from demeanor.evaluation import statistics
from demeanor.evaluation.diagnosis.analysis import AS_IS, Diagnosis, diagnose
from demeanor.evaluation.diagnosis.interventions import interventions, swaps
from demeanor.evaluation.diagnosis.replay import ReplayHarness, as_it_is
from demeanor.evaluation.experiment import Experiment, Scorer, content_hash, named, sampled, suite
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result import save
from demeanor.evaluation.result_rows import PairedTable, Row, RowKey, read_rows, row_of
from demeanor.evaluation.runtime import Services
from demeanor.stack.schema import OnlineStage, Stage
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
    turns: str | None = None

    def __str__(self) -> str:
        if self.turns:
            return f"the turns with feedback in {shown(self.turns)}"
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


async def cases_of_suite(harness: ReplayHarness, scope: Scope) -> Cases:
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


def cases_of_turns(turns: Sequence[RatedTurn], where: str) -> Cases:
    """Turns with bad feedback, and those with good feedback as controls; raises DataError where none is bad."""
    items = {turn.turn.id: item_of(turn) for turn in turns}
    bad = [items[turn.turn.id] for turn in turns if turn.rating < 0]
    good = [items[turn.turn.id] for turn in turns if turn.rating > 0]
    if not bad:
        raise DataError(
            f"--turns {shown(where)}: none of {len(turns)} turns with feedback was disliked (a value below 0), "
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


# ---- a learning curve of the last trained stage ----

SHARES = (0.25, 0.5)
Curve = tuple[tuple[float, float], ...]


def last_trained(stack: Stack) -> Stage:
    """The last stage before what is served that learns from rows; raises DemeanorError where there is none."""
    for name in reversed(stack.chain(stack.serve)[1:]):
        if isinstance(stage := stack.stage(name), Stage) and not isinstance(stage, OnlineStage):
            return stage
    raise UsageError(
        f"--learning-curve: nothing that leads to '{stack.serve}' in {stack.path} is trained on rows, "
        "so there is nothing to vary; leave it out"
    )


def smaller(stack: Stack, share: float) -> Stack:
    """The stack whose last trained stage reads a fixed share of each of its sources."""
    stage = last_trained(stack)
    less = stage.model_copy(
        update={"data": tuple(s.model_copy(update={"weight": s.weight * share}) for s in stage.data)}
    )
    stages = tuple(less if s.name == stage.name else s for s in stack.spec.weights.stages)
    weights = stack.spec.weights.model_copy(update={"stages": stages})
    return replace(stack, spec=stack.spec.model_copy(update={"weights": weights}), keys={})


def curve(
    stack: Stack, services: Services, items: Sequence[Item], folder: Path, name: str
) -> tuple[Curve, str]:
    """Train and measure each share of the rows, and all of them, on the same items."""
    stage, right, values = last_trained(stack), [], []
    for share in (*SHARES, 1.0):
        variant = stack if share == 1.0 else smaller(stack, share)
        services.train(variant, [variant.serve])
        with Experiment(variant, services, folder, name=name, kind=KIND, items=items) as experiment:
            rows = asyncio.run(ReplayHarness(experiment).replay([as_it_is(variant)]))
        cells = PairedTable(rows, items)
        (measured,) = cells.rows
        values.append(np.concatenate([cells.values_N(measured, axis) for axis in cells.axes]))
        right.append((share, float(np.nanmean(values[-1]))))
    clusters = np.array([item.cluster for axis in cells.axes.values() for item in axis])
    kept = ~np.isnan(values[-2] + values[-1])
    gain = statistics.paired(values[-2][kept], values[-1][kept], clusters[kept])
    return tuple(right), said(stage.name, gain)


def said(stage: str, gain: statistics.Estimate) -> str:
    """What doubling the rows of a stage did to the items, and what follows."""
    bounds = (
        "" if gain.low is None or gain.high is None else f" ({100 * gain.low:+.0f} to {100 * gain.high:+.0f})"
    )
    measured = f"from half of the rows of {stage} to all of them: {100 * gain.value:+.1f} points{bounds}"
    if gain.low is not None and gain.low > 0:
        return (
            f"Learning curve, {measured}; twice as many rows are worth a try, and should be measured again."
        )
    if gain.high is not None and gain.high < 0:
        return f"Learning curve, {measured}: more rows like these do harm."
    return f"Learning curve, {measured}; more rows like these are not shown to help."


# ---- the analysis, whole ----

EXAMPLES = 4
KIND = "diagnosis"


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    scope: Scope,
    *,
    name: str | None = None,
    learn: bool = False,
) -> Diagnosis:
    """Find what fails, replay every intervention and write NAME.diagnosis.json; `learn` adds a learning curve, which trains."""
    items = () if scope.turns else chosen(suite(stack, scope.limit), scope)
    name = named(stack, name, scope.limit)
    with (
        tempfile.TemporaryDirectory(prefix="demeanor-") as scratch,
        Experiment(stack, services, folder, name=name, kind=KIND, items=items) as experiment,
        ReplayHarness(experiment) as harness,
    ):
        found = asyncio.run(_diagnose(harness, scope, Path(scratch)))
    if scope.turns:
        about = "The new answers are not judged; as far as answers change"
        found = replace(found, recommendation=f"{about}: {found.recommendation}")
    if learn and found.failing:
        axes = {item.axis for item in items if item.id in found.wrong}
        some = sampled([i for i in items if i.axis in axes], MOST_FAILING)
        points, said = curve(stack, services, some, folder, name)
        found = replace(found, curve=points, learnt=said)
    save(folder, name, KIND, found, stack_key=stack.key())
    return found


async def _diagnose(harness: ReplayHarness, scope: Scope, scratch: Path) -> Diagnosis:
    experiment = harness.experiment
    stack, services = experiment.stack, experiment.services
    if scope.turns:
        found = cases_of_turns(services.rated_turns(scope.turns), scope.turns)
    else:
        found = await cases_of_suite(harness, scope)
    lent = swaps(stack, scope.against) if scope.against else []
    rows, axes = {row.item_id: row for row in found.rows}, {item.axis for item in found.failing}
    examples = [(i, rows[i.id].text) for i in sampled([i for i in found.spare if i.axis in axes], EXAMPLES)]
    trained = [s for s in stack.chain(stack.serve) if s == "base" or services.is_trained(stack, s)]
    tools = experiment.runtime.tools()
    planned = harness.able(
        [
            *lent,
            *interventions(stack, trained, found.failing, found.controls, rows, examples, tools, scratch),
        ]
    )
    both, replayed = [*found.failing, *found.controls], list[Row]()
    if found.failing:
        print(
            f"replaying {len(planned)} interventions on {len(found.failing)} failing items and {len(found.controls)} controls",
            file=sys.stderr,
        )
        replayed = await harness.replay(planned, both, found.score)
    kept = {item.id for item in both}
    return diagnose(
        [*(replace(r, variant=AS_IS) for r in found.rows if r.item_id in kept), *replayed],
        found.failing,
        found.controls,
        found.passing,
        [x.about for x in planned],
        name=experiment.name,
        scope=str(scope),
        judged=found.judged,
        suite=suite_hash(experiment.items),
        wrong=found.wrong,
    )
