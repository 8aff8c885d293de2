"""The picture of an experiment of the tour: bars or a curve with intervals, as one SVG file without script, readable at the width of a phone.

In: Findings. Out: SVG text. Colors are attributes; a style of five lines changes them where the reader prefers dark pages.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from markupsafe import Markup

from demeanor.report.figures import Attribute, Scale, el
from demeanor.tour.findings import Findings, TourNumber

COLORS = ("#0b6a9c", "#c27a17", "#7a5aa6", "#3c8f6d", "#c76b8f", "#6f7d83")
INK, SOFT, LINE, PAPER = "#1c2529", "#5b676d", "#e3e0d9", "#ffffff"
DARK = {"ink": "#e6ebec", "soft": "#a9b5ba", "line": "#2b363b", "paper": "#182024"}
DARK_COLORS = ("#4f9fd0", "#e2a24a", "#a98fd0", "#66b794", "#dd92b0", "#8e9ca2")
STYLE = Markup("@media (prefers-color-scheme:dark){{{}}}").format(
    Markup("").join(
        Markup(".{0}{{fill:{1}}}.l-{0}{{stroke:{1}}}").format(name, color)
        for name, color in (*DARK.items(), *((f"c{n}", color) for n, color in enumerate(DARK_COLORS)))
    )
)
WIDTH, SHOWN = 420.0, 1.25
"""Units across, so that type of 13 units is read on a phone; and pixels of a unit where there is room."""
SIZE, SMALL = 13, 12
CHARACTER = 7.0  # width of a character of SIZE, at most
NAMES, VALUES, ROW, BAR, APART = 132.0, 44.0, 15.0, 11.0, 13.0
Dots: TypeAlias = Sequence[tuple[float, TourNumber, str]]


def draw(found: Findings) -> str:
    """The picture as the text of an .svg file."""
    drawn = _bars(found) if found.picture == "bars" else _curve(found)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _sheet(height: float, *marks: Markup, label: str) -> Markup:
    """A picture on its own paper, which is right on a page of either color."""
    paper = _rect(x=0, y=0, width=WIDTH, height=height, fill=PAPER, class_="paper")
    return el(
        "svg",
        el("style", STYLE),
        paper,
        *marks,
        role="img",
        aria_label=label,
        width=WIDTH * SHOWN,
        height=height * SHOWN,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
    )


def _text(
    x: float, y: float, words: str, anchor: str = "start", color: str = "ink", size: int = SIZE
) -> Markup:
    return el(
        "text",
        words,
        x=x,
        y=y,
        text_anchor=anchor,
        fill=SOFT if color == "soft" else INK,
        class_=color,
        font_family="system-ui, sans-serif",
        font_size=size,
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> Markup:
    """A line; `color` is ink, soft, line or c0 to c5."""
    stroke = {"ink": INK, "soft": SOFT, "line": LINE}.get(color) or COLORS[int(color[1:])]
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, class_=f"l-{color}")


def _rect(**attributes: Attribute) -> Markup:
    return el("rect", **attributes)


def _color(n: int) -> str:
    return f"c{n % len(COLORS)}"


def _wrapped(words: str, room: float, lines: int = 2) -> list[str]:
    """A name in lines that fit the room; the last one ends in … where it does not fit them all."""
    return textwrap.wrap(words, max(4, int(room / CHARACTER)), max_lines=lines, placeholder="…") or [""]


def _legend(names: Sequence[str]) -> tuple[list[Markup], float]:
    """The names in their colors, in as many lines as they need, and where the lines end."""
    marks, x, y = list[Markup](), 12.0, 22.0
    for n, name in enumerate(names):
        told = _wrapped(name, WIDTH - 60, 1)[0]
        width = 32 + CHARACTER * len(told)
        if x > 12 and x + width > WIDTH:
            x, y = 12.0, y + 19
        square = _rect(x=x, y=y - 10, width=11, height=11, fill=COLORS[n % len(COLORS)], class_=_color(n))
        marks += [square, _text(x + 16, y, told)]
        x += width
    return marks, y + 8


# ---- bars ----


def _ends(numbers: Sequence[TourNumber]) -> tuple[float, float]:
    """The scale: 0 to 1 for shares, else from the lowest to the highest bound."""
    low = min(0.0, *(m.value if m.low is None else m.low for m in numbers))
    high = max(1.0 if low == 0.0 else 0.0, *(m.value if m.high is None else m.high for m in numbers))
    return low, high if high > low else low + 1.0


def _bars(found: Findings) -> Markup:
    low, high = _ends([m for row in found.cells.values() for m in row.values()])
    legend, top = _legend(found.columns)
    names = {row: _wrapped(row, NAMES - 18) for row in found.rows}
    left = 22 + min(NAMES - 18, CHARACTER * max(len(line) for lines in names.values() for line in lines))
    plot = WIDTH - left - VALUES - (VALUES if low < 0 else 0)
    start = left + (VALUES if low < 0 else 0)

    def x(value: float) -> float:
        return start + plot * (value - low) / (high - low)

    group = max(ROW * len(found.columns), 32.0) + APART
    bottom = top + 8 + group * len(found.rows)
    marks = [_line(x(t), top, x(t), bottom, "line") for t in _ticks(low, high)]
    marks += [_text(x(t), bottom + 18, f"{100 * t:g}", "middle", "soft", SMALL) for t in _ticks(low, high)]
    for r, row in enumerate(found.rows):
        y = top + 8 + group * r
        middle = y + ROW * len(found.columns) / 2 + 3 - 8 * (len(names[row]) - 1)
        marks += [_text(left - 10, middle + 16 * n, part, "end") for n, part in enumerate(names[row])]
        marks += [
            _bar(f"{row}, {column}", m, x, y + ROW * n, n)
            for n, column in enumerate(found.columns)
            if (m := found.cells[row].get(column)) is not None
        ]
    marks.append(_line(x(0), top, x(0), bottom, "soft"))
    return _sheet(bottom + 30, *legend, *marks, label=found.said)


def _bar(name: str, m: TourNumber, x: Scale, y: float, n: int) -> Markup:
    """A bar from zero with its interval; the number stands beyond both, on the side to which the bar goes."""
    left, right, middle = min(x(0), x(m.value)), max(x(0), x(m.value)), y + BAR / 2
    parts = [
        el("title", f"{name}: {m.text()}, n = {m.n}"),
        _rect(
            x=left,
            y=y,
            width=max(1.0, right - left),
            height=BAR,
            fill=COLORS[n % len(COLORS)],
            class_=_color(n),
            fill_opacity=0.8,
        ),
    ]
    ends = [left, right]
    if m.low is not None and m.high is not None:
        parts.append(_line(x(m.low), middle, x(m.high), middle, "ink", 1.2))
        ends += [x(m.low), x(m.high)]
    told = f"{100 * m.value:.0f}".replace("-", "−")
    place = (min(ends) - 5, "end") if m.value < 0 else (max(ends) + 5, "start")
    parts.append(_text(place[0], y + BAR - 1, "0" if told == "−0" else told, place[1], "soft", SMALL))
    return el("g", *parts)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.25 if high - low > 0.6 else 0.1
    return [step * n for n in range(round(low / step - 0.5) + 1, int(high / step) + 1)]


# ---- curves ----


def _curve(found: Findings) -> Markup:
    """Lines over the columns, or, where a column is in nats, points over that column."""
    nats = next(
        (c for c in found.columns if any(r[c].unit == "nats" for r in found.cells.values() if c in r)), None
    )
    if nats is not None:
        names = [c for c in found.columns if c != nats]
        lines = {c: [(found.cells[r][nats].value, found.cells[r][c], r) for r in found.rows] for c in names}
        places = [(found.cells[r][nats].value, r) for r in found.rows]
        return _lines(found.said, lines, places, nats)
    lines = {r: [(float(n), found.cells[r][c], c) for n, c in enumerate(found.columns)] for r in found.rows}
    return _lines(found.said, lines, [(float(n), c) for n, c in enumerate(found.columns)], "examples")


def _lines(said: str, lines: Mapping[str, Dots], places: Sequence[tuple[float, str]], under: str) -> Markup:
    left, tall = 46.0, 250.0
    plot = WIDTH - left - 16
    legend, top = _legend(list(lines))
    top += 12
    most = max((x for x, _ in places), default=1.0) or 1.0

    def x(value: float) -> float:
        return left + 22 + (plot - 44) * value / most

    def y(value: float) -> float:
        return top + tall * (1 - value)

    marks = list[Markup]()
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks += [
            _line(left, y(tick), left + plot, y(tick), "line"),
            _text(left - 8, y(tick) + 4, f"{100 * tick:g}", "end", "soft", SMALL),
        ]
    names, bottom = _places(places, x, top + tall + 18)
    marks += [*names, _text(left + plot / 2, bottom + 20, under, "middle")]
    for n, dots in enumerate(lines.values()):
        sway = 4.0 * (n - (len(lines) - 1) / 2)  # so that intervals do not cover each other
        marks += [
            _line(x(a) + sway, y(m.value), x(b) + sway, y(k.value), _color(n), 2)
            for (a, m, _), (b, k, _) in pairwise(sorted(dots, key=lambda d: d[0]))
        ]
    for n, (name, dots) in enumerate(lines.items()):
        sway = 4.0 * (n - (len(lines) - 1) / 2)
        marks += [_dot(f"{name}, {place}", m, x(at) + sway, y, n) for at, m, place in dots]
    return _sheet(bottom + 34, *legend, *marks, label=said)


def _places(places: Sequence[tuple[float, str]], x: Scale, y: float) -> tuple[list[Markup], float]:
    """The names under the scale, each in the first line where it does not cover another one, and where the last line is."""
    ends, marks = list[float](), list[Markup]()
    for value, name in sorted(places):
        half = CHARACTER * len(name) / 2
        at = min(max(x(value), half + 2), WIDTH - half - 2)
        n = next((n for n, end in enumerate(ends) if at - half > end + 5), len(ends))
        ends[n : n + 1] = [at + half]
        marks.append(_text(at, y + 16 * n, name, "middle", "soft", SMALL))
    return marks, y + 16 * max(0, len(ends) - 1)


def _dot(name: str, m: TourNumber, x: float, y: Callable[[float], float], n: int) -> Markup:
    whisker = () if m.low is None or m.high is None else (_line(x, y(m.low), x, y(m.high), _color(n), 1.2),)
    dot = el("circle", cx=x, cy=y(m.value), r=4.5, fill=COLORS[n % len(COLORS)], class_=_color(n))
    return el("g", el("title", f"{name}: {m.text()}, n = {m.n}"), *whisker, dot)
