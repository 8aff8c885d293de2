"""Whether the mean of a stream of scores has changed: an alarm with a stated rate of false ones.

In: scores in [0, 1] in order. Out: the mean of the first ones and of the last ones with intervals, and when an alarm was raised. The alarm is a
Shiryaev-Roberts e-detector: it assumes bounded scores and nothing of their distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from demeanor.evaluation import sequential
from demeanor.evaluation.sequential import Interval

Change: TypeAlias = Literal["fell", "rose"]
BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the largest allowed bet: small ones find small changes."""
RECENT = 100


@dataclass(frozen=True, slots=True)
class Drift:
    """`baseline`: the mean of the first scores (None: too few yet); `recent`: of the last ones after them; `alarms`: at which score, which way."""

    scores: int
    wanted: int
    baseline: Interval | None
    recent: Interval | None
    alarms: tuple[tuple[int, Change], ...]

    @property
    def drifted(self) -> Change | None:
        """Which way the mean has gone: the last alarm, while the recent interval still lies beside the baseline's mean."""
        if not self.alarms or self.recent is None or self.baseline is None:
            return None
        change = self.alarms[-1][1]
        back = (
            self.recent.value >= self.baseline.low
            if change == "fell"
            else self.recent.value <= self.baseline.high
        )
        return None if back else change

    def __str__(self) -> str:
        if self.baseline is None:
            return f"{self.scores} of the first {self.wanted} scores, which say what is normal"
        base = "{:.3g} ({:.3g} to {:.3g})".format(*self.baseline)
        now = "none yet" if self.recent is None else "{:.3g} ({:.3g} to {:.3g})".format(*self.recent)
        last = f"; last alarm: {self.alarms[-1][1]} at score {self.alarms[-1][0]}" if self.alarms else ""
        return f"first {self.wanted}: {base}; last: {now}{last}"


def drift(scores: Sequence[float], *, baseline: int = 200, false_alarm_every: int = 10_000) -> Drift:
    """Watch the scores after the first `baseline` ones for a mean below or above the baseline's interval.

    While the mean lies inside of that interval, two alarms are at least `false_alarm_every` scores apart on average. Source: Shin, Ramdas &
    Rinaldo 2023 (2203.03532), e-detectors: an average run length of at least the threshold.
    """
    first, later = scores[:baseline], scores[baseline:]
    if len(first) < baseline:
        return Drift(len(scores), baseline, None, None, ())
    normal = sequential.mean(first, alpha=0.1, planned=baseline)
    assert normal is not None
    recent = sequential.mean(later[-RECENT:], planned=RECENT)
    alarms = _alarms(later, normal, 2.0 * false_alarm_every)
    return Drift(
        len(scores), baseline, normal, recent, tuple((at + baseline, change) for at, change in alarms)
    )


def _alarms(scores: Sequence[float], normal: Interval, threshold: float) -> list[tuple[int, Change]]:
    """When either detector reaches the threshold; both start anew then. Two detectors, so each has half of the false alarms."""
    fell = np.array(BETS) / max(1 - normal.low, 1e-9)  # 1 + b (low - x) stays above 0 for x up to 1
    rose = np.array(BETS) / max(normal.high, 1e-9)
    below, above = np.zeros(len(BETS)), np.zeros(len(BETS))
    found: list[tuple[int, Change]] = []
    for number, score in enumerate(scores, 1):
        below = (below + 1) * (1 + fell * (normal.low - score))
        above = (above + 1) * (1 + rose * (score - normal.high))
        if below.mean() >= threshold or above.mean() >= threshold:
            found.append((number, "fell" if below.mean() >= above.mean() else "rose"))
            below, above = np.zeros(len(BETS)), np.zeros(len(BETS))
    return found
