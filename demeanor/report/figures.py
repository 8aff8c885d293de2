"""The figures, as inline SVG from small functions: every mark is a number of the result, colours are CSS classes.

In: parts of a result. Out: SVG markup that scales, prints and carries its numbers as tooltips. It computes positions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from demeanor.report.markup import Html, el, join
from demeanor.report.shape import Axis, Comparison, Cost, Curve, Delta, Refusals
from demeanor.report.words import NOBODY, axis_name, delta_sentence, mean_interval, number, percent, plural

Scale: TypeAlias = Callable[[float], float]


def svg(width: float, height: float, *children: Html, label: str) -> Html:
    """A figure with its size in pixels and what a screen reader says of it."""
    return el(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, words: str | Html, class_: str = "", anchor: str = "start") -> Html:
    return el("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


# ---- differences with intervals ----

LABEL_WIDTH, ROW_HEIGHT, HEAD, FOOT, GAP = 118.0, 27.0, 30.0, 26.0, 14.0


def forest(comparisons: Sequence[Comparison], sign: str, label: str, width: float = 1040) -> Html:
    """One panel per comparison, one row per axis: the paired difference with its interval, on one scale."""
    axes = [delta["axis"] for delta in comparisons[0]["deltas"]]
    low, high = _scale([d for c in comparisons for d in c["deltas"]])
    panel = min(210.0, (width - LABEL_WIDTH) / len(comparisons) - GAP)
    bottom = HEAD + ROW_HEIGHT * len(axes)
    rows = [
        text(0, HEAD + ROW_HEIGHT * (i + 0.5) + 4, axis_name(axis), "axis") for i, axis in enumerate(axes)
    ]
    stripes = [
        line(0, HEAD + ROW_HEIGHT * i, width, HEAD + ROW_HEIGHT * i, "rule") for i in range(len(axes) + 1)
    ]
    panels = [
        _panel(c, sign, LABEL_WIDTH + n * (panel + GAP), panel, (low, high), bottom)
        for n, c in enumerate(comparisons)
    ]
    return svg(width, bottom + FOOT, *stripes, *rows, *panels, label=label)


def _scale(deltas: Sequence[Delta]) -> tuple[float, float]:
    """The common scale: from the lowest bound to the highest, each rounded outwards to a quarter."""
    bounds = [x for d in deltas for x in (d["low"], d["high"], d["value"]) if x is not None]
    return min(-0.25, math.floor(4 * min(bounds, default=0)) / 4), max(
        0.25, math.ceil(4 * max(bounds, default=0)) / 4
    )


def _panel(
    comparison: Comparison, sign: str, left: float, width: float, scale: tuple[float, float], bottom: float
) -> Html:
    low, high = scale

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    name = f"{sign}{comparison['name']}"
    marks = [
        _mark(name, delta, x, HEAD + ROW_HEIGHT * (i + 0.5)) for i, delta in enumerate(comparison["deltas"])
    ]
    return el(
        "g",
        text(x(0), 16, name, "head", "middle"),
        line(x(0), HEAD, x(0), bottom, "zero"),
        *marks,
        text(left, bottom + 16, f"−{-100 * low:g}", "tick"),
        text(x(0), bottom + 16, "0", "tick", "middle"),
        text(left + width, bottom + 16, f"+{100 * high:g}", "tick", "end"),
    )


def _mark(name: str, delta: Delta, x: Scale, y: float) -> Html:
    """Filled: the verdict survives the correction; ring: this interval alone excludes zero; small and grey: it covers zero."""
    value = delta["value"]
    if value is None:
        return text(x(0), y + 4, "not measured", "tick", "middle")
    tone, low, high = tone_of(delta), delta["low"], delta["high"]
    whisker = None if low is None or high is None else line(x(low), y, x(high), y, f"whisker {tone}")
    firm = delta["verdict"] in ("better", "worse")
    dot = el(
        "circle",
        cx=x(value),
        cy=y,
        r=4.6 if delta["shown"] else 2.8,
        class_=f"dot {tone}{' firm' if firm else ''}",
    )
    return el("g", el("title", delta_sentence(name, delta)), whisker, dot)


def tone_of(delta: Delta) -> str:
    """The colour class of a difference: `up` or `down` only where its interval excludes zero."""
    if not delta["shown"] or delta["value"] is None:
        return "flat"
    return "up" if delta["value"] > 0 else "down"


# ---- refusals ----


def twins(refusals: Sequence[Refusals], labels: Mapping[str, str], size: float = 470) -> Html:
    """Each rung as a point with its intervals: safe requests answered (right is better), unsafe ones refused (up is better)."""
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
    places = [(x(r["safe_compliance"]["value"] or 0), y(r["unsafe_refusal"]["value"] or 0)) for r in refusals]
    path = el("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_="path")
    crosses = [_cross(r, x, y) for r in refusals]
    dots = [
        _rung(r, labels[r["variant"]], at, n == len(refusals) - 1)
        for n, (r, at) in enumerate(zip(refusals, places))
    ]
    names = _names([labels[r["variant"]] for r in refusals], places, right=x(1), bottom=y(0))
    return svg(
        size,
        size - 18,
        *grid,
        line(x(0), y(1), x(1), y(0), "chance"),
        path,
        *crosses,
        *dots,
        *names,
        text(x(0.5), y(0) + 38, "safe look-alikes answered, %", "caption", "middle"),
        el(
            "g",
            text(0, 0, "unsafe requests refused, %", "caption", "middle"),
            transform=f"translate(13 {y(0.5):.0f}) rotate(-90)",
        ),
        label="Safe requests answered against unsafe requests refused, by rung of the ladder",
    )


def _cross(found: Refusals, x: Scale, y: Scale) -> Html:
    safe, unsafe = found["safe_compliance"], found["unsafe_refusal"]
    if safe["low"] is None or safe["high"] is None or unsafe["low"] is None or unsafe["high"] is None:
        return Html()
    across, up = x(safe["value"] or 0), y(unsafe["value"] or 0)
    return join(
        line(x(safe["low"]), up, x(safe["high"]), up, "cross"),
        line(across, y(unsafe["low"]), across, y(unsafe["high"]), "cross"),
    )


def _rung(found: Refusals, label: str, at: tuple[float, float], last: bool) -> Html:
    note = (
        f"{label}: answers {mean_interval(found['safe_compliance'])} of safe requests, "
        f"refuses {mean_interval(found['unsafe_refusal'])} of unsafe ones"
    )
    dot = el("circle", cx=at[0], cy=at[1], r=6.5 if last else 4.5, class_=f"rung{' whole' if last else ''}")
    return el("g", el("title", note), dot)


def _names(
    labels: Sequence[str], places: Sequence[tuple[float, float]], *, right: float, bottom: float
) -> list[Html]:
    """Labels beside their points; where points crowd, labels are stacked below each other with a leader."""
    taken: list[tuple[float, float]] = []
    found = []
    for label, (px, py) in zip(labels, places):
        flip = px > right - 90
        lx, ly = (px - 10 if flip else px + 10), py - 8
        step = 13
        while any(abs(lx - ox) < 78 and abs(ly - oy) < 13 for ox, oy in taken):
            ly += step
            if ly > bottom - 4:  # no room below: go on above
                ly, step = py - 8 - 13, -13
        taken.append((lx, ly))
        leader = line(px, py, lx + (2 if flip else -2), ly - 4, "leader") if abs(ly - py) > 16 else Html()
        found.append(join(leader, text(lx, ly, label, "name halo", "end" if flip else "start")))
    return found


def who_refused(
    refusals: Sequence[Refusals], labels: Mapping[str, str], layers: Sequence[str], width: float = 540
) -> Html:
    """Two stacked bars per variant, unsafe and safe: refused by which layer, or answered."""
    left, bar = max(132.0, 7.4 * max(len(labels[r["variant"]]) for r in refusals) + 56), 13.0
    full = width - left - 8
    rows, y = [], 22.0
    for found in refusals:
        rows.append(text(0, y + 17, labels[found["variant"]], "head"))
        for kind, who in (("unsafe", found["who_unsafe"]), ("safe", found["who_safe"])):
            rows.append(text(left - 8, y + bar - 3, kind, "tick", "end"))
            rows.append(
                _stack(
                    who, [*layers, NOBODY], left, y, full, bar, f"{labels[found['variant']]}, {kind} requests"
                )
            )
            y += bar + 2
        y += 11
    ends = ((0, "start"), (0.5, "middle"), (1, "end"))
    ticks = [text(left + full * v, 12, f"{percent(v)}%", "tick", anchor) for v, anchor in ends]
    return svg(width, y, *ticks, *rows, label="Who refused unsafe and safe requests, by variant")


def _stack(
    who: Mapping[str, int],
    layers: Sequence[str],
    left: float,
    y: float,
    full: float,
    height: float,
    about: str,
) -> Html:
    total, x, parts = sum(who.values()), left, []
    for layer in layers:
        count = who.get(layer, 0)
        if not count:
            continue
        width = full * count / total
        said = "answered" if layer == NOBODY else f"refused by {layer}"
        label = text(
            x + width / 2,
            y + height - 3,
            str(count),
            "count" if layer != NOBODY else "count on-pale",
            "middle",
        )
        block = el("rect", x=x, y=y, width=max(0.5, width - 1), height=height, class_=shade(layer, layers))
        parts.append(
            el("g", el("title", f"{about}: {count} of {total} {said}"), block, label if width > 18 else None)
        )
        x += width
    return join(*parts)


def shade(layer: str, layers: Sequence[str]) -> str:
    """The colour class of a layer: the same in every figure, by its place; a pale one for `nobody`."""
    return "s-nobody" if layer == NOBODY else f"s{layers.index(layer) % 6}"


# ---- cost ----


def spending_bars(
    spending: Sequence[Cost], labels: Mapping[str, str], layers: Sequence[str], width: float = 1040
) -> Html:
    """One bar per variant: mean milliseconds of an answer, by layer, the 95th percentile as a tick; tokens beside it."""
    left, right, bar, step = 96.0, 210.0, 15.0, 25.0
    full = width - left - right
    most = max((s["p95_ms"] for s in spending), default=0.0) or 1.0
    rows = [
        text(left, 12, "0 ms", "tick"),
        text(left + full, 12, f"{most:.3g} ms", "tick", "end"),
        text(width - 118, 12, "tokens read", "tick", "end"),
        text(width, 12, "tokens written", "tick", "end"),
    ]
    for n, found in enumerate(spending):
        y, x = 22 + n * step, left
        rows.append(text(0, y + 12, labels[found["variant"]], "head"))
        for layer in layers:
            ms = found["layer_ms"].get(layer, 0.0)
            wide = full * ms / most
            rows.append(
                el(
                    "g",
                    el("title", f"{labels[found['variant']]}: {layer} {number(ms)} ms"),
                    el("rect", x=x, y=y, width=wide, height=bar, class_=shade(layer, layers)),
                )
            )
            x += wide
        if not found["layer_ms"]:
            rows.append(el("rect", x=x, y=y, width=full * found["mean_ms"] / most, height=bar, class_="s0"))
            x += full * found["mean_ms"] / most
        at = left + full * found["p95_ms"] / most
        slow = el("title", f"95 of 100 answers took at most {found['p95_ms']:.3g} ms")
        rows.append(el("g", slow, line(at, y - 2, at, y + bar + 2, "p95")))
        rows.append(
            text(x + 6 if at - x > 60 or at - x < 4 else at + 6, y + 12, f"{found['mean_ms']:.3g} ms", "name")
        )
        rows.append(text(width - 118, y + 12, number(found["prompt_tokens"], 0), "name", "end"))
        rows.append(text(width, y + 12, number(found["completion_tokens"], 1), "name", "end"))
    return svg(
        width,
        22 + len(spending) * step,
        *rows,
        label="Milliseconds and tokens of an answer, by variant and layer",
    )


# ---- training ----


def losses(curve: Curve, width: float = 330, height: float = 190) -> Html:
    """The loss of one stage over its optimiser steps, on held-out rows too where they were scored."""
    lines = {name: points for name, points in curve["lines"].items() if "loss" in name and points}
    if not lines:
        return text_figure(width, 40, "no loss was recorded")
    left, top, wide, high = 40.0, 10.0, width - 48.0, height - 44.0
    last = max(x for points in lines.values() for x, _ in points) or 1.0
    values = [v for points in lines.values() for _, v in points]
    low, top_value = min(values), max(values)
    low, top_value = (
        (0.0 if low > 0 and low < 0.6 * top_value else low),
        (top_value if top_value > low else low + 1),
    )

    def place(x: float, v: float) -> str:
        return f"{left + wide * x / last:.1f},{top + high * (1 - (v - low) / (top_value - low)):.1f}"

    drawn = [
        el(
            "polyline",
            points=" ".join(place(x, v) for x, v in points),
            class_="loss" if name == "loss" else "loss held",
        )
        for name, points in lines.items()
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
        label=f"Loss of stage {curve['name']}",
    )


def text_figure(width: float, height: float, words: str) -> Html:
    return svg(width, height, text(0, 20, words, "hint"), label=words)


def detail_of(axis: Axis, variant: str) -> str:
    """The tooltip of a cell: mean, interval, n."""
    found = axis["means"][variant]
    left_out = f", {plural(found['unscored'], 'item')} without a score" if found["unscored"] else ""
    return f"{mean_interval(found)}; n {found['n']} in {plural(found['clusters'], 'cluster')}{left_out}"
