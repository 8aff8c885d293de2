"""Training ledgers, thinned to what a figure can show. In: plain rows with a `step`. Out: a Curve of a few metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from demeanor.evaluation.result import Curve

POINTS = 120
SHOWN = ("loss", "accurac", "margin")


def curve(name: str, ledger: Sequence[Mapping[str, object]]) -> Curve:
    """Losses, accuracies and margins of a ledger, each averaged into at most `POINTS` points."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in ledger:
        step = row.get("step")
        for metric, number in row.items():
            if (
                _drawn(metric)
                and isinstance(step, int | float)
                and isinstance(number, int | float)
                and math.isfinite(number)
            ):
                lines.setdefault(metric, []).append((float(step), float(number)))
    return Curve(name, {metric: _thin(points) for metric, points in lines.items()})


def _drawn(metric: str) -> bool:
    return any(word in metric for word in SHOWN) and not metric.endswith(("/low", "/high"))


def _thin(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    parts = np.array_split(np.array(points), min(POINTS, len(points)))
    return tuple((float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts)
