"""The analysis of an A/B test of live users: one value a user, fixed once, and a comparison that may be looked at at any time.

In: the declaration with which the experiment began, its exposures, the moment of looking. Out: an ABResult and its lines. Every user counts
once, with the mean score of the turns in their own window, when that window is over: nothing that counts is changed later, so looking often
costs nothing (evaluation/sequential.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeAlias

from demeanor.core.exposures import Exposure
from demeanor.evaluation import sequential
from demeanor.evaluation.sequential import Interval
from demeanor.stack.serving_schema import ExperimentSpec, ScoreSpec
from demeanor.stack.stack import digest

Decision: TypeAlias = Literal["better", "worse", "not yet"]
MISMATCH = 1000.0
"""An e-value of the split that is an alarm: one in so many sound experiments ever reaches it."""


class UserValue(NamedTuple):
    """A user's one value, and when it was fixed."""

    unit: str
    arm: int
    value: float
    fixed: datetime


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm: its users, those whose window is open, those that have a value, and their mean in the units of the score."""

    name: str
    model: str
    share: float
    users: int
    turns: int
    open: int
    scored: int
    mean: Interval | None


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm against the control: the difference in the units of the score, and what is shown; `after`: users when it first was."""

    arm: str
    difference: Interval
    e_value: float
    decision: Decision
    after: int | None


@dataclass(frozen=True, slots=True)
class ABResult:
    """An experiment so far. `split_e_value` tests the split of users, `scored_split_e_value` that of users with a value."""

    score: str
    lower_is_better: bool
    alpha: float
    arms: tuple[ArmResult, ...]
    contrasts: tuple[Contrast, ...]
    split_e_value: float
    scored_split_e_value: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the comparison doubtful."""
        found = []
        if self.split_e_value >= MISMATCH:
            found.append(
                "users are not split as declared (sample-ratio mismatch): some arm loses users, so do not trust the difference"
            )
        elif self.scored_split_e_value >= MISMATCH:
            found.append(
                "users with a score are not split as declared: an arm changes who gets a score, so do not trust the difference"
            )
        return tuple(found)


def experiment_id(spec: ExperimentSpec, arm_keys: Sequence[str]) -> str:
    """The identity of a run: all that is declared, and the stack keys of its arms; another score or arm is another experiment."""
    return digest({"declared": spec.model_dump(mode="json"), "arms": list(arm_keys)})


def score_text(score: ScoreSpec) -> str:
    """The score in words, as it was stated before."""
    what = {
        "scorer": f"scorer {score.scorer} {json.dumps(score.target, ensure_ascii=False) if score.target else ''}".strip(),
        "evaluator": f"evaluator {score.evaluator}",
    }.get(score.kind, score.kind)
    bounds = f", clipped to {score.bounds[0]:g} to {score.bounds[1]:g}" if score.bounds else ""
    window = (
        f"mean of a user's first {score.window_hours:g} h" if score.window_hours else "a user's first score"
    )
    return f"{what}{bounds}; {window}; {'lower' if score.lower_is_better else 'higher'} is better"


# ---- one value a user ----


def user_values(score: ScoreSpec, exposures: Sequence[Exposure], now: datetime) -> list[UserValue]:
    """The values that are fixed at `now`, each user once, in the order in which they were fixed; in the units of the score."""
    by_user: dict[str, list[Exposure]] = {}
    for exposure in exposures:
        by_user.setdefault(exposure.unit, []).append(exposure)
    window = timedelta(hours=score.window_hours)
    found = []
    for unit, turns in by_user.items():
        fixed = _first(score, turns, now) if not score.window_hours else _windowed(score, turns, window, now)
        if fixed is not None:
            found.append(UserValue(unit, turns[0].arm, *fixed))
    return sorted(found, key=lambda v: (v.fixed, v.unit))


def _windowed(
    score: ScoreSpec, turns: Sequence[Exposure], window: timedelta, now: datetime
) -> tuple[float, datetime] | None:
    end = turns[0].created + window
    if now < end:
        return None
    values = [_value(score, turn, end) for turn in turns if turn.created < end]
    scored = [value for value in values if value is not None]
    return (sum(scored) / len(scored), end) if scored else None


def _first(score: ScoreSpec, turns: Sequence[Exposure], now: datetime) -> tuple[float, datetime] | None:
    """The earliest score of a user, and when it was given."""
    given = []
    for turn in turns:
        if score.kind == "feedback":
            given += [(at, float(value > 0)) for at, value in turn.ratings if value]
        elif turn.value is not None and turn.scored is not None:
            given.append((turn.scored, _clipped(score, turn.value)))
    first = min((g for g in given if g[0] <= now), default=None)
    return None if first is None else (first[1], first[0])


def _value(score: ScoreSpec, turn: Exposure, end: datetime) -> float | None:
    """The score of a turn as it was known at the end of its user's window."""
    ratings = [value for at, value in turn.ratings if at < end]
    if score.kind == "complaint":
        return float(any(value < 0 for value in ratings))
    if score.kind == "feedback":
        said = [value for value in ratings if value]
        return float(said[-1] > 0) if said else None
    if turn.value is None or turn.scored is None or turn.scored >= end:
        return None
    return _clipped(score, turn.value)


