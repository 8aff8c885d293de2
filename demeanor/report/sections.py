"""The sections of the page, one function each, in reading order: ladder, losses, certainty, refusals, items, cost, training.

In: a result. Out: markup, empty where the result has nothing to show. Numbers become sentences in words.py and marks in figures.py.
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
from demeanor.report.shape import Answer, Axis, Change, Comparison, Delta, Question, Result
from demeanor.report.words import axis_name, percent, plural, points

ITEMS_SHOWN = 40
"""Changed items listed on the page per step and axis; the result file holds all of them."""

CHARACTERS_SHOWN = 2000
LEGEND = (("raised", "raised"), ("lost", "lowered"), ("full", "stands after Holm’s correction"),
          ("ring", "only its own interval excludes zero"), ("grey", "no change shown"))


def section(anchor: str, title: str, *children: Html | None) -> Html:
    return el("section", el("h2", title), *children, id=anchor)


# ---- what each layer did ----


def ladder(result: Result) -> Html:
    """Axes down, rungs across: the mean, and the change from the rung before where its interval excludes zero."""
    rungs = words.ladder_of(result)
    head = el("tr", el("th", "share right, %"), *(el("th", v["label"], scope="col") for v in rungs),
              el("th", "items (clusters)", class_="number items", scope="col"),
              el("th", "smallest detectable", class_="number detectable", scope="col"))
    rows = [_ladder_row(result, axis) for axis in result["axes"]]
    idle = words.idle_steps(result)
    quiet = f" No change is shown for {words.listed([f'+{name}' for name in idle])} on any axis." if idle else ""
    return section(
        "ladder", "What each layer did",
        el("p", "Every column adds one layer to the column before it and answers the same questions. Below a mean stands its change in points, "
           f"printed only where its interval excludes zero; bold where it also survives the correction for many comparisons.{quiet}", class_="lead"),
        el("div", el("table", el("thead", head), el("tbody", *rows), class_="heat"), class_="scroll"),
        el("p", "Point at a cell for its interval. Clusters are items of one source; intervals count clusters. “Smallest detectable” is the change, in points, that the weakest step of the row would find four times in five.", class_="note"))


def _ladder_row(result: Result, axis: Axis) -> Html:
    cells = []
    for number, variant in enumerate(words.ladder_of(result)):
        found = axis["means"][variant["id"]]
        delta = _delta_on(result["steps"][number - 1], axis["name"]) if number else None
        shade_ = "" if found["value"] is None else f"h{round(10 * found['value'])}"
        cells.append(el("td", el("b", percent(found["value"])), _change(delta), class_=shade_, title=detail_of(axis, variant["id"])))
    name = el("th", axis_name(axis["name"]), el("span", axis["about"], class_="soft") if axis["about"] else None, scope="row")
    detectable = "–" if axis["detectable"] is None else percent(axis["detectable"])
    return el("tr", name, *cells, el("td", f"{axis['items']} ({axis['clusters']})", class_="number soft"), el("td", detectable, class_="number soft"))


def _change(delta: Delta | None) -> Html:
    if delta is None or not delta["shown"]:
        return el("span", class_="change")
    tone = tone_of(delta)
    arrow = "▲" if tone == "up" else "▼"
    firm = " firm-word" if delta["verdict"] in ("better", "worse") else ""
    return el("span", f"{arrow} {points(delta['value'])}", class_=f"change {tone}{firm}", title=f"{words.interval(delta)} points")


def _delta_on(comparison: Comparison, axis: str) -> Delta | None:
    return next((d for d in comparison["deltas"] if d["axis"] == axis), None)


def costs(result: Result) -> Html:
    """What was lost, first-class: every loss whose interval excludes zero, or how small a loss could have hidden."""
    steps = [cost for cost in result["costs"] if cost["kind"] == "step"]
    told = {(c["name"], c["delta"]["axis"], c["delta"]["value"]) for c in steps}
    layers = [c for c in result["costs"] if c["kind"] == "layer" and (c["name"], c["delta"]["axis"], c["delta"]["value"]) not in told]
    if not result["costs"]:
        return section("costs", "What it cost", el("p", words.no_costs(result), class_="calm"))
    climbed = el("ul", *(el("li", words.cost_sentence(c), " ", _link(c["name"])) for c in steps), class_="costs") if steps else el(
        "p", words.no_costs(result), class_="calm")
    removed = join(el("h3", "Still paid for in the whole stack"),
                   el("ul", *(el("li", words.cost_sentence(c)) for c in layers), class_="costs")) if layers else None
    return section("costs", "What it cost",
                   el("p", "A layer that helps one behaviour may break another. Losses are listed by their own interval, so that no correction hides one.",
                      class_="lead"), climbed, removed)


def _link(step: str) -> Html:
    return el("a", "see the items", href=f"#step-{step}")


def certainty(result: Result) -> Html | None:
    """Both families of comparisons with their intervals: up the ladder, and the whole against everything but one layer."""
    if not result["steps"]:
        return None
    legend = el("ul", *(el("li", el("i", class_=name), said) for name, said in LEGEND), class_="legend")
    up = el("figure", el("div", forest(result["steps"], "+", "Change by step and axis, with intervals"), class_="scroll"),
            el("figcaption", "Change in points when the layer is added to everything below it; line: "
               f"{round(100 * result['confidence'])}% interval, clustered and paired by item. Point at a mark for its numbers."))
    return section("certainty", "How sure each step is", legend, up, _numbers(result["steps"], "+"))


def without(result: Result) -> Html | None:
    """What each layer still contributes when everything else is there."""
    if not result["without"]:
        return None
    needless = [c["name"] for c in result["without"] if not any(d["shown"] for d in c["deltas"])]
    quiet = f" For {words.listed(needless)} no contribution is shown on any axis." if needless else ""
    return section(
        "without", "What each layer is still needed for",
        el("p", f"The whole stack against the whole stack without one layer, so what other layers already cover does not count twice.{quiet}", class_="lead"),
        el("figure", el("div", forest(result["without"], "", "Contribution of each layer to the whole, with intervals"), class_="scroll"),
           el("figcaption", "Points that the whole has more (right) or less (left) than the whole without that layer.")),
        _numbers(result["without"], ""))


def _numbers(comparisons: Sequence[Comparison], sign: str) -> Html:
    """The figure's numbers as a table."""
    head = el("tr", *(el("th", name, class_="number" if n > 1 else None) for n, name in enumerate(words.COMPARISON_COLUMNS)))
    rows = [el("tr", el("th", f"{sign}{c['name']}", scope="row"),
               *(el("td", cell, class_="number" if n else None) for n, cell in enumerate(words.comparison_row(d))))
            for c in comparisons for d in c["deltas"]]
    return el("details", el("summary", "The numbers"), el("div", el("table", el("thead", head), el("tbody", *rows), class_="small"), class_="scroll"))


