"""Recorded turns through another variant: the same conversation, seed and decoding, with a diff of the texts and a paired score.

In: recorded turns, a variant, perhaps a scorer. Out: a Replay, NAME.replay.json, its page. Tools that may have effects are not run unless
that is asked for, and an answer is kept as the served policy would have shown it.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from demeanor.core.errors import DemeanorError, UsageError
from demeanor.core.table import Paragraph, Section, Table
from demeanor.core.types import Completion, Decoding, Item, Respond, Turn, complete
from demeanor.evaluation import judge as judges
from demeanor.evaluation import statistics
from demeanor.evaluation.experiment import at_once, named
from demeanor.evaluation.items import JUDGED, READ, wrong_target
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.result import save
from demeanor.evaluation.runtime import Runtime, Services
from demeanor.evaluation.scorers import score_item
from demeanor.layers.tools.calls import DRY_RUN
from demeanor.stack.stack import Stack, digest

KIND, AT_ONCE = "replay", 24
_WORD = re.compile(r"\s+|[^\s]+")
Screen: TypeAlias = Callable[[Turn, Completion], Awaitable[str]]


class RecordedTurn(NamedTuple):
    """A turn and the answer that its user got."""

    turn: Turn
    completion: Completion


@dataclass(frozen=True, slots=True)
class ReplayedTurn:
    """One turn: both answers, their difference, their scores; `error` says why there is no new answer."""

    turn: str
    user: str
    question: str
    before_model: str
    before_key: str
    before: str
    after: str
    diff: str
    same: bool
    score_before: float | None
    score_after: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class TurnReplay:
    """All turns through one variant; `gain` is the mean of new less old score, with its interval (None: fewer than two scores)."""

    name: str
    model: str
    stack_key: str
    scorer: str
    turns: tuple[ReplayedTurn, ...]
    gain: tuple[float, float | None, float | None] | None
    before: float | None
    after: float | None
    scored: int

    @property
    def same(self) -> int:
        """Answers that are the same, but for spaces."""
        return sum(t.same for t in self.turns)

    @property
    def failed(self) -> int:
        """Turns without a new answer."""
        return sum(bool(t.error) for t in self.turns)


def diff(before: str, after: str) -> str:
    """The second text with what changed from the first: `[-gone-]` and `{+new+}`, word by word."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    pieces = []
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        gone, new = "".join(a[a0:a1]), "".join(b[b0:b1])
        if kind == "equal":
            pieces.append(new)
        else:
            pieces.append(f"[-{gone}-]" * bool(gone) + f"{{+{new}+}}" * bool(new))
    return "".join(pieces)


# ---- the run ----


@dataclass(frozen=True)
class ReplayPlan:
    """How turns are replayed: by what they are scored (None: not), whether tools with effects are run, how answers are shown."""

    scorer: str | None = None
    target: Mapping[str, Any] | None = None
    run_tools: bool = False
    screen_of: Callable[[Runtime, Stack], Screen] | None = None


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    model: str,
    turns: Sequence[RecordedTurn],
    plan: ReplayPlan,
    *,
    name: str | None = None,
) -> TurnReplay:
    """Replay turns through a variant and write NAME.replay.json. Raises UsageError for a scorer that cannot score a live turn."""
    variant, name = stack.resolve(model), named(stack, name, None)
    client = _judge(stack, services, folder, name, plan)
    runtime = services.open(stack)
    try:
        found = asyncio.run(_all(runtime, variant, turns, plan, client))
    finally:
        runtime.close()
    result = _summary(name, variant, turns, found, plan)
    save(folder, name, KIND, result, stack_key=stack.key())
    return result


def _judge(stack: Stack, services: Services, folder: Path, name: str, plan: ReplayPlan) -> JudgeClient | None:
    """The judge, where one scores. Raises UsageError before anything is answered."""
    if plan.scorer is None:
        return None
    if plan.scorer in READ:
        raise UsageError(
            f"--score {plan.scorer}: reads log-probabilities of given texts; a recorded turn has none"
        )
    if (wrong := wrong_target(_item(Turn((), Decoding()), plan))) is not None:
        raise UsageError(f"--score {plan.scorer}: {wrong}")
    if plan.scorer != JUDGED:
        return None
    if stack.spec.evaluation.judge is None:
        raise UsageError(judges.NO_JUDGE.format(stack=stack.path))
    return judges.judge_client(
        stack.spec.evaluation.judge, folder / f"{name}.verdicts.jsonl", services.connect
    )


