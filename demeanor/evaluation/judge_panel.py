"""Several judges as a panel: each weighs as its accuracy on people's comparisons says, and equal weights for both answers are a tie.

In: verdicts of each judge on pairs (1: the first answer, 0: the second, 0.5: it contradicts itself, NaN: none) and people's. Out: the
panel's verdicts, its accuracy on pairs that its weights were not taken from, and each judge's weight. Source of the weights: Nitzan &
Paroush 1982, log(a / (1 - a)) for independent judges of accuracy a.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.files import origin
from demeanor.core.table import NONE, Paragraph, Section, Table, plural, share
from demeanor.evaluation.experiment import at_once
from demeanor.evaluation.judge import JudgeClient, verdict
from demeanor.evaluation.judge_validation import CONCURRENCY, HumanPair
from demeanor.evaluation.statistics import Estimate, Floats, mean
from demeanor.stack.stack import digest

FOLDS = 5
TIE = 1e-9
HALF = 0.5
"""Added to right and to wrong verdicts before a weight is taken (Jeffreys), so that no judge weighs without bound."""


@dataclass(frozen=True, slots=True)
class PanelMember:
    """One judge: its accuracy on people's comparisons, its weight from all of them, verdicts given, contradictions and gaps."""

    model: str
    url: str
    accuracy: Estimate | None
    weight: float
    verdicts: int
    contradicted: int
    missing: int
    cost: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class JudgePanel:
    """A measured panel; `accuracy` is over pairs that it decided, by weights of the other folds; ties are told apart."""

    name: str
    pairs: int
    members: tuple[PanelMember, ...]
    accuracy: Estimate | None
    decided: int
    ties: int
    best: str
    made: Mapping[str, Any]


def weight(right: float, n: float) -> float:
    """log(a / (1 - a)) of a judge that was right in `right` of n verdicts; 0 at chance, below 0 for one that is mostly wrong."""
    return math.log((right + HALF) / (n - right + HALF))


def weights(verdicts_NJ: Floats, people_N: Floats) -> Floats:
    """The weight of each judge from its verdicts; contradictions are half right."""
    given = ~np.isnan(verdicts_NJ)
    right = np.where(given, 1 - np.abs(verdicts_NJ - people_N[:, None]), 0.0).sum(axis=0)
    return np.array([weight(float(r), float(n)) for r, n in zip(right, given.sum(axis=0), strict=True)])


def decide(verdicts_NJ: Floats, weights_J: Floats) -> Floats:
    """The panel's verdict on each pair: 1, 0, or 0.5 where the weights are equal; NaN without a verdict of any judge."""
    signs = np.where(np.isnan(verdicts_NJ), 0.0, 2 * verdicts_NJ - 1)
    total_N = signs @ weights_J
    found = np.where(total_N > TIE, 1.0, np.where(total_N < -TIE, 0.0, 0.5))
    found[np.isnan(verdicts_NJ).all(axis=1)] = np.nan
    return found


def cross_fitted(verdicts_NJ: Floats, people_N: Floats, groups: Sequence[str]) -> Floats:
    """The panel's verdict on each pair by weights from pairs of other requests (5 folds by request)."""
    fold_N = np.array([int(digest(["panel", group]), 16) % FOLDS for group in groups])
    found = np.full(len(people_N), np.nan)
    for fold in range(FOLDS):
        held = fold_N == fold
        if held.any() and (~held).any():
            found[held] = decide(verdicts_NJ[held], weights(verdicts_NJ[~held], people_N[~held]))
    return found


async def verdicts(judge: JudgeClient, pairs: Sequence[HumanPair]) -> list[float]:
    """One judge's verdict on each pair: both orders agree, contradict each other (0.5), or say nothing (NaN)."""

    async def one(pair: HumanPair) -> float:
        said = await verdict(judge, pair.request, pair.answers)
        return math.nan if said is None else said

    return await at_once(
        f"judging: {judge.judge.model}", [one(p) for p in pairs], CONCURRENCY, lambda: len(judge.failures)
    )


def measure(judges: Sequence[JudgeClient], pairs: Sequence[HumanPair], name: str) -> JudgePanel:
    """Ask every judge about every pair and measure them and their panel. Raises DemeanorError if nothing could be read."""
    verdicts_NJ = np.array([asyncio.run(verdicts(judge, pairs)) for judge in judges]).T
    if np.isnan(verdicts_NJ).all():
        raise DemeanorError("judge panel: not one verdict could be read")
    people_N = np.array([float(pair.better == 1) for pair in pairs])
    groups = [digest(pair.request) for pair in pairs]
    own = weights(verdicts_NJ, people_N)
    members = tuple(
        PanelMember(
            judge.judge.model,
            judge.judge.url,
            _accuracy(verdicts_NJ[:, j], people_N, groups),
            float(own[j]),
            int((~np.isnan(verdicts_NJ[:, j])).sum()),
            int((verdicts_NJ[:, j] == HALF).sum()),
            int(np.isnan(verdicts_NJ[:, j]).sum()),
            judge.cost(),
        )
        for j, judge in enumerate(judges)
    )
    decided_N = cross_fitted(verdicts_NJ, people_N, groups)
    is_decided = ~np.isnan(decided_N) & (decided_N != HALF)
    best = max(members, key=lambda m: m.accuracy.value if m.accuracy else 0.0)
    return JudgePanel(
        name,
        len(pairs),
        members,
        _accuracy(decided_N, people_N, groups),
        int(is_decided.sum()),
        int((decided_N == HALF).sum()),
        best.model,
        origin(),
    )


def _accuracy(said_N: Floats, people_N: Floats, groups: Sequence[str]) -> Estimate | None:
    """The share of pairs on which a verdict is people's; half for a tie."""
    given = ~np.isnan(said_N)
    if not given.any():
        return None
    right = 1 - np.abs(said_N[given] - people_N[given])
    return mean(right, [group for group, kept in zip(groups, given, strict=True) if kept])


def section(found: JudgePanel) -> Section:
    """Each judge and the panel, with intervals."""
    rows = [
        (
            f"{member.model} at {member.url}",
            share(*member.accuracy[:3], places=1) if member.accuracy else NONE,
            f"{member.weight:+.2f}",
            str(member.verdicts),
            str(member.contradicted),
            str(member.missing),
        )
        for member in found.members
    ]
    panel = share(*found.accuracy[:3], places=1) if found.accuracy else NONE
    rows.append(("the panel", panel, "", str(found.decided + found.ties), f"{found.ties} ties", ""))
    about = Paragraph(
        f"{plural(found.pairs, 'pair')} with people's comparisons. The panel's weights for a pair come from pairs of other requests; "
        "a judge that contradicts itself when the order is swapped, and a tie of the panel, count as half right."
    )
    heads = (
        "judge",
        "right, as people said (95% interval)",
        "weight",
        "verdicts",
        "contradict themselves",
        "none",
    )
    return Section("panel", "Panel", "Several judges together", (about, Table(heads, tuple(rows))))