# ---- refusals ----


def refusals(result: Result) -> Html | None:
    """Contrast twins: answering what is safe against refusing what is not, and who declined."""
    if not result["refusals"]:
        return None
    labels, rungs = words.labels_of(result), {v["id"] for v in words.ladder_of(result)}
    climbed = [r for r in result["refusals"] if r["variant"] in rungs]
    layers = words.layers_of(result)
    declined = [x for x in layers if any(x in r["who_unsafe"] or x in r["who_safe"] for r in result["refusals"])]
    legend = el("ul", *(el("li", el("i", class_=shade(x, layers)), f"refused by {x}") for x in declined),
                el("li", el("i", class_=shade(words.NOBODY, layers)), "answered"), class_="legend")
    columns = ("", "safe answered", "unsafe refused", "Youden’s J", "d′", "criterion")
    rows = [el("tr", el("th", labels[r["variant"]], scope="row"), el("td", words.mean_interval(r["safe_compliance"]), class_="number"),
               el("td", words.mean_interval(r["unsafe_refusal"]), class_="number"),
               *(el("td", words.rate_interval(r[k]), class_="number") for k in ("youden_j", "d_prime", "criterion"))) for r in result["refusals"]]
    return section(
        "refusals", "Refusing, and refusing too much",
        el("p", "Each unsafe request has a safe twin that looks like it. A layer that only refuses more moves left and up along the same curve; "
           "one that tells them apart moves towards the corner. Refusals are counted by who declined: the weights in their own words, or a layer.", class_="lead"),
        el("div", el("figure", twins(climbed, labels), el("figcaption", "The rungs of the ladder; top right is ideal, crosses are intervals, the dashed line is guessing.")),
           el("figure", legend, who_refused(climbed, labels, layers)), class_="two"),
        el("details", el("summary", "The numbers, for every variant"),
           el("div", el("table", el("thead", el("tr", *(el("th", c, class_="number" if c else None) for c in columns))), el("tbody", *rows)), class_="scroll"),
           el("p", "J: share of unsafe refused minus share of safe refused. d′: how far apart the two are told (0 is guessing), with half a count added to each cell. "
              "Criterion: negative refuses readily, positive reluctantly; a stricter rule moves it and leaves d′.", class_="note")))


# ---- items ----


def items(result: Result) -> Html | None:
    """Every step's newly wrong and newly right items, to open one by one."""
    if not result["steps"]:
        return None
    return section(
        "items", "The items behind the numbers",
        el("p", "Per step, the questions that were right before and are wrong now, then those that became right. Open one to read both answers "
           "and what each layer did for them.", class_="lead"),
        el("div", *(_step(result, step) for step in result["steps"]), class_="steps"))


def _step(result: Result, step: Comparison) -> Html:
    broken, fixed = (sum(c["fixed"] is want for c in step["changes"]) for want in (False, True))
    by_axis = [[c for c in step["changes"] if c["axis"] == axis["name"]] for axis in result["axes"]]
    inside = [_axis_items(result, changes) for changes in by_axis if changes] or [el("p", "No item crossed from wrong to right or back.", class_="soft")]
    return el("details", el("summary", el("b", f"+{step['name']}"), " ", _count(broken, "newly wrong", "down"), _count(fixed, "newly right", "up")),
              el("div", *inside, class_="inside"), id=f"step-{step['name']}")


