"""Sections of the page in reading order: ladder, losses, certainty, leave-one-out, refusals, cost, training, method.

In: a result. Out: markup, None where the result has nothing to show. Sentences come from words.py, marks from figures.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.report import words
from demeanor.report.figures import (
    detail_of,
    forest,
    losses,
    shade,
    spending_bars,
    tone_of,
    twins,
    who_refused,
)
from demeanor.report.markup import Html, el, join
from demeanor.report.parts import facts, fold, lead, legend, note, section, table, wide
from demeanor.report.shape import Axis, Comparison, Delta, Result
from demeanor.report.words import axis_name, percent, plural, points

FOREST_LEGEND = (
    ("raised", "raised"),
    ("lost", "lowered"),
    ("full", "stands after Holm’s correction"),
    ("ring", "only its own interval excludes zero"),
    ("grey", "no change shown"),
)

# ---- what each layer did ----


def ladder(result: Result) -> Html:
    """Axes down, rungs across: the mean, and the change from the rung before where its interval excludes zero."""
    rungs = words.ladder_of(result)
    head = el(
        "tr",
        el("th", "share right, %"),
        *(el("th", v["label"], scope="col") for v in rungs),
        el("th", "items (clusters)", class_="number items", scope="col"),
        el("th", "smallest detectable", class_="number detectable", scope="col"),
    )
    rows = [_ladder_row(result, axis) for axis in result["axes"]]
    idle = words.idle_steps(result)
    quiet = (
        f" No change is shown for {words.listed([f'+{name}' for name in idle])} on any axis." if idle else ""
    )
    return section(
        "ladder",
        "What each layer did",
        lead(
            (
                "Every column adds one layer to the column before it and answers"
                if result["without"]
                else "Every column answers"
            )
            + " the same questions. Below a mean stands its "
            "change in "
            "points, printed only where its interval excludes zero; bold where it also survives the correction for many "
            f"comparisons.{quiet}"
        ),
        wide(el("table", el("thead", head), el("tbody", *rows), class_="heat")),
        note(
            "Point at a cell for its interval. Clusters are items of one source; intervals count clusters. “Smallest "
            "detectable” is "
            "the change, in points, that the weakest step of the row would find four times in five."
        ),
    )


def _ladder_row(result: Result, axis: Axis) -> Html:
    cells = []
    for number, variant in enumerate(words.ladder_of(result)):
        value = axis["means"][variant["id"]]["value"]
        delta = _delta_on(result["steps"][number - 1], axis["name"]) if number else None
        heat = None if value is None else f"h{round(10 * value)}"
        cells.append(
            el(
                "td",
                el("b", percent(value)),
                _change(delta),
                class_=heat,
                title=detail_of(axis, variant["id"]),
            )
        )
    about = el("span", axis["about"], class_="soft") if axis["about"] else None
    return el(
        "tr",
        el("th", axis_name(axis["name"]), about, scope="row"),
        *cells,
        el("td", f"{axis['items']} ({axis['clusters']})", class_="number soft"),
        el("td", percent(axis["detectable"]), class_="number soft"),
    )


def _change(delta: Delta | None) -> Html:
    if delta is None or not delta["shown"]:
        return el("span", class_="change")
    tone = tone_of(delta)
    firm = " firm-word" if delta["verdict"] in ("better", "worse") else ""
    words_ = f"{'▲' if tone == 'up' else '▼'} {points(delta['value'])}"
    return el("span", words_, class_=f"change {tone}{firm}", title=f"{words.interval(delta)} points")


def _delta_on(comparison: Comparison, axis: str) -> Delta | None:
    return next((d for d in comparison["deltas"] if d["axis"] == axis), None)


def costs(result: Result) -> Html | None:
    """What was lost, first-class: every loss whose interval excludes zero, or how small a loss could have hidden."""
    if not result["steps"] and not result["regressions"]:
        return None
    steps = [cost for cost in result["regressions"] if cost["kind"] == "step"]
    told = [(c["name"], c["delta"]["axis"], c["delta"]["value"]) for c in steps]
    layers = [cost for cost in result["regressions"] if cost["kind"] == "layer"]
    still = [c for c in layers if (c["name"], c["delta"]["axis"], c["delta"]["value"]) not in told]
    climbed = [
        el("li", words.cost_sentence(c), " ", el("a", "see the items", href=f"#step-{c['name']}"))
        for c in steps
    ]
    removed = [el("li", words.cost_sentence(c)) for c in still]
    return section(
        "costs",
        "What it cost",
        lead(
            "A layer that helps one behaviour may break another. Losses are listed by their own interval, so that no correction "
            "hides one."
        ),
        el("ul", *climbed, class_="costs") if climbed else el("p", words.no_costs(result), class_="calm"),
        join(el("h3", "Still paid for in the whole stack"), el("ul", *removed, class_="costs"))
        if removed
        else None,
    )


# ---- how sure ----


def certainty(result: Result) -> Html | None:
    """Every step of the ladder with its intervals."""
    if not result["steps"]:
        return None
    sure = f"{round(100 * result['confidence'])}%"
    return section(
        "certainty",
        "How sure each step is",
        legend(FOREST_LEGEND),
        el(
            "figure",
            wide(forest(result["steps"], "+", "Change by step and axis, with intervals")),
            el(
                "figcaption",
                "Change in points when the layer is added to everything below it; line: "
                f"{sure} interval, clustered and paired by item. Point at a mark for its numbers.",
            ),
        ),
        _numbers(result["steps"], "+"),
    )


def without(result: Result) -> Html | None:
    """What each layer still contributes when everything else is there."""
    if not result["without"]:
        return None
    needless = [c["name"] for c in result["without"] if not any(d["shown"] for d in c["deltas"])]
    quiet = f" For {words.listed(needless)} no contribution is shown on any axis." if needless else ""
    return section(
        "without",
        "What each layer is still needed for",
        lead(
            "The whole stack against the whole stack without one layer, so what other layers already cover does not count "
            f"twice.{quiet}"
        ),
        el(
            "figure",
            wide(forest(result["without"], "", "Contribution of each layer to the whole, with intervals")),
            el(
                "figcaption",
                "Points that the whole has more (right) or less (left) than the whole without that layer.",
            ),
        ),
        _numbers(result["without"], ""),
    )


def beside(result: Result) -> Html | None:
    """The whole stack against other assistants on the same items: their means, and the differences with intervals."""
    if not result["external"]:
        return None
    whole = result["external"][0]["after"]
    ids = [whole, *(c["before"] for c in result["external"])]
    rows = [
        [axis_name(a["name"]), *(words.mean_interval(a["means"][i]) for i in ids)] for a in result["axes"]
    ]
    return section(
        "beside",
        "Beside other assistants",
        lead(" ".join(words.beside_sentence(c) for c in result["external"])),
        el(
            "figure",
            wide(
                forest(
                    result["external"],
                    "against ",
                    "The whole stack against each other assistant, with intervals",
                )
            ),
            el(
                "figcaption",
                "Points that the whole stack has more (right) or less (left) than the other on the same items, each asked as "
                "the suite states it. What the others do inside is not known; their refusals and tool calls count as they tell them.",
            ),
        ),
        _numbers(result["external"], "against "),
        fold(
            "The means",
            wide(
                table(["", "the whole stack", *(c["name"] for c in result["external"])], rows, class_="small")
            ),
        ),
    )


def _numbers(comparisons: Sequence[Comparison], sign: str) -> Html:
    """The figure's numbers as a table."""
    rows = [[f"{sign}{c['name']}", *words.comparison_row(d)] for c in comparisons for d in c["deltas"]]
    return fold("The numbers", wide(table(words.COMPARISON_COLUMNS, rows, class_="small")))


