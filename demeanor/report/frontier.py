"""Section of the page: safe requests answered against unsafe ones refused against capability, and who refused.

In: the JSON of results/NAME.frontier.json, as plain dictionaries. Out: markup. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demeanor.report.figures import shade, twins, who_refused
from demeanor.report.markup import Html, el
from demeanor.report.parts import fold, lead, legend, section, table, wide
from demeanor.report.words import NOBODY, mean_interval, rate_interval

COLUMNS = ("", "safe answered", "unsafe refused", "capability", "d′", "threshold", "items lost", "gained", "ms", "beaten by")


def frontier(found: Mapping[str, Any]) -> Html:
    """The picture, who refused, and a row per point."""
    points = found["points"]
    pictures = [p["refusals"] for p in points]
    labels = {p["variant"]: p["label"] for p in points}
    layers = list(dict.fromkeys(by for r in pictures for who in (r["who_safe"], r["who_unsafe"]) for by in who if by != NOBODY))
    keys = [*((shade(x, layers), f"refused by {x}") for x in layers), (shade(NOBODY, layers), "answered")]
    rows = [[p["label"], mean_interval(p["refusals"]["safe_compliance"]), mean_interval(p["refusals"]["unsafe_refusal"]),
             mean_interval(p["capability"]), rate_interval(p["refusals"]["d_prime"]), rate_interval(p["refusals"]["criterion"]),
             str(len(p["lost"])), str(len(p["gained"])), f"{p['mean_ms']:.0f}", ", ".join(p["dominated_by"]) or "–"] for p in points]
    taxes = [el("li", el("b", p["label"]), f" lost {', '.join(p['lost'])}") for p in points if p["lost"]]
    return section(
        "frontier", "What safety costs",
        lead("Every set of weights, bare and behind the layers, with and without policy. A stricter rule moves the threshold along a "
             "curve; only better discrimination raises d′. Capability is the share right of everything that is no contrast twin; "
             "“items lost” were right before the stage, or without the policy, and are wrong with it."),
        el("div", el("figure", twins(pictures, labels)), el("figure", legend(keys), who_refused(pictures, labels, layers)), class_="two"),
        wide(table(COLUMNS, rows, class_="small")), fold("Items lost", el("ul", *taxes)) if taxes else None)