def _clipped(score: ScoreSpec, value: float) -> float:
    low, high = score.bounds or (0.0, 1.0)
    return min(high, max(low, value))


# ---- the comparison ----


def analyse(spec: ExperimentSpec, exposures: Sequence[Exposure], now: datetime) -> ABResult:
    """Compare every arm with the control (at alpha over their number), and the split of users with the declared one."""
    low, high = spec.score.bounds or (0.0, 1.0)
    values = user_values(spec.score, exposures, now)
    units: list[dict[str, datetime]] = [{} for _ in spec.arms]
    turns = [0 for _ in spec.arms]
    for exposure in exposures:
        units[exposure.arm].setdefault(exposure.unit, exposure.created)
        turns[exposure.arm] += 1
    window = timedelta(hours=spec.score.window_hours)
    scored = [[v.value for v in values if v.arm == i] for i in range(len(spec.arms))]
    arms = tuple(
        ArmResult(
            spec.arm_names[i],
            arm.model if arm.stack is None else f"{arm.model} of {arm.stack}",
            arm.share,
            len(units[i]),
            turns[i],
            sum(now < first + window for first in units[i].values()),
            len(scored[i]),
            _in_units(
                sequential.mean([(x - low) / (high - low) for x in scored[i]], alpha=spec.alpha), low, high
            ),
        )
        for i, arm in enumerate(spec.arms)
    )
    shares = [arm.share for arm in spec.arms]
    return ABResult(
        score_text(spec.score),
        spec.score.lower_is_better,
        spec.alpha,
        arms,
        tuple(_contrast(spec, values, i, low, high) for i in range(1, len(spec.arms))),
        sequential.share_mismatch([len(u) for u in units], shares),
        sequential.share_mismatch([len(s) for s in scored], shares),
    )


def _contrast(
    spec: ExperimentSpec, values: Sequence[UserValue], arm: int, low: float, high: float
) -> Contrast:
    both = [v for v in values if v.arm in (0, arm)]
    share = spec.arms[arm].share / (spec.arms[0].share + spec.arms[arm].share)
    found = sequential.compare(
        [(v.value - low) / (high - low) for v in both],
        [v.arm == arm for v in both],
        share,
        alpha=spec.alpha / (len(spec.arms) - 1),
        planned=spec.planned,
    )
    sign = -found.sign if spec.score.lower_is_better else found.sign
    decision: Decision = "not yet" if not sign else "better" if sign > 0 else "worse"
    difference = Interval(*(x * (high - low) for x in found.difference))
    return Contrast(spec.arm_names[arm], difference, found.e_value, decision, found.decided_at)


def _in_units(found: Interval | None, low: float, high: float) -> Interval | None:
    return None if found is None else Interval(*(low + x * (high - low) for x in found))


# ---- in words ----


def lines(result: ABResult) -> list[tuple[str, ...]]:
    """Rows of the table of arms: name, model, share, users, turns, users with a value, mean, difference to the control, decision."""
    contrasts: Mapping[str, Contrast] = {c.arm: c for c in result.contrasts}
    rows: list[tuple[str, ...]] = []
    for arm in result.arms:
        contrast = contrasts.get(arm.name)
        rows.append(
            (
                arm.name,
                arm.model,
                f"{arm.share:g}",
                str(arm.users),
                str(arm.turns),
                str(arm.open),
                str(arm.scored),
                interval_text(arm.mean),
                "" if contrast is None else interval_text(contrast.difference, signed=True),
                "" if contrast is None else decision_text(contrast),
            )
        )
    return rows


HEADING = ("arm", "model", "share", "users", "turns", "open", "scored", "mean", "against control", "verdict")


def interval_text(found: Interval | None, *, signed: bool = False) -> str:
    """An interval as `value (low to high)`."""
    if found is None:
        return "-"
    form = "{:+.3g} ({:+.3g} to {:+.3g})" if signed else "{:.3g} ({:.3g} to {:.3g})"
    return form.format(*found)


def decision_text(contrast: Contrast) -> str:
    """The verdict, and how many users it took."""
    return (
        contrast.decision if contrast.after is None else f"{contrast.decision} (after {contrast.after} users)"
    )


def plain_result(result: ABResult) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "score": result.score,
        "lower_is_better": result.lower_is_better,
        "alpha": result.alpha,
        "arms": [
            {
                "name": a.name,
                "model": a.model,
                "share": a.share,
                "users": a.users,
                "turns": a.turns,
                "open": a.open,
                "scored": a.scored,
                "mean": None if a.mean is None else list(a.mean),
            }
            for a in result.arms
        ],
        "contrasts": [
            {
                "arm": c.arm,
                "difference": list(c.difference),
                "e_value": c.e_value,
                "verdict": c.decision,
                "after_users": c.after,
            }
            for c in result.contrasts
        ],
        "split_e_value": result.split_e_value,
        "scored_split_e_value": result.scored_split_e_value,
        "warnings": list(result.warnings),
    }
