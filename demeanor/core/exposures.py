"""One turn of an experiment, as the store keeps it and the analysis reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Exposure:
    """A turn that an arm answered: whose (`unit`, a hash), which arm (its number), when it ended, its score and when that was given.

    `ratings` are the moments and values of its feedback.
    """

    turn: str
    unit: str
    arm: int
    created: datetime
    value: float | None
    scored: datetime | None = None
    ratings: tuple[tuple[datetime, float], ...] = ()
