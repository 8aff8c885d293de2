"""Judges that label a queue: measured on the items that people labelled, and let loose on the others only if that is good enough.

In: a judge client, or several as a panel, items and labels (anything with their fields). Out: how far they agree with people, and ranks
of items. Of K answers every pair is asked in both orders; answers are ordered by the pairs that they win, and equal numbers tie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol, TypeAlias

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.table import plural
from demeanor.evaluation import judge_panel
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.judge_validation import HumanPair, unusable
from demeanor.evaluation.label_agreement import Opinion
from demeanor.evaluation.statistics import Estimate, Floats, mean


class JudgedItem(Protocol):
    """An item of a queue."""

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def answers(self) -> Sequence[Any]: ...

    @property
    def gold(self) -> Sequence[int] | None: ...


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """A judge or a panel against people's comparisons of one queue; None where people compared nothing."""

    model: str
    accuracy: Estimate | None
    comparisons: int
    items: int

    def said(self) -> str:
        """One line for a person."""
        if self.accuracy is None:
            return f"{self.model}: people have compared nothing in this queue yet"
        low, high = self.accuracy.low, self.accuracy.high
        shown = (
            "one item, no interval"
            if low is None or high is None
            else f"{100 * low:.1f}% to {100 * high:.1f}%"
        )
        return (
            f"{self.model} says what people say in {100 * self.accuracy.value:.1f}% ({shown}) of {plural(self.comparisons, 'comparison')} "
            f"of {plural(self.items, 'item')}"
        )

    def unusable(self, least: float) -> str:
        """Why its labels may not be used; empty if they may."""
        return unusable({"accuracy": None if self.accuracy is None else self.accuracy[:3]}, least)


def calibrate(judge: JudgeClient, items: Sequence[JudgedItem], labels: Sequence[Opinion]) -> JudgeCalibration:
    """Ask the judge about every two answers that a person ranked, and compare; gold checks count as a person's."""
    people = _compared(items, labels)
    (said_P,) = _asked([judge], [pair for pair, _ in people]).T
    return _calibration(judge.judge.model, people, said_P)


def calibrate_panel(
    judges: Sequence[JudgeClient], items: Sequence[JudgedItem], labels: Sequence[Opinion]
) -> tuple[JudgeCalibration, list[JudgeCalibration], Floats]:
    """Ask every judge about what people compared: the panel measured with weights from other items, each judge, and their weights."""
    people = _compared(items, labels)
    said_PJ = _asked(judges, [pair for pair, _ in people])
    names = [judge.judge.model for judge in judges]
    each = [_calibration(name, people, said_PJ[:, j]) for j, name in enumerate(names)]
    row_R = np.array([n for n, (_, values) in enumerate(people) for _ in values], dtype=int)
    value_R = np.array([value for _, values in people for value in values])
    groups = [people[n][0].where for n in row_R]
    decided_R = judge_panel.cross_fitted(said_PJ[row_R], value_R, groups)
    panel = _measured(f"the panel of {', '.join(names)}", decided_R, value_R, groups)
    return panel, each, judge_panel.weights(said_PJ[row_R], value_R)


def _calibration(name: str, people: Sequence[Compared], said_P: Floats) -> JudgeCalibration:
    rows = [
        (said, value, pair.where)
        for (pair, values), said in zip(people, said_P, strict=True)
        for value in values
    ]
    said_R, value_R = (np.array([row[k] for row in rows], dtype=float) for k in (0, 1))
    return _measured(name, said_R, value_R, [row[2] for row in rows])


def _measured(name: str, said_R: Floats, people_R: Floats, items: Sequence[str]) -> JudgeCalibration:
    """One judge or panel against people, one row a comparison."""
    given_R = ~np.isnan(said_R)
    if len(said_R) and not given_R.any():
        raise DemeanorError(f"{name}: no verdict on {len(set(items))} items could be read")
    kept = [item for item, given in zip(items, given_R, strict=True) if given]
    found = mean(1 - np.abs(said_R[given_R] - people_R[given_R]), kept) if kept else None
    return JudgeCalibration(name, found, len(kept), len(set(kept)))


Compared: TypeAlias = tuple[HumanPair, list[float]]
"""Two answers of an item, and what each person said: 1 for the first, 0 for the second."""


def _compared(items: Sequence[JudgedItem], labels: Sequence[Opinion]) -> list[Compared]:
    """Every two answers that a person, or a gold check, put in an order."""
    by_id = {item.id: item for item in items}
    pairs: dict[tuple[str, int, int], list[float]] = {}
    for label in labels:
        if label.choice == "ranked" and getattr(label, "role", "labeller") != "judge":
            _add(pairs, label.item, label.ranks)
    for item in items:
        if item.gold is not None:
            _add(pairs, item.id, item.gold)
    return [(_pair(by_id[item], a, b), values) for (item, a, b), values in pairs.items()]


def _add(pairs: dict[tuple[str, int, int], list[float]], item: str, ranks: Sequence[int]) -> None:
    for a, b in combinations(range(len(ranks)), 2):
        if ranks[a] != ranks[b]:
            pairs.setdefault((item, a, b), []).append(float(ranks[a] < ranks[b]))


def label(
    judges: Sequence[JudgeClient],
    items: Sequence[JudgedItem],
    labels: Sequence[Opinion],
    limit: int | None = None,
    *,
    weights_J: Floats | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """The ranks of the items that no person labelled, by one judge or by a panel with these weights; empty where a verdict is missing."""
    by_people = {
        x.item for x in labels if getattr(x, "role", "labeller") != "judge" and x.choice != "skipped"
    }
    open_ones = [item for item in items if item.gold is None and item.id not in by_people][:limit]
    asked = [(item, a, b) for item in open_ones for a, b in combinations(range(len(item.answers)), 2)]
    said_PJ = _asked(judges, [_pair(*one) for one in asked])
    said_P = said_PJ[:, 0] if weights_J is None else judge_panel.decide(said_PJ, weights_J)
    wins: dict[str, list[float] | None] = {item.id: [0.0] * len(item.answers) for item in open_ones}
    for (item, a, b), said_one in zip(asked, said_P, strict=True):
        won = wins[item.id]
        if np.isnan(said_one) or won is None:
            wins[item.id] = None
        else:
            won[a] += said_one
            won[b] += 1 - said_one
    return [(item.id, _ranks(wins[item.id])) for item in open_ones]


def _ranks(wins: Sequence[float] | None) -> tuple[int, ...]:
    if wins is None:
        return ()
    order = sorted(set(wins), reverse=True)
    return tuple(order.index(won) for won in wins)


def _pair(item: JudgedItem, a: int, b: int) -> HumanPair:
    """Two answers of an item as a pair of the judge; who is better is not told."""
    request = "\n\n".join(
        str(m.get("content") or "") if len(item.prompt) == 1 else f"{m.get('role')}: {m.get('content') or ''}"
        for m in item.prompt
    )
    return HumanPair(item.id, request, (item.answers[a].text, item.answers[b].text), 0)


def _asked(judges: Sequence[JudgeClient], pairs: Sequence[HumanPair]) -> Floats:
    """The verdict of each judge on each pair; NaN: none."""
    found = [asyncio.run(judge_panel.verdicts(judge, pairs)) for judge in judges]
    return np.array(found, dtype=float).reshape(len(judges), len(pairs)).T
