"""What duels showed: single duels, matchups of two variants, ratings of all, and whether the judge follows the place.

In: duels with the judge's verdicts. Out: a `DuelResult`. Intervals resample clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.files import origin
from demeanor.evaluation import judge_validation, statistics
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.judge_validation import Position
from demeanor.evaluation.statistics import (
    Estimate,
)
from demeanor.evaluation.win_rates import Rating, ratings, win_rate

SEED = 0


FEWEST_CLUSTERS = 8
"""Clusters below which resamples are so few and so alike that their interval would be far too narrow: none is given."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one item and which was found better: 1 the candidate's, 0 the other's, None no verdict.

    `as_given` has the other's answer first; `one_order`: only one order was asked, which the content decides.
    """

    item_id: str
    seed: int
    cluster: str
    other: str
    candidate: str
    characters: tuple[int, int]
    refused_by: tuple[str, str]
    equal: bool
    as_given: float | None = None
    swapped: float | None = None
    one_order: bool = False
    problem: str = ""

    @property
    def tied_unasked(self) -> bool:
        """A tie about which the judge is not asked: the texts are equal, or one of them is a refusal."""
        return self.equal or any(self.refused_by)

    @property
    def won(self) -> float | None:
        """1, 0, or 0.5 for a tie; None where an order has no verdict, since the other alone would favour a place."""
        if self.tied_unasked:
            return 0.5
        if self.as_given is None or (self.swapped is None and not self.one_order):
            return None
        return self.as_given if self.swapped is None else (self.as_given + self.swapped) / 2


@dataclass(frozen=True, slots=True)
class Matchup:
    """A pair of variants: what the candidate won of `n` duels, raw and at equal length, and what was left out of it."""

    candidate: str
    other: str
    n: int
    clusters: int
    judged: int
    left_out: int
    ties: int
    equal: int
    refused_candidate: int
    refused_other: int
    refused_both: int
    longer: float | None
    raw: Estimate | None
    controlled: float | None
    low: float | None
    high: float | None
    slope: float | None
    why_not: str
    position: Position | None


@dataclass(frozen=True, slots=True)
class DuelResult:
    """All that was found; `judge_validation` says how far the judge agrees with people, None where that was not measured."""

    name: str
    stack_key: str
    suite_hash: str
    suites: tuple[str, ...]
    items: int
    design: str
    judge: Mapping[str, Any]
    judge_validation: Mapping[str, Any] | None
    matchups: tuple[Matchup, ...]
    ratings: tuple[Rating, ...]
    position: Position | None
    positional: str
    unread: int
    missing: int
    cost: Mapping[str, int | float]
    made: Mapping[str, Any]
    each: tuple[Duel, ...]


def duel_result(
    each: Sequence[Duel],
    missing: int,
    pairs: Sequence[tuple[str, str]],
    order: Sequence[str],
    *,
    name: str,
    design: str,
    judge: JudgeClient,
    folder: Path,
    stack_key: str,
    suites: tuple[str, ...],
    suite: str,
    items: int,
) -> DuelResult:
    """Everything that the duels say; raises DemeanorError where the judge was asked and not one verdict could be read."""
    asked = [duel for duel in each if not duel.tied_unasked]
    if asked and all(duel.won is None for duel in asked):
        raise DemeanorError(
            f"evaluation.judge: not one of {len(asked)} comparisons has a verdict that can be read; run again to ask again "
            f"where the judge did not answer. The first: {asked[0].problem}"
        )
    if not each:
        raise DemeanorError(
            f"duel: none of {missing} pairs of answers is there, because answers failed; see the warnings above"
        )
    by = {pair: [duel for duel in each if (duel.other, duel.candidate) == pair] for pair in pairs}
    place = positions(each)
    unread = sum((duel.as_given is None) + (duel.swapped is None and not duel.one_order) for duel in asked)
    return DuelResult(
        name,
        stack_key,
        suite,
        suites,
        items,
        design,
        judge.judge.model_dump(mode="json", exclude={"key_env"}),
        judge_validation.validation_of(folder, name, judge.judge),
        tuple(matchup(*pair, found) for pair, found in by.items()),
        tuple(rated(each, order)),
        place,
        positional(place),
        unread,
        missing,
        judge.cost(),
        origin(),
        tuple(each),
    )


def matchup(other: str, candidate: str, found: Sequence[Duel]) -> Matchup:
    """One pair; a tie about which the judge was not asked counts as one between answers of equal length."""
    told = [duel for duel in found if duel.won is not None]
    judged = [duel for duel in told if not duel.tied_unasked]
    won_N, clusters = np.array([duel.won for duel in told], dtype=float), [duel.cluster for duel in told]
    lengths_N2 = np.array(
        [(0, 0) if duel.tied_unasked else duel.characters for duel in told], dtype=float
    ).reshape(-1, 2)
    longer_J = np.array([duel.characters[1] - duel.characters[0] for duel in judged], dtype=float)
    wins = None
    why, bounds = "nothing was judged", False
    if judged:
        wins = win_rate(won_N, lengths_N2[:, 1], lengths_N2[:, 0], clusters, seed=SEED)
        bounds = len(set(clusters)) >= FEWEST_CLUSTERS
        if why := undecided(longer_J, np.array([duel.won for duel in judged])):
            wins, bounds = wins._replace(controlled=0.5, low=0.0, high=1.0), True
    refused = [tuple(map(bool, duel.refused_by)) for duel in found if not duel.equal]
    return Matchup(
        candidate,
        other,
        len(told),
        len(set(clusters)),
        len(judged),
        len(found) - len(told),
        int((won_N == 0.5).sum()),
        sum(duel.equal for duel in found),
        refused.count((False, True)),
        refused.count((True, False)),
        refused.count((True, True)),
        float((longer_J > 0).mean()) if judged else None,
        statistics.mean(won_N, clusters) if told else None,
        wins and wins.controlled,
        wins.low if wins and bounds else None,
        wins.high if wins and bounds else None,
        wins and wins.slope,
        why,
        positions(found),
    )


def undecided(longer_J: statistics.Floats, won_J: statistics.Floats) -> str:
    """Why nothing is known of answers of equal length, so that any rate would come from the penalty of the fit; empty where it is."""
    if (longer_J == 0).any():
        return ""
    if (longer_J > 0).all() or (longer_J < 0).all():
        return f"its answers are always the {'longer' if longer_J[0] > 0 else 'shorter'} ones, so length and quality cannot be told apart"
    for longer, word in ((longer_J, "longer"), (-longer_J, "shorter")):
        if (won_J == (longer > 0)).all():
            return f"every verdict went to the {word} answer, so length explains all of them"
    return ""


def positions(found: Sequence[Duel]) -> Position | None:
    """What swapping the order did to the verdicts; None where no duel has both."""
    both = [duel for duel in found if duel.as_given is not None and duel.swapped is not None]
    if not both:
        return None
    forward_N, swapped_N = (
        np.array([1 - (d.as_given or 0) for d in both]),
        np.array([d.swapped or 0 for d in both]),
    )  # the first won
    return judge_validation.position(forward_N, swapped_N, [duel.cluster for duel in both])


def positional(place: Position | None) -> str:
    """A warning where the verdicts follow the place more often than the answers, or lean to one place; else empty."""
    if place is None:
        return ""
    which, share = max(("first", place.first.value), ("second", place.second.value), key=lambda x: x[1])
    if place.follows.low is not None and place.follows.low > 0.5:
        return f"positional: {place.follows.value:.0%} of its pairs of verdicts follow the place, mostly the {which}, and not the answers"
    if place.p < 0.05:
        p = "p < 0.001" if place.p < 0.001 else f"p {place.p:.3f}"
        return f"leans to the answer shown {which}: {share:.0%} of its pairs of verdicts ({p})"
    return ""


def rated(each: Sequence[Duel], order: Sequence[str]) -> list[Rating]:
    """Bradley-Terry over all duels with a result, best first; lengths are not controlled here."""
    told = [(duel, won) for duel in each if (won := duel.won) is not None]
    clusters = [duel.cluster for duel, _ in told]
    found = ratings(
        [duel.candidate for duel, _ in told],
        [duel.other for duel, _ in told],
        np.array([won for _, won in told]),
        clusters,
        seed=SEED,
    )
    points: dict[str, list[float]] = {name: [] for name in order}
    for duel, won in told:
        points[duel.candidate].append(won)
        points[duel.other].append(1 - won)
    if len(set(clusters)) < FEWEST_CLUSTERS:
        found = [replace(rating, low=None, high=None) for rating in found]
    return [replace(rating, open_ended=_open_ended(points[rating.player])) for rating in found]


def _open_ended(points: Sequence[float]) -> str:
    if min(points) == 1:
        return "won all"
    return "lost all" if max(points) == 0 else ""
