"""The charts of a page, as inline SVG from small functions: every mark is a number of the result, colors are CSS classes.

In: the data of a Figure. Out: SVG that scales, prints and carries its numbers as tooltips. It computes positions only. Drawn by hand and
not by vega or plotly: those add 1 to 3 MB of script to a page that has none, and its content security policy forbids scripts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from markupsafe import Markup, escape

from demeanor.core.table import Figure, axis_name, interval, number, percent, plural, points, tone_of, visible
from demeanor.evaluation.attribution import Effect
from demeanor.evaluation.ladder_sentences import delta_sentence, shade
from demeanor.evaluation.profile import NOBODY
from demeanor.evaluation.result import Comparison, Cost, Curve, Delta, Refusals, is_firm, mean_text
from demeanor.evaluation.tax import TaxFamily
from demeanor.report import chart_labels as placing

Scale: TypeAlias = Callable[[float], float]
Attribute: TypeAlias = str | int | float | None


def draw(figure: Figure) -> Markup:
    """The SVG of a figure."""
    return FIGURES[figure.kind](**figure.data)


def el(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """An element; `class_` is class, text_anchor is text-anchor, None is left out, numbers are rounded to 2 places."""
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Children one after another, everything but markup escaped."""
    return Markup("").join(
        child if isinstance(child, Markup) else escape(visible(child))
        for child in children
        if child is not None
    )


def _attribute(name: str, value: Attribute) -> str:
    shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else visible(str(value))
    return f' {name.rstrip("_").replace("_", "-")}="{escape(shown)}"'


