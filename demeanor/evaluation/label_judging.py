"""A judge that labels a queue: measured on the items that people labelled, and let loose on the others only if that is good enough.

In: a judge client, items and labels (anything with their fields). Out: how far the judge agrees with people, and ranks of items. Of K
answers every pair is asked in both orders; answers are ordered by the pairs that they win, and equal numbers tie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.table import plural
from demeanor.evaluation.experiment import at_once
from demeanor.evaluation.judge import JudgeClient, verdict
from demeanor.evaluation.judge_validation import CONCURRENCY, HumanPair, unusable
from demeanor.evaluation.label_agreement import Opinion
from demeanor.evaluation.statistics import Estimate, mean


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
    """A judge against people's comparisons of one queue; None where people compared nothing."""

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
    by_id = {item.id: item for item in items}
    pairs: dict[tuple[str, int, int], list[float]] = {}
    for label in labels:
        if label.choice == "ranked" and getattr(label, "role", "labeller") != "judge":
            _add(pairs, label.item, label.ranks)
    for item in items:
        if item.gold is not None:
            _add(pairs, item.id, item.gold)
    asked = [_pair(by_id[item], a, b) for item, a, b in pairs]
    said = asyncio.run(_verdicts(judge, asked))
    told = [
        (1 - abs(one - person), item)
        for ((item, _, _), people), one in zip(pairs.items(), said, strict=True)
        if one is not None
        for person in people
    ]
    if pairs and not told:
        raise DemeanorError(f"{judge.judge.model}: no verdict on {len(pairs)} pairs could be read")
    found = mean(np.array([x for x, _ in told]), [item for _, item in told]) if told else None
    return JudgeCalibration(judge.judge.model, found, len(told), len({item for _, item in told}))


def _add(pairs: dict[tuple[str, int, int], list[float]], item: str, ranks: Sequence[int]) -> None:
    for a, b in combinations(range(len(ranks)), 2):
        if ranks[a] != ranks[b]:
            pairs.setdefault((item, a, b), []).append(float(ranks[a] < ranks[b]))


def label(
    judge: JudgeClient, items: Sequence[JudgedItem], labels: Sequence[Opinion], limit: int | None = None
) -> list[tuple[str, tuple[int, ...]]]:
    """The judge's ranks of the items that no person labelled; empty ranks where a verdict is missing."""
    by_people = {
        x.item for x in labels if getattr(x, "role", "labeller") != "judge" and x.choice != "skipped"
    }
    open_ones = [item for item in items if item.gold is None and item.id not in by_people][:limit]
    asked = [(item, a, b) for item in open_ones for a, b in combinations(range(len(item.answers)), 2)]
    said = asyncio.run(_verdicts(judge, [_pair(*one) for one in asked]))
    wins: dict[str, list[float] | None] = {item.id: [0.0] * len(item.answers) for item in open_ones}
    for (item, a, b), said_one in zip(asked, said, strict=True):
        won = wins[item.id]
        if said_one is None or won is None:
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


async def _verdicts(judge: JudgeClient, pairs: Sequence[HumanPair]) -> list[float | None]:
    jobs = [verdict(judge, pair.request, pair.answers) for pair in pairs]
    return await at_once("judging", jobs, CONCURRENCY, lambda: len(judge.failures))