# ---- refusals ----


def refusals(result: Result) -> Html | None:
    """Contrast twins: answering what is safe against refusing what is not, and who declined."""
    if not result["refusals"]:
        return None
    labels, rungs, layers = (
        words.labels_of(result),
        {v["id"] for v in words.ladder_of(result)},
        words.layers_of(result),
    )
    climbed = [r for r in result["refusals"] if r["variant"] in rungs]
    declined = [
        x for x in layers if any(x in r["who_unsafe"] or x in r["who_safe"] for r in result["refusals"])
    ]
    keys = [
        *((shade(x, layers), f"refused by {x}") for x in declined),
        (shade(words.NOBODY, layers), "answered"),
    ]
    rows = [
        [
            labels[r["variant"]],
            words.mean_interval(r["safe_compliance"]),
            words.mean_interval(r["unsafe_refusal"]),
            words.rate_interval(r["youden_j"]),
            words.rate_interval(r["d_prime"]),
            words.rate_interval(r["criterion"]),
        ]
        for r in result["refusals"]
    ]
    return section(
        "refusals",
        "Refusing, and refusing too much",
        lead(
            "Each unsafe request has a safe twin that looks like it. A layer that only refuses more moves left and up along "
            "the same "
            "curve; one that tells them apart moves towards the corner. Refusals are counted by who declined: the weights in "
            "their "
            "own words, or a layer."
        ),
        el(
            "div",
            el(
                "figure",
                twins(climbed, labels),
                el(
                    "figcaption",
                    "The rungs of the ladder: top right is ideal, crosses are intervals, the dashes are guessing.",
                ),
            ),
            el("figure", legend(keys), who_refused(climbed, labels, layers)),
            class_="two",
        ),
        fold(
            "The numbers, for every variant",
            wide(table(("", "safe answered", "unsafe refused", "Youden’s J", "d′", "criterion"), rows)),
            note(
                "J: share of unsafe refused minus share of safe refused. d′: how far apart the two are told (0 is guessing), "
                "with "
                "half a count added to each cell. Criterion: negative refuses readily, positive reluctantly; a stricter rule "
                "moves "
                "it and leaves d′."
            ),
        ),
    )


