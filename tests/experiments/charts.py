"""One kind of picture for docs/science.md: lines and points over two axes, drawn with the marks of report/figures.py.

In: named series. Out: an SVG file with its own colors for light and dark pages. The same numbers always draw the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from demeanor.report.figures import el, line, svg, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620.0, 360.0, 56.0, 170.0, 16.0, 44.0
COLORS = (
    ("#1668b0", "#6cb6ff"),
    ("#c2410c", "#ff9a5c"),
    ("#2f7d32", "#81c784"),
    ("#7b1fa2", "#ce93d8"),
    ("#00838f", "#4dd0e1"),
    ("#8d6e00", "#ffd54f"),
    ("#ad1457", "#f48fb1"),
    ("#455a64", "#b0bec5"),
)
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.rule{stroke:#ddd}.zero{stroke:#999}"
    + "".join(
        f".l{i}{{stroke:{light};fill:none;stroke-width:1.8}}.d{i}{{fill:{light}}}"
        for i, (light, _) in enumerate(COLORS)
    )
    + "@media(prefers-color-scheme:dark){text{fill:#ddd}.rule{stroke:#444}"
    + "".join(f".l{i}{{stroke:{dark}}}.d{i}{{fill:{dark}}}" for i, (_, dark) in enumerate(COLORS))
    + "}"
)


class Series(NamedTuple):
    """Places (x, y), joined by a line or as points; whiskers are (low, high) of y where they were measured."""

    places: Sequence[tuple[float, float]]
    joined: bool = False
    whiskers: Sequence[tuple[float, float]] = ()


def ticks(low: float, high: float) -> list[float]:
    """Five or so round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def plane(series: Mapping[str, Series], x: str, y: str, label: str) -> str:
    """The SVG of series over two axes with a legend."""
    xs = [a for s in series.values() for a, _ in s.places]
    ys = [b for s in series.values() for _, b in s.places] + [
        b for s in series.values() for w in s.whiskers for b in w
    ]
    (x0, x1), (y0, y1) = ((min(v), max(v) if max(v) > min(v) else min(v) + 1) for v in (xs, ys))
    pad = 0.04 * (y1 - y0)
    y0, y1 = y0 - pad, y1 + pad

    def at(a: float, b: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * (a - x0) / (x1 - x0), TOP + (HEIGHT - TOP - BOTTOM) * (
            y1 - b
        ) / (y1 - y0)

    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    marks: list[Markup] = [el("style", Markup(STYLE))]
    for v in ticks(y0, y1):
        _, py = at(x0, v)
        marks += [
            line(LEFT, py, end, py, "zero" if abs(v) < 1e-12 else "rule"),
            text(LEFT - 6, py + 4, f"{v:g}", anchor="end"),
        ]
    for v in ticks(x0, x1):
        px, _ = at(v, y0)
        marks += [line(px, TOP, px, floor, "rule"), text(px, floor + 16, f"{v:g}", anchor="middle")]
    for n, (name, s) in enumerate(series.items()):
        color, spots = n % len(COLORS), [at(a, b) for a, b in s.places]
        if s.joined:
            marks.append(
                el("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in spots), class_=f"l{color}")
            )
        for (px, _), (low, high) in zip(spots, s.whiskers):
            marks.append(line(px, at(x0, low)[1], px, at(x0, high)[1], f"l{color}"))
        if not s.joined or s.whiskers:
            marks += [el("circle", cx=a, cy=b, r=3.4, class_=f"d{color}") for a, b in spots]
        top = TOP + 10 + 20 * n
        marks += [
            el("rect", x=end + 14, y=top - 8, width=10, height=10, class_=f"d{color}"),
            text(end + 30, top + 1, name),
        ]
    marks += [text((LEFT + end) / 2, HEIGHT - 8, x, anchor="middle"), text(LEFT, TOP - 4, y)]
    drawn = str(svg(WIDTH, HEIGHT, *marks, label=label))
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def write(path: Path, drawn: str) -> Path:
    """Write a picture; returns its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn)
    return path
