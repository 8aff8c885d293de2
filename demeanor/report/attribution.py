"""Section of the page: the difference between the base and the whole, split among the layers.

In: the JSON of results/NAME.attribution.json, as plain dictionaries. Out: markup. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.markup import Html, el
from demeanor.report.parts import fold, lead, note, section, table, wide
from demeanor.report.shares import waterfall
from demeanor.report.words import axis_name, plural

TITLES = {
    "shapley": "Shapley, in the order of training",
    "waterfall": "each added to those before it",
    "leave_one_out": "the whole minus the whole without it",
}
VIEWS = (
    ("waterfall", "Each layer added to those before it"),
    ("leave_one_out", "The whole minus the whole without the layer"),
    ("interactions", "Pairwise interactions: both together minus each alone"),
)


def attribution(found: Mapping[str, Any]) -> Html:
    """Axes down, players across: Shapley values with their intervals; the other views and the items that moved behind folds."""
    asked, reused, confirmed = found["asked"], found["reused"], found.get("confirmed", 0)
    made = (
        ""
        if found["generations"] is None
        else (
            f" {found['generations']} generations were made for {asked - reused} answers"
            f"{f', {reused} more had been measured before' if reused else ''}: cells whose weights read the same share them"
            f"{f', and {confirmed} were only checked word by word against an earlier answer of the same weights' if confirmed else ''}."
        )
    )
    sums = {e["axis"]: f"{100 * e['value']:+.1f}" for e in found["total"]}
    return section(
        "attribution",
        "Which layer did it",
        lead(
            f"{plural(len(found['cells']), 'combination')} of weights and layers answered the same {found['items']} items. A layer’s "
            "share is what it adds on average over every order in which the layers could have come, weights in the order of "
            f"training; the shares of a row sum to the whole minus the base.{made}"
        ),
        _picture(found),
        wide(_table(found["shapley"], sums)),
        note(
            "In bold: the 95% interval, over resampled clusters, excludes zero, and so does the test after correction (Holm over the "
            "shares; Benjamini-Hochberg in the tables below)."
        ),
        *(
            [
                note(
                    f"{found['design'][:1].upper()}{found['design'][1:]}. "
                    + (
                        f"Cannot be told apart: {'; '.join(found['aliases'])}. "
                        if found.get("aliases")
                        else ""
                    )
                    + (
                        "No layer is implicated: the whole without it is not better."
                        if found["suspect"] == "none"
                        else f"Suspect: {found['suspect']}; the whole is shown to be better without it."
                    )
                )
            ]
            if found.get("design")
            else []
        ),
        *(fold(title, wide(_table(found[view]))) for view, title in VIEWS if found[view]),
        fold("Items that moved", _moved(found["changed"])),
    )


def _table(effects: Sequence[Mapping[str, Any]], sums: Mapping[str, str] | None = None) -> Html:
    by = {(e["name"], e["axis"]): e for e in effects}
    players = list(dict.fromkeys(name for name, _ in by))
    rows = [
        [axis_name(axis), *(_cell(by[name, axis]) for name in players), *([sums[axis]] if sums else [])]
        for axis in dict.fromkeys(axis for _, axis in by)
    ]
    return table(["points", *players, *(["sum"] if sums else [])], rows, class_="small")


def _cell(effect: Mapping[str, Any]) -> Html:
    value = f"{100 * effect['value']:+.1f}"
    interval = (
        "no interval"
        if effect["low"] is None
        else f"{100 * effect['low']:+.0f} to {100 * effect['high']:+.0f}"
    )
    return el("span", el("b", value) if effect["shown"] else value, el("span", f" {interval}", class_="soft"))


def _moved(moved: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [
            m["name"],
            axis_name(axis),
            ", ".join(m["fixed"].get(axis, ())) or "–",
            ", ".join(m["regressed"].get(axis, ())) or "–",
        ]
        for m in moved
        for axis in sorted({*m["fixed"], *m["regressed"]})
    ]
    return wide(table(["layer", "axis", "made right", "made wrong"], rows, class_="small"))


def _picture(found: Mapping[str, Any]) -> Html | None:
    """The way from the base to the whole over all items; None where the base was not measured alone."""
    whole = next((e["axis"] for e in found["total"]), None)
    base = found["cells"].get(next(iter(found["cells"]), ""), {}).get(whole)
    effects = [e for e in found["shapley"] if e["axis"] == whole]
    if base is None or not effects:
        return None
    return el(
        "figure",
        wide(waterfall(effects, base)),
        el(
            "figcaption",
            f"Share right of {'all items' if whole == 'all' else axis_name(str(whole))}, from the bare base to the "
            "whole: each bar is a layer’s share, the line its 95% interval; pale where no effect is shown.",
        ),
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The Shapley values and the whole minus each layer as Markdown, with their intervals."""
    parts = [
        "## Which layer did it",
        f"{plural(len(found['cells']), 'combination')} of weights and layers on {found['items']} items. "
        f"Suspect: {found['suspect']}. Bold: the interval excludes zero, and the corrected test agrees.",
    ]
    for view in ("shapley", "leave_one_out"):
        effects = found[view]
        if not effects:
            continue
        players = list(dict.fromkeys(e["name"] for e in effects))
        by = {(e["name"], e["axis"]): e for e in effects}
        head = [TITLES[view], *players]
        rows = [
            [axis_name(axis), *(_plain(by[p, axis]) for p in players)]
            for axis in dict.fromkeys(e["axis"] for e in effects)
        ]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]))
    return "\n\n".join(parts)


def _plain(e: Mapping[str, Any]) -> str:
    bounds = (
        "" if e["low"] is None or e["high"] is None else f" ({100 * e['low']:+.0f} to {100 * e['high']:+.0f})"
    )
    value = f"{100 * e['value']:+.1f}"
    return f"{f'**{value}**' if e['shown'] else value}{bounds}"