# ---- cost, training, method ----


def spending(result: Result) -> Html | None:
    """Milliseconds by layer and tokens, for every variant."""
    if not result["cost"]:
        return None
    layers = words.layers_of(result)
    spent = [x for x in layers if any(x in s["layer_ms"] for s in result["cost"])]
    return section(
        "spending",
        "Time and tokens",
        lead(f"What one answer costs on average, by the layer that spent it.{words.crowd(result)}"),
        legend([*((shade(x, layers), x) for x in spent), ("stick", "95 of 100 answers are faster")]),
        wide(spending_bars(result["cost"], words.labels_of(result), layers)),
    )


def training(result: Result) -> Html | None:
    """Loss curves of the stages whose ledgers were handed in."""
    if not result["curves"]:
        return None
    held = any("loss" in name and name != "loss" for c in result["curves"] for name in c["lines"])
    return section(
        "training",
        "Training",
        lead(
            "The loss of every weight layer over its optimiser steps; each point is the mean of a few steps. Losses of "
            "different "
            "objectives are not comparable."
        ),
        legend((("s0", "training rows"), ("s1", "held-out rows"))) if held else None,
        el("div", *(el("figure", el("h3", c["name"]), losses(c)) for c in result["curves"]), class_="three"),
    )


def how(result: Result) -> Html:
    """Method, settings, hashes and the commands that make this page again."""
    settings = {
        "suite": f"{plural(result['items'], 'item')}, hash {result['suite_hash']}",
        **result["settings"],
    }
    keys = [
        (v["label"], join(el("code", v["id"]), "  ", el("code", v["stack_key"]))) for v in result["variants"]
    ]
    again = (
        join(el("h3", "Do it again"), el("pre", "\n".join(result["commands"])))
        if result["commands"]
        else None
    )
    return section(
        "how",
        "How this was measured",
        el("ul", *(el("li", sentence) for sentence in words.method(result))),
        el("h3", "Settings"),
        facts((name, "off" if value is None else str(value)) for name, value in settings.items()),
        el("h3", "Variants and their stack keys"),
        facts(keys),
        again,
    )
