"""Where the words of a chart stand: how wide they are, how they are shortened, and places where they cover no mark and no line.

In: words, points, lines. Out: shortened words, boxes. It draws nothing.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

STEP, RINGS = 9.0, 48
"""Pixels between the distances at which places for a label are tried, and how many of them."""
NARROW, BROAD = frozenset("ijl.,:;|!'’()[]ftrI1 "), frozenset("mwMW@%—…")
Point: TypeAlias = tuple[float, float]
Segment: TypeAlias = tuple[float, float, float, float]


class LabelBox(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: LabelBox) -> bool:
        """Do two rectangles have a point in common?"""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def crossed(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        """Does a straight line pass through the rectangle? (Liang and Barsky's clipping.)"""
        first, last = 0.0, 1.0
        for step, room in (
            (x1 - x2, x1 - self.left),
            (x2 - x1, self.right - x1),
            (y1 - y2, y1 - self.top),
            (y2 - y1, self.bottom - y1),
        ):
            if step == 0:
                if room < 0:
                    return False
            elif step < 0:
                first = max(first, room / step)
            else:
                last = min(last, room / step)
        return first <= last


def width_of(words: str, size: float = 13.0) -> float:
    """Pixels that words take at a type size, rather too many than too few: fonts differ from machine to machine."""
    return size * sum(map(_width, words))


def _width(c: str) -> float:
    if unicodedata.combining(c):
        return 0.0
    if unicodedata.east_asian_width(c) in "WF":
        return 1.05
    if c in NARROW:
        return 0.42
    if c in BROAD:
        return 0.98
    return 0.74 if c.isupper() else 0.64


def fit(words: str, room: float, size: float = 13.0) -> str:
    """The words, or as many characters as fit the room, and `…`."""
    if width_of(words, size) <= room:
        return words
    kept = words
    while kept and width_of(f"{kept}…", size) > room:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


class LabelPlace(NamedTuple):
    """Where a label stands: left end of its base line; a leader leads there from its point if it stands apart."""

    x: float
    y: float
    box: LabelBox
    apart: bool


def places(
    labels: Sequence[str],
    points: Sequence[Point],
    lines: Sequence[Segment],
    area: LabelBox,
    size: float = 12.5,
) -> list[LabelPlace]:
    """A place for the label of each point: near it, inside the area, over no other label, and over no point or line where there is room."""
    dots = [LabelBox(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    taken: list[LabelBox] = []
    found: list[LabelPlace] = []
    for label, point in zip(labels, points):
        best, least = None, math.inf
        for ring in range(RINGS):
            if least <= STEP * ring:  # whatever stands farther away is no better
                break
            for place in _around(point, width_of(label, size), size, area, ring):
                cost = _cost(place, point, taken, dots, lines, least)
                if cost < least:
                    best, least = place, cost
        assert best is not None
        taken.append(best.box)
        found.append(best)
    return found


def _around(point: Point, width: float, size: float, area: LabelBox, ring: int) -> Iterator[LabelPlace]:
    """Places around a point in 16 directions, farther away with every ring, all moved into the area."""
    high, reach = size * 1.15, 9.0 + STEP * ring
    for turn in range(16):
        across, down = math.cos(math.tau * turn / 16), math.sin(math.tau * turn / 16)
        left = point[0] + across * (reach + width / 2) - width / 2
        top = point[1] + down * (reach + high / 2) - high / 2
        left = min(max(left, area.left), max(area.left, area.right - width))
        top = min(max(top, area.top), max(area.top, area.bottom - high))
        yield LabelPlace(left, top + size * 0.92, LabelBox(left, top, left + width, top + high), ring > 1)


def _cost(
    place: LabelPlace,
    point: Point,
    taken: Sequence[LabelBox],
    dots: Sequence[LabelBox],
    lines: Sequence[Segment],
    least: float,
) -> float:
    """How bad a place is: how far away, over a label, over a point, over lines; counted no further than `least`."""
    box = place.box
    cost = math.hypot(
        max(box.left - point[0], 0.0, point[0] - box.right),
        max(box.top - point[1], 0.0, point[1] - box.bottom),
    )
    covered = chain(
        (2000.0 * box.meets(other) for other in taken),
        (300.0 * box.meets(dot) for dot in dots),
        (24.0 * box.crossed(*line) for line in lines),
    )
    for more in covered:
        if cost >= least:
            break
        cost += more
    return cost
