"""Section of the page: which change repairs what fails, what it breaks, and which layer that accuses.

In: the JSON of results/NAME.diagnosis.json, as plain dictionaries. Out: markup. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.markup import Html, el, join
from demeanor.report.parts import fold, lead, note, section, table, wide
from demeanor.report.words import axis_name, p_value

COLUMNS = (
    "",
    "implicates",
    "fixed",
    "share",
    "regressed",
    "net, points",
    "p",
    "tokens read",
    "written",
    "ms",
)


def diagnosis(found: Mapping[str, Any]) -> Html:
    """The recommendation, a row per intervention, and the items that each repaired or broke behind a fold."""
    repairs = sorted(found["repairs"], key=lambda r: -(r["net"] or 0.0))
    suspect = (
        "no layer is implicated"
        if found["suspect"] == "none"
        else join("suspect: ", el("b", found["suspect"]))
    )
    honest = found["honest"]
    flattered = (
        ""
        if honest is None
        else (
            f" The best of {len(repairs)} repairs {honest['naive']:.0%} of the items it was picked on; picked on one half of the clusters and "
            f"estimated on the other, {_share(honest['value'], honest['low'], honest['high'])}."
        )
    )
    return section(
        "diagnosis",
        "What repairs it",
        lead(
            f"{found['failing']} failing items of {found['scope']}, and {found['controls']} controls that stand for {found['passing']} "
            f"which pass, were answered again under {len(repairs)} changes of one thing each, judged {found['judged']}."
        ),
        el("p", found["recommendation"], " (", suspect, ")"),
        note(
            f"{', '.join(f'{share:.0%} of the rows: {right:.0%} right' for share, right in found['curve'])}. {found['learnt']}"
        )
        if found.get("learnt")
        else None,
        wide(table(COLUMNS, [_row(r) for r in repairs], class_="small")),
        note(
            "Net: the change of all items, controls weighed up to what they stand for; in bold where its interval lies above zero and "
            f"the p after Holm agrees. Tokens and ms: change per answer.{flattered}"
        ),
        el("ul", *helped) if (helped := _axes(repairs)) else None,
        fold(
            "Items fixed and regressed",
            wide(
                table(
                    ("", "fixed", "regressed"),
                    [
                        [r["name"], ", ".join(r["fixed_ids"]) or "–", ", ".join(r["regressed_ids"]) or "–"]
                        for r in repairs
                    ],
                    class_="small",
                )
            ),
        ),
    )


def _axes(repairs: Sequence[Mapping[str, Any]]) -> list[Html]:
    """The axes that an intervention is shown to help without making the whole worse."""
    return [
        el(
            "li",
            el("b", f"{r['name']} on {axis_name(a['axis'])}"),
            f": fixes {a['fixed']} of {a['failing']} failing items, "
            f"breaks {a['regressed']} of {a['controls']}, net {_share(a['net'], a['net_low'], a['net_high'])}.",
        )
        for r in repairs
        if (r["net"] or 0.0) > 0
        for a in r["axes"]
        if a["shown"]
    ]


def _row(r: Mapping[str, Any]) -> list[Any]:
    return [
        r["name"],
        r["layer"] or "–",
        f"{r['fixed']}/{r['failing']}",
        _share(r["rate"], r["rate_low"], r["rate_high"]),
        f"{r['regressed']}/{r['controls']}",
        _net(r),
        p_value(r["p_corrected"]),
        *(
            "–" if r[cost] is None else f"{r[cost]:+.0f}"
            for cost in ("prompt_tokens", "completion_tokens", "ms")
        ),
    ]


def _share(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" + ("" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})")


def _net(r: Mapping[str, Any]) -> Html | str:
    if r["net"] is None:
        return "–"
    value = f"{100 * r['net']:+.1f}"
    bounds = "" if r["net_low"] is None else f" {100 * r['net_low']:+.1f} to {100 * r['net_high']:+.1f}"
    return el("span", el("b", value) if r["shown"] else value, el("span", bounds, class_="soft"))


def markdown(found: Mapping[str, Any]) -> str:
    """The recommendation and a row per intervention as Markdown."""
    head = ["", "implicates", "fixed", "regressed", "net, points", "p"]
    rows = [
        [
            r["name"].replace("|", "/"),
            r["layer"] or "-",
            f"{r['fixed']}/{r['failing']}",
            f"{r['regressed']}/{r['controls']}",
            _points(r),
            p_value(r["p_corrected"]),
        ]
        for r in sorted(found["repairs"], key=lambda r: -(r["net"] or 0.0))
    ]
    told = f"{found['recommendation']} Suspect: {found['suspect']}. {found['failing']} failing items, {found['controls']} controls."
    return f"## What repairs it\n\n{told}\n\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]
    )


def _points(r: Mapping[str, Any]) -> str:
    if r["net"] is None:
        return "-"
    bounds = "" if r["net_low"] is None else f" ({100 * r['net_low']:+.1f} to {100 * r['net_high']:+.1f})"
    return f"{100 * r['net']:+.1f}{bounds}"
