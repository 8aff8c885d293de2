"""Words of charts: their width, how they are shortened, and that no label covers another one, whatever the points and names are."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from demeanor.report.chart_labels import LabelBox, Point, Segment, fit, places, width_of

AREA = LabelBox(52, 14, 400, 360)
NAMES = [f"+layer-{n}" for n in range(20)]
RANDOM = random.Random(0)
CLOUDS: dict[str, list[Point]] = {
    "all equal": [(200.0, 200.0)] * 20,
    "in a corner": [(400.0, 14.0)] * 20,
    "on a line": [(60.0 + 17 * n, 100.0) for n in range(20)],
    "anywhere": [(RANDOM.uniform(52, 400), RANDOM.uniform(14, 360)) for _ in range(20)],
    "one": [(52.0, 360.0)],
    "none": [],
}


@pytest.mark.parametrize("points", CLOUDS.values(), ids=list(CLOUDS))
def test_no_label_covers_another_one_or_leaves_the_chart(points: list[Point]) -> None:
    found = places(NAMES, points, [], AREA)
    assert len(found) == len(points)
    assert not [(a, b) for a, b in combinations(found, 2) if a.box.meets(b.box)]
    assert all(
        AREA.left <= p.box.left
        and p.box.right <= AREA.right
        and AREA.top <= p.box.top <= p.box.bottom <= AREA.bottom
        for p in found
    )


def test_a_label_goes_round_points_and_lines_where_there_is_room() -> None:
    points: list[Point] = [(100.0 + 60 * n, 180.0 + 20 * (n % 2)) for n in range(5)]
    lines: list[Segment] = [(x - 30, y, x + 30, y) for x, y in points] + [
        (x, y - 60, x, y + 60) for x, y in points
    ]
    found = places(["base", "+sft", "+dpo", "+policy", "+tools"], points, lines, AREA)
    dots = [LabelBox(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    assert len(found) == 5
    assert not [(place, line) for place in found for line in lines if place.box.crossed(*line)]
    assert not [(place, dot) for place in found for dot in dots if place.box.meets(dot)]


def test_a_name_is_shortened_to_its_room_and_a_short_one_stays() -> None:
    assert fit("policy", 100) == "policy"
    for words in ("x" * 300, "W" * 300, "安全なお願い" * 30, "é́" * 90, "👩‍👩‍👧 family " * 20):
        short = fit(words, 100)
        assert short.endswith("…")
        assert width_of(short) <= 100
    assert fit("", 10) == ""
    assert fit("abc", 0) == "…"


def test_a_wide_character_takes_more_room_than_a_narrow_one() -> None:
    assert width_of("ill") < width_of("abc") < width_of("MWM") < width_of("安全な")


def test_a_line_crosses_a_box_or_passes_it() -> None:
    box = LabelBox(0, 0, 10, 10)
    assert box.crossed(-5, 5, 15, 5)
    assert box.crossed(-5, -5, 15, 15)
    assert box.crossed(2, 2, 3, 3)
    assert not box.crossed(-5, 11, 15, 11)
    assert not box.crossed(-5, 5, -1, 5)
    assert not box.crossed(11, -20, 30, 0)