def _item(turn: Turn, plan: ReplayPlan) -> Item:
    return Item(turn.id or "turn", turn.messages, str(plan.scorer), dict(plan.target or {}), KIND, turn.user)


async def _all(
    runtime: Runtime,
    variant: Stack,
    turns: Sequence[RecordedTurn],
    plan: ReplayPlan,
    judge: JudgeClient | None,
) -> list[ReplayedTurn]:
    DRY_RUN.set(not plan.run_tools)
    respond = runtime.respond(variant)
    screen = plan.screen_of(runtime, variant) if plan.screen_of else None
    jobs = [_one(respond, variant, recorded, plan, judge, screen) for recorded in turns]
    return await at_once("replaying", jobs, AT_ONCE, lambda: 0)


async def _one(
    respond: Respond,
    variant: Stack,
    recorded: RecordedTurn,
    plan: ReplayPlan,
    judge: JudgeClient | None,
    screen: Screen | None,
) -> ReplayedTurn:
    turn, before = recorded
    question = next((m.content for m in reversed(turn.messages) if m.role == "user"), "")
    head = turn.id, turn.user, question, turn.variant, turn.stack_key, before.text
    asked = replace(
        turn, id=f"{turn.id}~replay", variant=variant.model_id, stack_key=variant.key(), approvals=None
    )
    try:
        completion = await complete(respond, asked)
        shown = completion.text if screen is None else await screen(asked, completion)
        scores = [await _score(turn, c, plan, judge) for c in (before, completion)]
    except DemeanorError as error:
        return ReplayedTurn(*head, "", "", False, None, None, f"{type(error).__name__}: {error}")
    same = before.text.split() == shown.split()
    return ReplayedTurn(*head, shown, diff(before.text, shown), same, scores[0], scores[1])


async def _score(
    turn: Turn, completion: Completion, plan: ReplayPlan, judge: JudgeClient | None
) -> float | None:
    if plan.scorer is None:
        return None
    item = _item(turn, plan)
    if judge is None:
        return score_item(item, completion).value
    return (await judge.judged_score(item, completion)).value


def _summary(
    name: str, variant: Stack, turns: Sequence[RecordedTurn], found: Sequence[ReplayedTurn], plan: ReplayPlan
) -> TurnReplay:
    both = [t for t in found if t.score_before is not None and t.score_after is not None]
    before_N, after_N = (
        np.array([getattr(t, field) for t in both]) for field in ("score_before", "score_after")
    )
    gain = None
    if len(both) > 1:
        clusters = [t.turn if t.user == "anonymous" else digest(["user", t.user]) for t in both]
        estimate = statistics.paired(before_N, after_N, clusters)
        gain = estimate.value, estimate.low, estimate.high
    before, after = (float(x.mean()) if both else None for x in (before_N, after_N))
    return TurnReplay(
        name,
        variant.model_id,
        variant.key(),
        plan.scorer or "",
        tuple(found),
        gain,
        before,
        after,
        len(both),
    )


def section(found: TurnReplay) -> Section:
    """What changed, by how much the score did, and every turn that differs."""
    n = len(found.turns)
    about = f"{n} recorded turns through {found.model} ({found.stack_key}): {found.same} answers are the same"
    about += f", {found.failed} failed." if found.failed else "."
    blocks: list[Any] = [Paragraph(about, "lead")]
    if found.gain is not None:
        value, low, high = found.gain
        bounds = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
        row = (
            found.scorer,
            str(found.scored),
            f"{found.before:.3f}",
            f"{found.after:.3f}",
            f"{value:+.3f}{bounds}",
        )
        blocks.append(Table(("scorer", "turns", "before", "after", "difference"), (row,)))
    rows = tuple(
        (t.turn, t.question[:80], t.error or t.diff[:400], _number(t.score_before), _number(t.score_after))
        for t in found.turns
        if not t.same
    )
    if rows:
        blocks.append(Table(("turn", "asked", "answer", "before", "after"), rows, text=(0, 1, 2)))
        blocks.append(
            Paragraph(
                "[-gone-] {+new+}; at most 400 characters of each answer. All of them: the JSON file.", "note"
            )
        )
    return Section(KIND, "replay", "Replay of recorded turns", tuple(blocks))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
