"""The picture of an experiment of the tour: bars or a curve with intervals, as one SVG file without style sheet or script.

In: Findings. Out: SVG text; colors are attributes, so that it can be shown as an image under any content security policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from demeanor.report.figures import Attribute, el, svg
from demeanor.tour.findings import Findings, TourNumber

COLORS = ("#0b6a9c", "#d98a1f", "#7a5aa6", "#3c8f6d", "#c76b8f", "#6f7d83")
INK, SOFT, LINE, PAPER = "#1c2529", "#5b676d", "#e3e0d9", "#ffffff"
LEFT, TOP, PLOT, ROW, BAR = 170.0, 44.0, 520.0, 14.0, 10.0
CHARACTER = 6.6


def draw(found: Findings) -> str:
    """The picture as the text of an .svg file."""
    drawn = _bars(found) if found.picture == "bars" else _curve(found)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _text(x: float, y: float, words: str, anchor: str = "start", fill: str = INK, size: int = 12) -> Markup:
    return el(
        "text",
        words,
        x=x,
        y=y,
        text_anchor=anchor,
        fill=fill,
        font_family="system-ui, sans-serif",
        font_size=size,
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1) -> Markup:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width)


def _rect(**attributes: Attribute) -> Markup:
    return el("rect", **attributes)


def _ends(numbers: Sequence[TourNumber]) -> tuple[float, float]:
    """The scale: 0 to 1 for shares, else from the lowest to the highest bound."""
    low = min(0.0, *(m.value if m.low is None else m.low for m in numbers))
    high = max(1.0 if low == 0.0 else 0.0, *(m.value if m.high is None else m.high for m in numbers))
    return low, high


def _legend(columns: Sequence[str], y: float) -> list[Markup]:
    """The names of the columns in their colors, in as many lines as they need."""
    marks, x = list[Markup](), LEFT
    for n, name in enumerate(columns):
        width = 26 + CHARACTER * len(name)
        if x > LEFT and x + width > LEFT + PLOT + 60:
            x, y = LEFT, y + 18
        marks += [
            _rect(x=x, y=y - 9, width=10, height=10, fill=COLORS[n % len(COLORS)]),
            _text(x + 15, y, name),
        ]
        x += width
    return marks


def _legend_height(columns: Sequence[str]) -> float:
    lines, x = 1, 0.0
    for name in columns:
        width = 26 + CHARACTER * len(name)
        if x and x + width > PLOT + 60:
            lines, x = lines + 1, 0.0
        x += width
    return 18.0 * lines


def _bars(found: Findings) -> Markup:
    numbers = [m for row in found.cells.values() for m in row.values()]
    low, high = _ends(numbers)
    top = TOP + _legend_height(found.columns)
    group = ROW * len(found.columns) + 12
    height = top + group * len(found.rows) + 34

    def x(value: float) -> float:
        return LEFT + PLOT * (value - low) / (high - low)

    marks = [_rect(x=0, y=0, width=LEFT + PLOT + 70, height=height, fill=PAPER), *_legend(found.columns, 26)]
    marks += [_line(x(t), top - 6, x(t), height - 28, LINE) for t in _ticks(low, high)]
    marks += [_text(x(t), height - 12, f"{100 * t:g}", "middle", SOFT, 11) for t in _ticks(low, high)]
    for r, row in enumerate(found.rows):
        y = top + group * r
        marks.append(_text(LEFT - 10, y + (group - 12) / 2 + 4, row, "end"))
        for n, column in enumerate(found.columns):
            if (m := found.cells[row].get(column)) is not None:
                marks.append(_bar(f"{row}, {column}", m, x, y + ROW * n, COLORS[n % len(COLORS)]))
    marks.append(_line(x(0), top - 6, x(0), height - 28, SOFT))
    return svg(LEFT + PLOT + 70, height, *marks, label=found.said)


def _bar(name: str, m: TourNumber, x: object, y: float, color: str) -> Markup:
    assert callable(x)
    left, right, middle = min(x(0), x(m.value)), max(x(0), x(m.value)), y + BAR / 2
    parts = [
        el("title", f"{name}: {m.text()}, n = {m.n}"),
        _rect(x=left, y=y, width=max(1.0, right - left), height=BAR, fill=color, fill_opacity=0.75),
    ]
    end = right
    if m.low is not None and m.high is not None:
        parts.append(_line(x(m.low), middle, x(m.high), middle, INK, 1.2))
        end = max(right, x(m.high))
    parts.append(_text(end + 5, y + BAR - 1, f"{100 * m.value:.0f}", fill=SOFT, size=10))
    return el("g", *parts)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.25 if high - low > 0.6 else 0.1
    return [step * n for n in range(round(low / step - 0.5) + 1, int(high / step) + 1)]


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


def _lines(
    said: str,
    lines: dict[str, list[tuple[float, TourNumber, str]]],
    places: Sequence[tuple[float, str]],
    under: str,
) -> Markup:
    left, plot, tall = 60.0, 560.0, 260.0
    top = 30 + _legend_height(list(lines))
    most = max((x for x, _ in places), default=1.0) or 1.0

    def x(value: float) -> float:
        return left + 20 + (plot - 40) * value / most

    def y(value: float) -> float:
        return top + tall * (1 - value)

    width, height = left + plot + 20, top + tall + 56
    marks = [_rect(x=0, y=0, width=width, height=height, fill=PAPER)]
    shift = Markup("").join(_legend(list(lines), 20))
    marks.append(el("g", shift, transform=f"translate({left - LEFT} 0)"))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks += [
            _line(left, y(tick), left + plot, y(tick), LINE),
            _text(left - 8, y(tick) + 4, f"{100 * tick:g}", "end", SOFT, 11),
        ]
    last = -1e9
    for value, name in sorted(places):
        if x(value) - last > CHARACTER * len(name) + 6:
            marks.append(_text(x(value), top + tall + 18, name, "middle", SOFT, 11))
            last = x(value)
    marks.append(_text(left + plot / 2, top + tall + 40, under, "middle"))
    for n, (name, dots) in enumerate(lines.items()):
        color = COLORS[n % len(COLORS)]
        sway = 3.0 * (n - (len(lines) - 1) / 2)  # so that intervals do not cover each other
        marks += [
            _line(x(a) + sway, y(m.value), x(b) + sway, y(k.value), color, 2)
            for (a, m, _), (b, k, _) in pairwise(sorted(dots, key=lambda d: d[0]))
        ]
        for at, m, place in dots:
            whisker = (
                []
                if m.low is None or m.high is None
                else [_line(x(at) + sway, y(m.low), x(at) + sway, y(m.high), color)]
            )
            hint = el("title", f"{name}, {place}: {m.text()}, n = {m.n}")
            marks.append(
                el("g", hint, *whisker, el("circle", cx=x(at) + sway, cy=y(m.value), r=4, fill=color))
            )
    return svg(width, height, *marks, label=said)