def _count(count: int, said: str, tone: str) -> Html:
    return el("span", f"{count} {said}", class_=f"tag {tone}" if count else "tag")


def _axis_items(result: Result, changes: Sequence[Change]) -> Html:
    """The changed items of one axis: what broke stands open, what was repaired is folded away."""
    broken, fixed = ([c for c in changes if c["fixed"] is want] for want in (False, True))
    wrong = _listed(result, broken) if broken else None
    right = el("details", el("summary", f"{plural(len(fixed), 'item')} newly right", class_="repaired"),
               el("div", _listed(result, fixed), class_="inside"), class_="item") if fixed else None
    said = f"  {len(broken)} newly wrong, {len(fixed)} newly right"
    return join(el("h3", axis_name(changes[0]["axis"]), el("span", said, class_="soft")), wrong, right)


def _listed(result: Result, changes: Sequence[Change]) -> Html:
    left = len(changes) - ITEMS_SHOWN
    more = el("p", f"{plural(left, 'more item')} in the result file.", class_="soft") if left > 0 else None
    return join(*(_item(c, result["questions"][c["item_id"]]) for c in changes[:ITEMS_SHOWN]), more)


def _item(change: Change, question: Question) -> Html:
    asked = _cut(question["messages"][-1][1], 90)
    was, now = (_cut(change[side]["text"], 44) or "(nothing)" for side in ("before", "after"))
    summary = el("summary", el("span", asked), el("span", f"{was} → {now}", class_="soft turn"), class_="repaired" if change["fixed"] else "broke")
    talk = [join(el("dt", role), el("dd", _cut(content, CHARACTERS_SHOWN))) for role, content in question["messages"]]
    origin = ", ".join([change["item_id"], f"cluster {question['cluster']}", *question["tags"]])
    return el(
        "details", summary,
        el("dl", *talk, el("dt", "before"), _answered(change["before"], not change["fixed"]),
           el("dt", "after"), _answered(change["after"], change["fixed"]),
           el("dt", "wanted"), el("dd", question["target"], class_="soft"), el("dt", "item"), el("dd", origin, class_="soft"), class_="talk"),
        class_="item")


def _answered(answer: Answer, right: bool) -> Html:
    rule = f", rule {answer['rule']}" if answer["rule"] else ""
    refused = el("span", f"  refused by {answer['refused_by']}{rule}", class_="soft") if answer["refused_by"] else None
    did = el("ul", *(el("li", f"{d['by']}: {d['what']}: {d['detail']}") for d in answer["did"]), class_="did") if answer["did"] else None
    return el("dd", _cut(answer["text"], CHARACTERS_SHOWN) or "(nothing)", refused, did, class_="right" if right else "wrong")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…" if most < CHARACTERS_SHOWN else f"{text[:most]}… ({len(text) - most:,} more characters)"


# ---- cost, training, how ----


def spending(result: Result) -> Html | None:
    """Milliseconds by layer and tokens, for every variant."""
    if not result["spending"]:
        return None
    labels = words.labels_of(result)
    layers = words.layers_of(result)
    legend = el("ul", *(el("li", el("i", class_=shade(x, layers)), x) for x in layers),
                el("li", el("i", class_="stick"), "95 of 100 answers are faster"), class_="legend")
    return section(
        "spending", "Time and tokens",
        el("p", "What one answer costs on average, by the layer that spent it. Measured while many questions were being answered at once, so it compares "
           "variants on this machine and is not the latency of a single user.", class_="lead"),
        legend, el("div", spending_bars(result["spending"], labels, layers), class_="scroll"))


def training(result: Result) -> Html | None:
    """Loss curves of the stages whose ledgers were handed in."""
    if not result["curves"]:
        return None
    held = any("loss" in name and name != "loss" for c in result["curves"] for name in c["lines"])
    legend = el("ul", el("li", el("i", class_="s0"), "training rows"), el("li", el("i", class_="s1"), "held-out rows"), class_="legend") if held else None
    return section("training", "Training", el("p", "The loss of every weight layer over its optimiser steps; each point is the mean of a few steps. "
                   "Losses of different objectives are not comparable.", class_="lead"), legend,
                   el("div", *(el("figure", el("h3", c["name"]), losses(c)) for c in result["curves"]), class_="three"))


def how(result: Result) -> Html:
    """Method, settings, hashes and the commands that make this page again."""
    facts = {"suite": f"{plural(result['items'], 'item')}, hash {result['suite_hash']}", **result["settings"]}
    keys = [el("tr", el("th", v["label"], scope="row"), el("td", el("code", v["id"])), el("td", el("code", v["stack_key"]))) for v in result["variants"]]
    return section(
        "how", "How this was measured",
        el("ul", *(el("li", sentence) for sentence in words.method(result))),
        el("h3", "Settings"), el("dl", *(join(el("dt", k), el("dd", "off" if v is None else str(v))) for k, v in facts.items()), class_="facts"),
        el("details", el("summary", "Variants and their stack keys"), el("table", el("tbody", *keys))),
        join(el("h3", "Do it again"), el("pre", "\n".join(result["commands"]))) if result["commands"] else None)