def svg(width: float, height: float, *children: Markup, label: str) -> Markup:
    """A figure with its size in pixels and what a screen reader says of it."""
    size = {"width": width, "height": height}
    return el("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **size)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """Words at a place."""
    return el("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def name(x: float, y: float, words: str, room: float, class_: str = "", anchor: str = "start") -> Markup:
    """A name at a place, shortened to the room there is; the whole of it is its tooltip."""
    shown = placing.fit(visible(words), room)
    drawn = text(x, y, shown, class_, anchor)
    return drawn if shown == words else el("g", el("title", words), drawn)


def pinned(
    width: float, height: float, left: float, names: Sequence[Markup], marks: Sequence[Markup], label: str
) -> Markup:
    """A chart in two pictures: the names of its rows, which stay in sight where the chart is moved sideways, and its marks."""
    share = 100 * left / width
    return el(
        "div",
        el(
            "svg",
            *names,
            viewBox=f"0 0 {left:g} {height:g}",
            role="img",
            aria_label=f"{label}: names of the rows",
            width=f"{share:.3f}%",
            class_="names",
        ),
        el(
            "svg",
            *marks,
            viewBox=f"{left:g} 0 {width - left:g} {height:g}",
            role="img",
            aria_label=label,
            width=f"{100 - share:.3f}%",
        ),
        class_="pinned",
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def block(x: float, y: float, width: float, height: float, class_: str, hint: str | None = None) -> Markup:
    """A rectangle, with a tooltip where there is one."""
    drawn = el("rect", x=x, y=y, width=width, height=height, class_=class_)
    return drawn if hint is None else el("g", el("title", hint), drawn)


# ---- differences with intervals ----

LABEL_WIDTH, ROW_HEIGHT, HEAD, FOOT, GAP = 136.0, 27.0, 30.0, 26.0, 14.0
ABREAST = 7
"""Comparisons that stand side by side; more of them are drawn below each other."""


def forest(comparisons: Sequence[Comparison], sign: str, label: str, width: float = 1040) -> Markup:
    """One panel per comparison, one row per axis: the paired difference with its interval, on one scale."""
    scale = _scale([d for c in comparisons for d in c.deltas])
    rows = max(1, math.ceil(len(comparisons) / ABREAST))
    abreast = math.ceil(len(comparisons) / rows)
    parts = [comparisons[n : n + abreast] for n in range(0, len(comparisons), abreast)]
    return join(*(_panels(part, scale, sign, label, abreast, width) for part in parts))


def _panels(
    comparisons: Sequence[Comparison],
    scale: tuple[float, float],
    sign: str,
    label: str,
    abreast: int,
    width: float,
) -> Markup:
    """Panels side by side, with the names of their axes."""
    axes = [delta.axis for delta in comparisons[0].deltas]
    panel = min(210.0, (width - LABEL_WIDTH) / abreast - GAP)
    bottom = HEAD + ROW_HEIGHT * len(axes)
    levels = [HEAD + ROW_HEIGHT * i for i in range(len(axes) + 1)]
    names = [
        name(0, y + ROW_HEIGHT / 2 + 4, axis_name(axis), LABEL_WIDTH - 10, "axis")
        for y, axis in zip(levels, axes)
    ]
    panels = [
        _panel(c, sign, LABEL_WIDTH + n * (panel + GAP), panel, scale, bottom)
        for n, c in enumerate(comparisons)
    ]
    return pinned(
        width,
        bottom + FOOT,
        LABEL_WIDTH,
        [*(line(0, y, LABEL_WIDTH, y, "rule") for y in levels), *names],
        [*(line(LABEL_WIDTH, y, width, y, "rule") for y in levels), *panels],
        label,
    )


def _scale(deltas: Sequence[Delta]) -> tuple[float, float]:
    """The common scale: from the lowest bound to the highest, each rounded outwards to a quarter."""
    bounds = [x for d in deltas for x in (d.low, d.high, d.value) if x is not None]
    return min(-0.25, math.floor(4 * min(bounds, default=0)) / 4), max(
        0.25, math.ceil(4 * max(bounds, default=0)) / 4
    )


def _panel(
    comparison: Comparison, sign: str, left: float, width: float, scale: tuple[float, float], bottom: float
) -> Markup:
    low, high = scale

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    title = f"{sign}{comparison.name}"
    marks = [
        _mark(title, delta, x, HEAD + ROW_HEIGHT * (i + 0.5)) for i, delta in enumerate(comparison.deltas)
    ]
    return el(
        "g",
        name(left + width / 2, 16, title, width, "head", "middle"),
        line(x(0), HEAD, x(0), bottom, "zero"),
        *marks,
        text(left, bottom + 16, f"−{-100 * low:g}", "tick"),
        text(x(0), bottom + 16, "0", "tick", "middle"),
        text(left + width, bottom + 16, f"+{100 * high:g}", "tick", "end"),
    )


def _mark(title: str, delta: Delta, x: Scale, y: float) -> Markup:
    """Filled: the verdict survives the correction; ring: this interval alone excludes zero; small and grey: it covers zero."""
    value = delta.value
    if value is None:
        return text(x(0), y + 4, "not measured", "tick", "middle")
    tone, low, high = tone_of(value, shown=delta.shown), delta.low, delta.high
    whisker = None if low is None or high is None else line(x(low), y, x(high), y, f"whisker {tone}")
    dot = el(
        "circle",
        cx=x(value),
        cy=y,
        r=4.6 if delta.shown else 2.8,
        class_=f"dot {tone}{' firm' if is_firm(delta) else ''}",
    )
    return el("g", el("title", delta_sentence(title, delta)), whisker, dot)


# ---- refusals ----


def refusal_plane(refusals: Sequence[Refusals], labels: Mapping[str, str], size: float = 430) -> Markup:
    """Each variant as a point with its intervals: safe requests answered (right is better), unsafe ones refused (up is better)."""
    left, top, side = 52.0, 14.0, size - 80

    def x(value: float) -> float:
        return left + side * value

    def y(value: float) -> float:
        return top + side * (1 - value)

    grid = [
        join(
            line(x(0), y(v), x(1), y(v), "rule"),
            line(x(v), y(0), x(v), y(1), "rule"),
            text(x(0) - 8, y(v) + 4, percent(v), "tick", "end"),
            text(x(v), y(0) + 18, percent(v), "tick", "middle"),
        )
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    places = [(x(r.safe_compliance.value or 0), y(r.unsafe_refusal.value or 0)) for r in refusals]
    path = el("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_="path")
    dots = [
        _point(r, labels[r.variant], at, n == len(refusals) - 1)
        for n, (r, at) in enumerate(zip(refusals, places))
    ]
    spans = [span for r in refusals for span in _spans(r, x, y)]
    ways = [(*a, *b) for a, b in pairwise(places)]
    names = _names(
        [labels[r.variant] for r in refusals],
        places,
        [*spans, *ways],
        placing.LabelBox(x(0) + 2, top, x(1) + 14, y(0) - 2),
    )
    return svg(
        size,
        size - 18,
        *grid,
        line(x(0), y(1), x(1), y(0), "chance"),
        path,
        *(line(*span, "cross") for span in spans),
        *dots,
        *names,
        text(x(0.5), y(0) + 38, "safe look-alikes answered, %", "caption", "middle"),
        el(
            "g",
            text(0, 0, "unsafe requests refused, %", "caption", "middle"),
            transform=f"translate(13 {y(0.5):.0f}) rotate(-90)",
        ),
        label="Safe requests answered against unsafe requests refused, by variant",
    )


def _spans(found: Refusals, x: Scale, y: Scale) -> list[placing.Segment]:
    """The two intervals of a point as lines; none where there is no interval."""
    safe, unsafe = found.safe_compliance, found.unsafe_refusal
    if safe.low is None or safe.high is None or unsafe.low is None or unsafe.high is None:
        return []
    across, up = x(safe.value or 0), y(unsafe.value or 0)
    return [(x(safe.low), up, x(safe.high), up), (across, y(unsafe.low), across, y(unsafe.high))]


def _point(found: Refusals, label: str, at: tuple[float, float], last: bool) -> Markup:
    note = (
        f"{label}: answers {mean_text(found.safe_compliance)} of safe requests, "
        f"refuses {mean_text(found.unsafe_refusal)} of unsafe ones"
    )
    dot = el(
        "circle", cx=at[0], cy=at[1], r=6.5 if last else 4.5, class_=f"variant{' whole' if last else ''}"
    )
    return el("g", el("title", note), dot)


def _names(
    labels: Sequence[str],
    points_: Sequence[placing.Point],
    lines: Sequence[placing.Segment],
    area: placing.LabelBox,
) -> list[Markup]:
    """Labels where they cover no mark, with a leader where they stand apart from their point."""
    shown = [placing.fit(visible(label), 150, 12.5) for label in labels]
    found = []
    for label, short, (px, py), place in zip(
        labels, shown, points_, placing.places(shown, points_, lines, area)
    ):
        middle, half = (place.box.top + place.box.bottom) / 2, (place.box.bottom - place.box.top) / 2
        end = min(max(px, place.box.left - 2), place.box.right + 2)
        leader = (
            line(px, py, end, middle + math.copysign(min(half, abs(py - middle)), py - middle), "leader")
            if place.apart
            else None
        )
        whole = None if short == label else el("title", label)
        found.append(el("g", whole, leader, text(place.x, place.y, short, "name halo")))
    return found


def who_refused(
    refusals: Sequence[Refusals], labels: Mapping[str, str], layers: Sequence[str], width: float = 450
) -> Markup:
    """Two stacked bars per variant, unsafe and safe: refused by which layer, or answered."""
    widest = max((placing.width_of(labels[r.variant]) for r in refusals), default=0.0)
    left, bar = min(max(132.0, widest + 56), 220.0), 13.0
    full = width - left - 8
    rows, y = [], 22.0
    for found in refusals:
        rows.append(name(0, y + 17, labels[found.variant], left - 54, "head"))
        for kind, who in (("unsafe", found.who_unsafe), ("safe", found.who_safe)):
            rows.append(text(left - 8, y + bar - 3, kind, "tick", "end"))
            about = f"{labels[found.variant]}, {kind} requests"
            rows.append(_stack(who, [*layers, NOBODY], (left, y, full, bar), about))
            y += bar + 2
        y += 11
    ends = ((0, "start"), (0.5, "middle"), (1, "end"))
    ticks = [text(left + full * v, 12, f"{percent(v)}%", "tick", anchor) for v, anchor in ends]
    return svg(width, y, *ticks, *rows, label="Who refused unsafe and safe requests, by variant")


def _stack(
    who: Mapping[str, int], layers: Sequence[str], box: tuple[float, float, float, float], about: str
) -> Markup:
    """The parts of one bar in its box (x, y, width, height), each with its count."""
    x, y, full, height = box
    total, parts = sum(who.values()), []
    for layer in layers:
        count = who.get(layer, 0)
        if not count:
            continue
        width = full * count / total
        said = "answered" if layer == NOBODY else f"refused by {layer}"
        hint = f"{about}: {count} of {total} {said}"
        parts.append(block(x, y, max(0.5, width - 1), height, shade(layer, layers), hint))
        if width > 18:
            class_ = f"count on-{'pale' if layer == NOBODY else shade(layer, layers)}"
            parts.append(text(x + width / 2, y + height - 3, str(count), class_, "middle"))
        x += width
    return join(*parts)


# ---- cost ----


def cost_bars(
    costs: Sequence[Cost], labels: Mapping[str, str], layers: Sequence[str], width: float = 1040
) -> Markup:
    """One bar per variant: mean milliseconds of an answer, by layer, the 95th percentile as a tick; tokens beside it."""
    left, right, step = 136.0, 230.0, 25.0
    full = width - left - right
    most = max((max(c.p95_ms, c.mean_ms, sum(c.layer_ms.values())) for c in costs), default=0.0) or 1.0
    heads = [
        text(left, 12, "0 ms", "tick"),
        text(left + full, 12, f"{most:.3g} ms", "tick", "end"),
        text(width - 118, 12, "tokens read", "tick", "end"),
        text(width, 12, "tokens written", "tick", "end"),
    ]
    levels = [22 + n * step for n in range(len(costs))]
    return pinned(
        width,
        22 + len(costs) * step,
        left,
        [name(0, y + 12, labels[c.variant], left - 10, "head") for y, c in zip(levels, costs)],
        [
            *heads,
            *(
                _cost_bar(c, labels[c.variant], layers, (left, y, full / most, width))
                for y, c in zip(levels, costs)
            ),
        ],
        "Milliseconds and tokens of an answer, by variant and layer",
    )


def _cost_bar(
    found: Cost,
    label: str,
    layers: Sequence[str],
    place: tuple[float, float, float, float],
    bar: float = 15.0,
) -> Markup:
    """A bar of milliseconds by layer at (x, y), so many pixels a millisecond, and its tokens at the right end."""
    left, y, each_ms, end = place
    parts, x = list[Markup](), left
    for layer in layers:
        ms = found.layer_ms.get(layer, 0.0)
        hint = f"{label}: {layer} {number(ms)} ms"
        parts.append(block(x, y, each_ms * ms, bar, shade(layer, layers), hint))
        x += each_ms * ms
    if not found.layer_ms:
        parts.append(block(x, y, each_ms * found.mean_ms, bar, "s0"))
        x += each_ms * found.mean_ms
    at = left + each_ms * found.p95_ms
    slow = el("title", f"95 of 100 answers took at most {found.p95_ms:.3g} ms")
    return join(
        *parts,
        el("g", slow, line(at, y - 2, at, y + bar + 2, "p95")),
        text(max(x, at) + 6, y + 12, f"{found.mean_ms:.3g} ms", "name"),
        text(end - 118, y + 12, number(found.prompt_tokens, 0), "name", "end"),
        text(end, y + 12, number(found.completion_tokens, 1), "name", "end"),
    )


# ---- training ----


def losses(curve: Curve, width: float = 330, height: float = 190) -> Markup:
    """The loss of one stage over its optimizer steps, on held-out rows too where they were scored."""
    lines = {name: line_ for name, line_ in curve.lines.items() if "loss" in name and line_}
    if not lines:
        return svg(width, 40, text(0, 20, "no loss was recorded", "hint"), label="no loss was recorded")
    left, top, wide, high = 40.0, 10.0, width - 48.0, height - 44.0
    last = max(x for line_ in lines.values() for x, _ in line_) or 1.0
    values = [v for line_ in lines.values() for _, v in line_]
    low, top_value = min(values), max(values)
    if top_value <= low:
        top_value = low + 1
    if 0 < low < 0.6 * top_value:
        low = 0.0

    def place(x: float, v: float) -> str:
        return f"{left + wide * x / last:.1f},{top + high * (1 - (v - low) / (top_value - low)):.1f}"

    drawn = [
        el(
            "polyline",
            points=" ".join(place(x, v) for x, v in line_),
            class_="loss" if name == "loss" else "loss held",
        )
        for name, line_ in lines.items()
    ]
    levels = [(top + high * (1 - share), f"{low + share * (top_value - low):.3g}") for share in (0, 0.5, 1)]
    ticks = [
        join(line(left, y, left + wide, y, "rule"), text(left - 6, y + 4, label, "tick", "end"))
        for y, label in levels
    ]
    return svg(
        width,
        height,
        *ticks,
        *drawn,
        text(left, height - 16, "0", "tick"),
        text(left + wide, height - 16, plural(round(last), "step"), "tick", "end"),
        label=f"Loss of stage {curve.name}",
    )


def panel(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    apart: bool,
    label: str,
    width: float = 330,
    height: float = 190,
) -> Markup:
    """Lines over iterations on one scale; `apart`: the first has its scale at the left, the second at the right."""
    left, top, wide, high = 46.0, 10.0, width - 54.0 - 38.0 * apart, height - 44.0
    last = max(x for points_ in lines.values() for x, _ in points_) or 1.0
    together = [y for points_ in lines.values() for _, y in points_]
    scales = {name: _ends([y for _, y in points_] if apart else together) for name, points_ in lines.items()}

    def place(x: float, y: float, scale: tuple[float, float]) -> str:
        share = (y - scale[0]) / (scale[1] - scale[0])
        return f"{left + wide * x / last:.1f},{top + high * (1 - share):.1f}"

    drawn = [
        el(
            "g",
            el("title", f"{name}: {points_[-1][1]:.4g} at the end"),
            el(
                "polyline",
                points=" ".join(place(x, y, scales[name]) for x, y in points_),
                class_=f"line c{n % 6}",
            ),
        )
        for n, (name, points_) in enumerate(lines.items())
    ]
    ticks = [line(left, top + high * share, left + wide, top + high * share, "rule") for share in (0, 0.5, 1)]
    sides = [(left - 6, "end"), (left + wide + 6, "start")] if apart else [(left - 6, "end")]
    for (x, anchor), (low, most) in zip(sides, scales.values()):
        ticks += [
            text(x, top + high * (1 - share) + 4, _tick(low + share * (most - low)), "tick", anchor)
            for share in (0, 0.5, 1)
        ]
    return svg(
        width,
        height,
        *ticks,
        *drawn,
        text(left, height - 16, "0", "tick"),
        text(left + wide, height - 16, plural(round(last), "iteration"), "tick", "end"),
        label=label,
    )


def roc(
    curves: Mapping[str, Sequence[tuple[float, float, str]]],
    label: str,
    width: float = 330,
    height: float = 300,
) -> Markup:
    """Share found against share of false positives, from 0 to 1, with a point at each threshold; the diagonal is chance."""
    left, top, wide, high = 46.0, 10.0, width - 62.0, height - 56.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * x, top + high * (1 - y)

    drawn = list[Markup]()
    for n, points_ in enumerate(curves.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(a, b) for a, b, _ in points_))
        drawn.append(el("polyline", points=path, class_=f"line c{n % 6}"))
        for a, b, words in points_:
            x, y = place(a, b)
            about = f"threshold {words}: found {percent(b, 1)}%, false positives {percent(a, 1)}%"
            if words:
                drawn.append(block(x - 3, y - 3, 6, 6, f"dot c{n % 6}", about))
    rules = [line(*place(0, share), *place(1, share), "rule") for share in (0, 0.5, 1)]
    ticks = [text(left - 6, place(0, share)[1] + 4, percent(share), "tick", "end") for share in (0, 0.5, 1)]
    ticks += [
        text(place(share, 0)[0], top + high + 16, percent(share), "tick", "middle") for share in (0, 0.5, 1)
    ]
    chance = line(*place(0, 0), *place(1, 1), "rule")
    words = text(left + wide / 2, height - 12, "false positives, %; left scale: found, %", "tick", "middle")
    return svg(width, height, *rules, chance, *ticks, *drawn, words, label=label)


def _tick(value: float) -> str:
    """A number beside a scale: three digits, small ones as a power of ten."""
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a scale: lowest and highest value; one value stands in the middle."""
    low, most = min(values), max(values)
    if most - low < 1e-9 * max(1.0, abs(most)):
        return low - 0.5, most + 0.5
    return (0.0, most) if 0 < low < 0.6 * most else (low, most)


def tax_curve(family: TaxFamily, width: float = 430, height: float = 310) -> Markup:
    """Gain on the target and change elsewhere over the KL from the start (or the place in the family), with intervals."""
    shown = [p for p in family.points if p.target.value is not None]
    moved = all(p.divergence is not None for p in shown)
    places = [max(0.0, p.divergence.value) if moved and p.divergence else p.at for p in shown]
    ends = [e for p in shown for c in (p.target, p.rest) for e in (c.low, c.high, c.value) if e is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span, most = (high - low) or 1.0, max(places) or 1.0
    left, top, wide, tall = 52.0, 14.0, width - 72.0, height - 66.0

    def x(value: float) -> float:
        return left + wide * value / most

    def y(value: float) -> float:
        return top + tall * (high - value) / span

    drawn = [line(left, y(v), left + wide, y(v), "rule") for v in (low, 0.0, high)]
    apart = [v for v in (low, high) if abs(y(v) - y(0)) > 12]
    drawn += [text(left - 6, y(v) + 4, points(v), "tick", "end") for v in (0.0, *apart)]
    for name, class_ in (("target", "loss"), ("rest", "loss held")):
        ordered = sorted(zip(places, shown), key=lambda pair: pair[0])
        changes = [(place, getattr(p, name), p.label) for place, p in ordered]
        path = " ".join(f"{x(place):.1f},{y(change.value):.1f}" for place, change, _ in changes)
        drawn.append(el("polyline", points=path, class_=class_))
        for place, change, label in changes:
            if change.low is not None and change.high is not None:
                drawn.append(line(x(place), y(change.low), x(place), y(change.high), class_))
            hint = f"{label}: {name} {100 * change.value:+.1f} points"
            drawn.append(block(x(place) - 2.5, y(change.value) - 2.5, 5, 5, class_, hint))
    scale = "KL from the start, nats an answer" if moved else "place in the family"
    drawn += [
        text(left, height - 36, "0", "tick"),
        text(left + wide, height - 36, f"{most:.2g}", "tick", "end"),
        text(left + wide / 2, height - 36, scale, "tick", "middle"),
    ]
    drawn.append(text(0, height - 10, "points; blue: the target, orange: everything else", "hint"))
    return svg(width, height, *drawn, label=f"Gain and tax of {family.name}")


# ---- shares of an attribution ----

LEFT, TOP, ROW, BAR, RIGHT = 136.0, 30.0, 34.0, 18.0, 160.0


def waterfall(effects: Sequence[Effect], base: float, width: float = 1040) -> Markup:
    """Bars end to end from the base's mean to the whole's; whiskers: the interval of each share, drawn around its bar's end."""
    ends = [base]
    for e in effects:
        ends.append(ends[-1] + e.value)
    bounds = [start + b for start, e in zip(ends, effects) for b in (e.low, e.high) if b is not None]
    low, high = min(0.0, *ends, *bounds), max(*ends, *bounds, 0.25)
    bottom = TOP + ROW * (len(effects) + 2)

    def x(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (value - low) / (high - low)

    ticks = [v / 4 for v in range(int(low * 4) - (low < 0), int(high * 4) + 1)]
    grid = [
        el(
            "g",
            line(x(v), TOP, x(v), bottom, "rule"),
            text(x(v), TOP - 10, f"{number(100 * v, 0)}%", "tick", "middle"),
        )
        for v in ticks
        if low <= v <= high
    ]
    names = ["base", *(e.name for e in effects), "whole"]
    bars = [
        _whole(base, x, 0),
        *(_bar(e, ends[n], x, n + 1) for n, e in enumerate(effects)),
        _whole(ends[-1], x, len(effects) + 1),
    ]
    return pinned(
        width,
        bottom + 6,
        LEFT,
        [
            name(
                0, TOP + ROW * (n + 0.5) + 4, words, LEFT - 10, f"axis{' head' * (n in (0, len(names) - 1))}"
            )
            for n, words in enumerate(names)
        ],
        [*grid, *bars],
        "From the base to the whole: what each layer adds, with its interval",
    )


def _whole(value: float, x: Scale, row: int) -> Markup:
    y = TOP + ROW * (row + 0.5)
    return el(
        "g",
        block(min(x(0), x(value)), y - BAR / 2, max(1.0, abs(x(value) - x(0))), BAR, "s5"),
        text(max(x(0), x(value)) + 8, y + 4, f"{number(100 * value, 0)}%", "name halo"),
    )


def _bar(e: Effect, start: float, x: Scale, row: int) -> Markup:
    """A layer's share; blue or red only where it is shown, pale where its interval or the corrected test covers zero."""
    y, end = TOP + ROW * (row + 0.5), start + e.value
    tone = "s-answered"
    if e.shown:
        tone = "s0" if e.value > 0 else "s1"
    bounds = "" if e.low is None else f" ({interval(e.low, e.high)})"
    told = f"{points(e.value, 1)}{bounds}"
    whisker = (
        None if e.low is None or e.high is None else line(x(start + e.low), y, x(start + e.high), y, "zero")
    )
    furthest = max(start, end, start + (e.high or 0.0))
    return el(
        "g",
        el("title", f"{e.name}: {told} points"),
        block(min(x(start), x(end)), y - BAR / 2, max(1.0, abs(x(end) - x(start))), BAR, tone),
        whisker,
        text(x(furthest) + 8, y + 4, told, "name halo"),
    )


FIGURES: Mapping[str, Callable[..., Markup]] = {
    "forest": forest,
    "refusal_plane": refusal_plane,
    "who_refused": who_refused,
    "cost_bars": cost_bars,
    "losses": losses,
    "panel": panel,
    "roc": roc,
    "waterfall": waterfall,
    "tax_curve": tax_curve,
}
