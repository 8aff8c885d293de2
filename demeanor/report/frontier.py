"""Section of the page: safe requests answered against unsafe ones refused against capability, and who refused.

In: the JSON of results/NAME.frontier.json, as plain dictionaries. Out: markup. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.figures import shade, twins, who_refused
from demeanor.report.markup import Html, el, join
from demeanor.report.parts import fold, lead, legend, section, table, wide
from demeanor.report.words import NOBODY, mean_interval, p_value, plural, rate_interval

COLUMNS = (
    "",
    "safe answered",
    "unsafe refused",
    "capability",
    "d′",
    "threshold",
    "items lost",
    "gained",
    "tokens",
    "ms",
    "beaten by",
)
THRESHOLDS = ("rule, behind", "threshold", "safe answered", "unsafe refused", "capability", "d′")
OWN = ("", "KL to parent", "per token", "calibration error", "if perfect", "p", "mean confidence", "right")


def frontier(found: Mapping[str, Any]) -> Html:
    """The picture, who refused, and a row per point."""
    points = [p for p in found["points"] if not p.get("swept")]
    swept = [p for p in found["points"] if p.get("threshold") is not None]
    pictures = [p["refusals"] for p in points]
    labels = {p["variant"]: p["label"] for p in points}
    layers = list(
        dict.fromkeys(
            by for r in pictures for who in (r["who_safe"], r["who_unsafe"]) for by in who if by != NOBODY
        )
    )
    keys = [*((shade(x, layers), f"refused by {x}") for x in layers), (shade(NOBODY, layers), "answered")]
    rows = [
        [
            p["label"],
            mean_interval(p["refusals"]["safe_compliance"]),
            mean_interval(p["refusals"]["unsafe_refusal"]),
            mean_interval(p["capability"]),
            rate_interval(p["refusals"]["d_prime"]),
            rate_interval(p["refusals"]["criterion"]),
            str(len(p["lost"])),
            str(len(p["gained"])),
            f"{p.get('mean_tokens', 0):.0f}",
            f"{p['mean_ms']:.0f}",
            ", ".join(p["dominated_by"]) or "–",
        ]
        for p in points
    ]
    taxes = [
        fold(f"{p['label']}: {plural(len(p['lost']), 'item')} right before and wrong now", _tax(p))
        for p in points
        if p["lost"]
    ]
    asked = [p for p in points if p.get("divergence") or p.get("calibration")]
    return section(
        "frontier",
        "What safety costs",
        lead(
            "Every set of weights, bare and behind the layers, with and without policy. A stricter rule moves the threshold along a "
            "curve; only better discrimination raises d′. Capability is the share right of everything that is no contrast twin; "
            "“items lost” were right before the stage, or without the policy, and are wrong with it."
        ),
        el(
            "div",
            el("figure", twins(pictures, labels)),
            el("figure", legend(keys), who_refused(pictures, labels, layers)),
            class_="two",
        ),
        wide(table(COLUMNS, rows, class_="small")),
        _thresholds(swept) if swept else None,
        join(
            lead(
                "How far the weights moved and how sure they are, with no layer around them. KL: nats per answer between a stage and its "
                "parent, from one drawn answer per item. Calibration error: how far the probability of its own answers lies from the "
                "share that is right, beside what a perfectly calibrated model would show with so few items."
            ),
            wide(table(OWN, [_own(p) for p in asked], class_="small")),
        )
        if asked
        else None,
        join(el("h3", "The tax, item by item"), *taxes) if taxes else None,
    )


def _thresholds(swept: Sequence[Mapping[str, Any]]) -> Html:
    """What each rule of cues would do at other thresholds: a picture for each set of weights, and the numbers behind a fold."""
    ranked = sorted(swept, key=lambda p: (p["rule"], p["label"].partition("@")[0], p["threshold"]))
    of: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for p in ranked:
        of.setdefault((p["rule"], p["label"].partition("@")[0]), []).append(p)
    rows = [
        [
            f"{rule}, {behind}",
            f"{p['threshold']:g}{'' if p['swept'] else ' (declared)'}",
            mean_interval(p["refusals"]["safe_compliance"]),
            mean_interval(p["refusals"]["unsafe_refusal"]),
            mean_interval(p["capability"]),
            rate_interval(p["refusals"]["d_prime"]),
        ]
        for (rule, behind), ps in of.items()
        for p in ps
    ]
    pictures = [
        el(
            "figure",
            el("h3", f"{rule}, {behind}"),
            twins([p["refusals"] for p in ps], {p["variant"]: f"{p['threshold']:g}" for p in ps}),
        )
        for (rule, behind), ps in of.items()
    ]
    return join(
        el("h3", "At other thresholds"),
        lead(
            "The same weights and layers with one rule stricter or laxer; nothing is generated anew. A threshold chosen here is "
            "chosen on these items: let another suite, or the gate, confirm it."
        ),
        el("div", *pictures, class_="three"),
        fold("The numbers", wide(table(THRESHOLDS, rows, class_="small"))),
    )


def _own(p: Mapping[str, Any]) -> list[str]:
    moved, sure = p.get("divergence"), p.get("calibration")
    kl = ["–", "–"] if moved is None else [_interval(moved), f"{moved['per_token']:.3f}"]
    if sure is None:
        return [p["label"], *kl, "–", "–", "–", "–", "–"]
    return [
        p["label"],
        *kl,
        f"{sure['ece']:.3f}",
        f"{sure['expected']:.3f} (to {sure['null_high']:.3f})",
        p_value(sure["p"]),
        f"{sure['mean_confidence']:.0%}",
        f"{sure['right']:.0%}",
    ]


def _interval(moved: Mapping[str, Any]) -> str:
    bounds = "" if moved["low"] is None else f" ({moved['low']:.2f} to {moved['high']:.2f})"
    return f"{moved['value']:.2f}{bounds}"


def _tax(p: Mapping[str, Any]) -> Html:
    rows = [
        [t["item_id"], el("span", t["question"]), el("span", t["before"]), el("span", t["now"])]
        for t in p.get("tax", ())
    ]
    return (
        wide(table(("item", "question", "before", "now"), rows, class_="small"))
        if rows
        else el("p", ", ".join(p["lost"]))
    )


def markdown(found: Mapping[str, Any]) -> str:
    """A row per point as Markdown."""
    head = [
        "",
        "safe answered",
        "unsafe refused",
        "capability",
        "d'",
        "threshold",
        "lost",
        "gained",
        "tokens",
        "ms",
        "beaten by",
    ]
    rows = [
        [
            p["label"],
            mean_interval(p["refusals"]["safe_compliance"]),
            mean_interval(p["refusals"]["unsafe_refusal"]),
            mean_interval(p["capability"]),
            rate_interval(p["refusals"]["d_prime"]),
            rate_interval(p["refusals"]["criterion"]),
            str(len(p["lost"])),
            str(len(p["gained"])),
            f"{p.get('mean_tokens', 0):.0f}",
            f"{p['mean_ms']:.0f}",
            ", ".join(p["dominated_by"]) or "-",
        ]
        for p in found["points"]
        if not p.get("swept")
    ]
    return "## What safety costs\n\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]
    )
