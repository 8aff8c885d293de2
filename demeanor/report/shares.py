"""A figure of an attribution: the way from the base to the whole, one bar a layer, with the interval of each.

In: the Shapley effects of one axis, as plain dictionaries, and the base's mean. Out: SVG. It computes positions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.figures import line, svg, text
from demeanor.report.markup import Html, el
from demeanor.report.words import MINUS

LEFT, TOP, ROW, BAR, RIGHT = 110.0, 30.0, 34.0, 18.0, 150.0


def waterfall(effects: Sequence[Mapping[str, Any]], base: float, width: float = 820) -> Html:
    """Bars end to end from the base's mean to the whole's; whiskers: the interval of each share, drawn around its bar's end."""
    ends = [base]
    for e in effects:
        ends.append(ends[-1] + e["value"])
    low, high = min(0.0, *ends), max(*ends, 0.25)
    bottom = TOP + ROW * (len(effects) + 2)

    def x(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (value - low) / (high - low)

    ticks = [v / 4 for v in range(int(low * 4) - (low < 0), int(high * 4) + 1)]
    grid = [
        el(
            "g",
            line(x(v), TOP, x(v), bottom, "rule"),
            text(x(v), TOP - 10, f"{100 * v:.0f}%".replace("-", MINUS), "tick", "middle"),
        )
        for v in ticks
        if low <= v <= high
    ]
    bars = [
        _whole("base", base, x, 0),
        *(_bar(e, ends[n], x, n + 1) for n, e in enumerate(effects)),
        _whole("whole", ends[-1], x, len(effects) + 1),
    ]
    return svg(
        width,
        bottom + 6,
        *grid,
        *bars,
        label="From the base to the whole: what each layer adds, with its interval",
    )


def _whole(name: str, value: float, x: Any, row: int) -> Html:
    y = TOP + ROW * (row + 0.5)
    return el(
        "g",
        text(0, y + 4, name, "axis head"),
        el(
            "rect",
            x=min(x(0), x(value)),
            y=y - BAR / 2,
            width=max(1.0, abs(x(value) - x(0))),
            height=BAR,
            class_="s5",
        ),
        text(max(x(0), x(value)) + 8, y + 4, f"{100 * value:.0f}%", "name"),
    )


def _bar(e: Mapping[str, Any], start: float, x: Any, row: int) -> Html:
    """A layer's share; blue or red only where it is shown, pale where its interval or the corrected test covers zero."""
    y, end = TOP + ROW * (row + 0.5), start + e["value"]
    tone = ("s0" if e["value"] > 0 else "s1") if e["shown"] else "s-nobody"
    bounds = (
        "" if e["low"] is None else f" ({100 * e['low']:+.0f} to {100 * e['high']:+.0f})".replace("-", MINUS)
    )
    told = f"{100 * e['value']:+.1f}{bounds}".replace("-", MINUS)
    whisker = None if e["low"] is None else line(x(start + e["low"]), y, x(start + e["high"]), y, "zero")
    furthest = max(start, end, start + (e["high"] or 0.0))
    return el(
        "g",
        el("title", f"{e['name']}: {told} points"),
        text(0, y + 4, e["name"], "axis"),
        el(
            "rect",
            x=min(x(start), x(end)),
            y=y - BAR / 2,
            width=max(1.0, abs(x(end) - x(start))),
            height=BAR,
            class_=tone,
        ),
        whisker,
        text(x(furthest) + 8, y + 4, told, "name"),
    )
