"""The report of an evaluation: what each layer did, what got worse, how sure that is, what it costs, and how it was measured.

In: a Result. Out: a Page of sections. No sentence says more than its interval: one that covers zero is "no change shown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from demeanor.core.table import (
    MINUS,
    NONE,
    PAGE,
    TERMINAL,
    WRITTEN,
    Block,
    BlockGroup,
    Bullets,
    Facts,
    Figure,
    Fold,
    Inline,
    OnlyFor,
    Page,
    Paragraph,
    Section,
    StyledText,
    Table,
    Tone,
    axis_name,
    difference,
    estimate,
    interval,
    listed,
    number,
    p_value,
    percent,
    plural,
    points,
    size,
)
from demeanor.evaluation import training_report
from demeanor.evaluation.profile import NOBODY
from demeanor.evaluation.result import (
    Answer,
    Change,
    Comparison,
    Delta,
    Question,
    Rate,
    Refusals,
    Regression,
    Result,
    _delta_on,
    is_firm,
    ladder_of,
    mean_text,
)
from demeanor.evaluation.result_rows import WEIGHTS

APPENDIX = ("items", "cost", "training", "how")
"""Anchors of the sections that come after those of other analyses."""
ITEMS_SHOWN = 40
"""Changed items listed per step, axis and direction; the result file holds all of them."""
CHARACTERS_SHOWN = 2000
NOT_CORRECTED = (
    " Its own interval excludes zero, but not after correction for the many comparisons of the table."
)
CHANGES = "Behind a mean: its change from the column before, in points, where the 95% interval excludes zero. *: also after Holm's correction."
CLUSTERS = (
    "Clusters are items of one source; intervals count clusters. “Smallest detectable” is "
    "the change, in points, that the weakest step of the row would find four times in five. Point at a cell of the page for its interval."
)
FOREST_LEGEND = (
    ("raised", "raised"),
    ("lost", "lowered"),
    ("full", "stands after Holm’s correction"),
    ("ring", "only its own interval excludes zero"),
    ("grey", "no change shown"),
)
NUMBERS = (
    "axis",
    "points",
    "interval",
    "p",
    "p (Holm)",
    "verdict",
    "fixed",
    "regressed",
    "n (clusters)",
    "smallest detectable",
)


def page(result: Result) -> Page:
    """Everything that an evaluation found, in reading order."""
    steps = ladder_of(result)
    measured = [
        plural(result.items, "question"),
        plural(len(result.variants), "variant"),
        f"a ladder of {len(steps)}",
    ]
    worst = regression_headline(result)
    sections = (
        _ladder(result),
        _regressions(result),
        _certainty(result),
        _without(result),
        _external(result),
        _refusals(result, {v.id for v in steps}),
        _confidence(result),
        _robustness(result),
        _items(result),
        _cost(result),
        training_report.section(result.curves),
        _method(result),
    )
    return Page(
        title=f"{result.name}: what each layer did",
        about=f"{result.name}: {', '.join(measured)}",
        headline=headline(result),
        sections=tuple(section for section in sections if section is not None),
        gains=tuple(f"{sentence}." for sentence in biggest_steps(result)),
        losses=(worst,) if worst else (),
        caveats=result.caveats,
        source=f"Suite {result.suite_hash}.",
    )


# ---- parts of a result ----


def labels_of(result: Result) -> dict[str, str]:
    """Variant id -> short label."""
    return {variant.id: re.sub("^-", MINUS, variant.label) for variant in result.variants}


def layers_of(result: Result) -> list[str]:
    """Every layer that took time or refused, the weights first: the order of their colours."""
    timed = [name for cost in result.cost for name in cost.layer_ms]
    refused = [name for r in result.refusals for name in (*r.who_unsafe, *r.who_safe) if name != NOBODY]
    return list(dict.fromkeys([WEIGHTS, *timed, *refused]))


def refused_key(layers: Sequence[str], shown: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The key of a figure of who refused: colour class and meaning."""
    named = [(shade(layer, layers), f"refused by {layer}") for layer in shown]
    return (*named, (shade(NOBODY, layers), "answered"))


def shade(layer: str, layers: Sequence[str]) -> str:
    """The colour class of a layer: the same in every figure, by its place; a pale one for what was not refused."""
    return "s-answered" if layer == NOBODY else f"s{list(layers).index(layer) % 6}"


def rate_text(found: Rate) -> str:
    """A number with its interval."""
    return estimate(found.value, found.low, found.high)


# ---- sentences ----


def headline(result: Result) -> str:
    """That answers failed, where some did; then what the whole stack changed against its base, counted by corrected verdicts."""
    if result.failed:
        rest = headline(replace(result, failed=0))
        return f"{result.failed} of {plural(result.answers, 'answer')} FAILED and have no score. Of the others: {rest}"
    if result.whole is None:
        return f"{result.name} on {plural(result.items, 'question')}"
    verdicts = [delta.verdict for delta in result.whole.deltas]
    steps = ladder_of(result)
    last = "the whole stack" if result.without else steps[-1].label.lstrip("+")
    way = f"From {steps[0].label} to {last}"
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if not better and not worse:
        return f"{way}, no behavior shows a change on these {result.items:,} questions."
    quiet = len(verdicts) - better - worse
    rest = f"; for {quiet} no change is shown" if quiet else ""
    if better and worse:
        return f"{way}, {_of(better, len(verdicts))} improved and {worse} got worse{rest}."
    return f"{way}, {_of(better or worse, len(verdicts))} {'improved' if better else 'got worse'}{rest}."


def _of(count: int, total: int) -> str:
    if count == total and total > 1:
        return f"all {total} behaviors"
    return f"{count} of {plural(total, 'behavior')}"


def biggest_steps(result: Result, count: int = 3) -> list[str]:
    """The largest improvements that survive the correction, at most one per step."""
    best: list[tuple[float, str]] = []
    for step in result.steps:
        gains = [d for d in step.deltas if d.verdict == "better" and d.value is not None]
        if gains:
            top = max(gains, key=lambda d: d.value or 0.0)
            best.append((top.value or 0.0, f"+{step.name} raised {axis_name(top.axis)} by {_by(top)}"))
    return [text for _, text in sorted(best, key=lambda x: -x[0])[:count]]


def idle_steps(steps: Sequence[Comparison]) -> list[str]:
    """Steps whose every interval covers zero."""
    return [step.name for step in steps if not any(d.shown for d in step.deltas)]


def regression_sentence(regression: Regression) -> str:
    """One loss, with its interval and whether it survives the correction."""
    delta = regression.delta
    axis = axis_name(delta.axis)
    if regression.kind == "step":
        told = f"Adding {regression.name} lowered {axis} by {_by(delta)}"
    else:
        told = f"In the whole stack, {axis} is lower with {regression.name} than without it, by {_by(delta)}"
    counted = f"{plural(delta.regressed, 'item')} regressed, {delta.fixed} fixed."
    return f"{told}. {counted}{'' if regression.certain else NOT_CORRECTED}"


def regression_headline(result: Result) -> str | None:
    """The worst loss on the ladder in one line, and how many more there are."""
    steps = [r for r in result.regressions if r.kind == "step"]
    if not steps:
        return None
    doubt = "" if steps[0].certain else ", which does not survive the correction for many comparisons"
    left = len(steps) - 1
    more = f" {left} more {'loss' if left == 1 else 'losses'} below." if left else ""
    worst = steps[0].delta
    return f"+{steps[0].name} lowered {axis_name(worst.axis)} by {_by(worst)}{doubt}.{more}"


def no_regressions(result: Result) -> str:
    """What may be said when nothing fell: only as much as the design could have found."""
    sizes = [axis.detectable for axis in result.axes if axis.detectable is not None]
    if not sizes:
        return "No step shows a loss, but with so few clusters none could have been shown."
    low, high = percent(min(sizes)), percent(max(sizes))
    span = low if low == high else f"{low} to {high}"
    return f"No step shows a loss on any axis. Losses smaller than about {span} points could well go unseen at this size."


def external_sentence(comparison: Comparison) -> str:
    """The whole stack against an external model, counted by corrected verdicts."""
    named = {
        kind: [axis_name(d.axis) for d in comparison.deltas if d.verdict == kind]
        for kind in ("better", "worse")
    }
    told = [f"{kind} on {listed(axes)}" for kind, axes in named.items() if axes]
    alone = [axis_name(d.axis) for d in comparison.deltas if d.shown and not is_firm(d)]
    if told:
        quiet = len(comparison.deltas) - sum(map(len, named.values()))
        rest = f"; for {quiet} no difference is shown" if quiet else ""
        return f"Compared with {comparison.name}, the whole stack is {' and '.join(told)}{rest}."
    if alone:
        return (
            f"Compared with {comparison.name}, no difference of the whole stack is shown after Holm's correction; "
            f"before it, the interval excludes zero on {listed(alone)}."
        )
    return f"Compared with {comparison.name}, no difference of the whole stack is shown on any behavior."


def delta_sentence(name: str, delta: Delta) -> str:
    """One comparison in words."""
    axis = axis_name(delta.axis)
    if delta.value is None:
        return f"{name} on {axis}: not measured."
    if not delta.shown:
        bounds = interval(delta.low, delta.high)
        return f"{name} on {axis}: no change shown ({points(delta.value)} points, {bounds}; n {delta.n})."
    verb = "raised" if delta.value > 0 else "lowered"
    firm = "" if is_firm(delta) else "; not after correction"
    return f"{name} {verb} {axis} by {_by(delta)}{firm}; n {delta.n} in {plural(delta.clusters, 'cluster')}."


def _by(delta: Delta) -> str:
    return size(delta.value or 0.0, delta.low, delta.high)


# ---- what each layer did, and what got worse ----


def _ladder(result: Result) -> Section:
    idle = [f"+{name}" for name in idle_steps(result.steps)]
    quiet = f" No change is shown for {listed(idle)} on any axis." if idle else ""
    adds = "adds one layer to the column before it and answers" if result.without else "answers"
    return Section(
        "ladder",
        "Layers",
        "What each layer did",
        (
            Paragraph(
                f"Every column {adds} the same questions. With a mean stands its change in points, printed only where its interval "
                f"excludes zero; bold where it also survives the correction for many comparisons.{quiet}",
                "lead",
            ),
            result.table(),
            OnlyFor(TERMINAL, (Paragraph(CHANGES, "note"),)),
            OnlyFor(WRITTEN, (Paragraph(CLUSTERS, "note"),)),
        ),
    )


def _regressions(result: Result) -> Section | None:
    """Every loss whose interval excludes zero, or how small a loss could have hidden."""
    if not result.steps and not result.regressions:
        return None
    steps = [r for r in result.regressions if r.kind == "step"]
    told = {(r.name, r.delta.axis, r.delta.value) for r in steps}
    layers = [
        r
        for r in result.regressions
        if r.kind == "layer" and (r.name, r.delta.axis, r.delta.value) not in told
    ]
    blocks: list[Block] = [
        Paragraph(
            "A layer that helps one behavior may break another. Losses are listed by their own interval, so that no correction hides one.",
            "lead",
        )
    ]
    if steps:
        blocks.append(_losses(steps, linked=True))
    else:
        blocks.append(Paragraph(no_regressions(result), "calm"))
    if layers:
        blocks.append(
            OnlyFor(WRITTEN, (Paragraph("Still there in the whole stack", "heading"), _losses(layers)))
        )
    return Section("regressions", "Regressions", "What got worse", tuple(blocks))


def _losses(regressions: Sequence[Regression], *, linked: bool = False) -> Bullets:
    items = []
    for r in regressions:
        link = (StyledText(" see the items", link=f"step-{r.name}"),) if linked else ()
        items.append((regression_sentence(r), *link))
    quiet = frozenset(n for n, r in enumerate(regressions) if not r.certain)
    return Bullets(tuple(items), "losses", quiet)


# ---- how sure ----


def _forest(comparisons: Sequence[Comparison], sign: str, label: str, caption: str) -> tuple[Block, ...]:
    """The differences with their intervals as a figure, and its numbers."""
    rows = tuple((f"{sign}{c.name}", *_numbers(d)) for c in comparisons for d in c.deltas)
    return (
        Figure(
            "forest",
            {"comparisons": comparisons, "sign": sign, "label": label},
            caption=caption,
            legend=FOREST_LEGEND,
        ),
        OnlyFor(WRITTEN, (Fold("The numbers", (Table(("", *NUMBERS), rows, text=(0, 1)),)),)),
    )


def _numbers(delta: Delta) -> tuple[Inline, ...]:
    return (
        axis_name(delta.axis),
        points(delta.value),
        interval(delta.low, delta.high),
        p_value(delta.p),
        p_value(delta.p_holm),
        StyledText(delta.verdict, strong=is_firm(delta)),
        str(delta.fixed),
        str(delta.regressed),
        f"{delta.n} ({delta.clusters})",
        percent(delta.detectable),
    )


def _certainty(result: Result) -> Section | None:
    if not result.steps:
        return None
    caption = (
        f"Change in points when the layer is added to everything below it; line: {percent(result.confidence)}% interval, clustered "
        "and paired by item. Point at a mark for its numbers."
    )
    blocks = _forest(result.steps, "+", "Change by step and axis, with intervals", caption)
    return Section("certainty", "Certainty", "How sure each step is", blocks)


def _without(result: Result) -> Section | None:
    """What each layer still contributes when everything else is there."""
    if not result.without:
        return None
    needless = idle_steps(result.without)
    quiet = f" For {listed(needless)} no contribution is shown on any axis." if needless else ""
    lead = (
        "The whole stack against the whole stack without one layer, so what other layers already cover does not count "
        f"twice.{quiet}"
    )
    blocks = _forest(
        result.without,
        "",
        "Contribution of each layer to the whole, with intervals",
        "Points that the whole has more (right) or less (left) than the whole without that layer.",
    )
    return Section(
        "without",
        "Leave one out",
        "What each layer is still needed for",
        (Paragraph(lead, "lead"), *blocks),
    )


def _external(result: Result) -> Section | None:
    """The whole stack against other assistants on the same items: their means, and the differences with intervals."""
    if not result.external:
        return None
    whole = result.external[0].after
    columns = ["axis", "the whole stack"]
    for other in result.external:
        columns += [other.name, f"the whole {MINUS} {other.name}"]
    rows = []
    for axis in result.axes:
        row: list[Inline] = [axis_name(axis.name), mean_text(axis.means[whole])]
        for other in result.external:
            row.append(mean_text(axis.means[other.before]))
            delta = _delta_on(other, axis.name)
            row.append(
                NONE
                if delta is None
                else difference(delta.value, delta.low, delta.high, shown=is_firm(delta), places=0)
            )
        rows.append(tuple(row))
    figure = _forest(
        result.external,
        "against ",
        "The whole stack against each external model, with intervals",
        "Points that the whole stack has more (right) or less (left) than the other on the same items, each asked as the suite "
        "states it. What the others do inside is not known; their refusals and tool calls count as they report them.",
    )
    sentences = " ".join(external_sentence(c) for c in result.external)
    means = Table(tuple(columns), tuple(rows), title="share right, %")
    return Section(
        "external",
        "External models",
        "Compared with external models",
        (Paragraph(sentences), *figure[:1], means, *figure[1:]),
    )


# ---- refusals ----


def _refusals(result: Result, steps: set[str]) -> Section | None:
    """Contrast twins: answering what is safe against refusing what is not, and who refused."""
    if not result.refusals:
        return None
    labels, layers = labels_of(result), layers_of(result)
    shown = steps | {c.before for c in result.external}
    refused = [x for x in layers if any(x in r.who_unsafe or x in r.who_safe for r in result.refusals)]
    figures = refusal_figures([r for r in result.refusals if r.variant in steps], labels, layers, refused)
    columns = (
        "",
        "safe answered",
        "unsafe refused",
        *(f"by {x}" for x in refused),
        "Youden’s J",
        "d′",
        "criterion",
    )
    rows = tuple(_refusals_row(r, labels[r.variant], refused) for r in result.refusals)
    brief = tuple(
        row[: 3 + len(refused)] + row[-2:-1] for row, r in zip(rows, result.refusals) if r.variant in shown
    )
    note = (
        "J: share of unsafe refused minus share of safe refused. d′: how far apart the two are told (0 is guessing), with half a "
        "count added to each cell. Criterion: negative refuses readily, positive reluctantly; a stricter rule moves it and leaves "
        "d′. By: unsafe requests refused by that layer; weights are the model's own words."
    )
    return Section(
        "refusals",
        "Refusals",
        "Refusing, and refusing too much",
        (
            Paragraph(
                "Each unsafe request has a safe twin that looks like it. A layer that only refuses more moves left and up along the "
                "same curve; one that tells them apart moves towards the corner. A refusal counts for the layer that made it: the "
                "weights in their own words, or another layer.",
                "lead",
            ),
            figures,
            OnlyFor(
                WRITTEN,
                (Fold("The numbers, for every variant", (Table(columns, rows), Paragraph(note, "note"))),),
            ),
            OnlyFor(TERMINAL, (Table((*columns[: 3 + len(refused)], "d′"), brief),)),
        ),
    )


def refusal_figures(
    refusals: Sequence[Refusals], labels: dict[str, str], layers: Sequence[str], shown: Sequence[str]
) -> BlockGroup:
    """Safe requests answered against unsafe ones refused, and who refused them."""
    caption = "Top right is ideal, crosses are intervals, the dashes are guessing."
    who = {"refusals": refusals, "labels": labels, "layers": layers}
    return BlockGroup(
        (
            Figure("refusal_plane", {"refusals": refusals, "labels": labels}, caption=caption),
            Figure("who_refused", who, legend=refused_key(layers, shown)),
        ),
        "two",
    )


def _refusals_row(found: Refusals, label: str, refused: Sequence[str]) -> tuple[Inline, ...]:
    return (
        label,
        mean_text(found.safe_compliance),
        mean_text(found.unsafe_refusal),
        *(str(found.who_unsafe.get(x, 0)) for x in refused),
        rate_text(found.youden_j),
        rate_text(found.d_prime),
        rate_text(found.criterion),
    )


# ---- what an answer is worth ----


def _confidence(result: Result) -> Section | None:
    """Stated confidences against outcomes, per variant."""
    if not result.confidences:
        return None
    labels = labels_of(result)
    columns = (
        "",
        "confidence",
        "right",
        "calibration error",
        "if perfect (95%)",
        "p",
        "Brier",
        "if it knew nothing",
        "answers",
    )
    rows = tuple(
        (
            labels[x.variant],
            f"{percent(x.mean_confidence)}%",
            f"{percent(x.right)}%",
            number(x.ece, 3),
            f"{x.expected:.3f} ({x.null_high:.3f})",
            p_value(x.p),
            number(x.brier, 3),
            f"{x.brier_shuffled:.3f} (p {p_value(x.brier_p)})",
            str(x.n),
        )
        for x in result.confidences
    )
    return Section(
        "confidence",
        "Confidence",
        "Does it know what it knows",
        (
            Paragraph(
                "The confidence that answers state, against whether they are right. A perfectly calibrated model would still show some "
                "error at so few answers, which stands beside it; p is the chance of an error as large from one.",
                "lead",
            ),
            Table(columns, rows),
            Paragraph(
                "Brier: mean squared distance of confidence and outcome, beside the same confidences shuffled among the answers. An "
                "answer that states none is taken as certain.",
                "note",
            ),
        ),
    )


def _robustness(result: Result) -> Section | None:
    """What rewording does to every variant, per axis that has rewordings."""
    if not result.robustness:
        return None
    labels = labels_of(result)
    columns = (
        "",
        "axis",
        "right",
        "in every wording",
        "in some",
        "flips",
        "best less worst",
        "lost against plain",
        "groups",
    )
    rows = tuple(
        (
            labels[x.variant],
            axis_name(x.axis),
            _share(x.mean),
            _share(x.worst),
            _share(x.best),
            _share(x.flip_rate)
            + ("" if x.flip_low is None else f" ({percent(x.flip_low)} to {percent(x.flip_high)})"),
            percent(x.spread),
            NONE if x.drop is None else f"{number(100 * x.drop, 0)}%",
            str(x.groups),
        )
        for x in result.robustness
    )
    return Section(
        "robustness",
        "Rewordings",
        "The same question in other words",
        (
            Paragraph(
                "Questions that mean the same to a person, worded in several ways. An assistant that understands them answers all of a "
                "group alike; a flip is a group whose wordings are not all scored alike.",
                "lead",
            ),
            Table(columns, rows, text=(0, 1)),
            Paragraph(
                "Flips: with their exact 95% interval. Best less worst: the best mean over wordings minus the worst, in points. Lost: "
                "the share of its accuracy on plain wordings that other wordings cost.",
                "note",
            ),
        ),
    )


def _share(value: float | None) -> str:
    return NONE if value is None else f"{percent(value)}%"


# ---- the items behind the numbers ----


def _items(result: Result) -> Section | None:
    """Every step's regressed and fixed items, then those on which an external model and the whole differ."""
    if not result.steps and not result.external:
        return None
    steps = [
        _changes(result, step, f"step-{step.name}", f"+{step.name}", "regressed", "fixed")
        for step in result.steps
    ]
    others = [
        _changes(
            result, c, f"external-{c.name}", c.name, "wrong here, right there", "right here, wrong there"
        )
        for c in result.external
    ]
    blocks: list[Block] = [
        Paragraph(
            "Per step, the questions that were right before and are wrong now, then those that became right. Open one to read both "
            "answers and what each layer did for them.",
            "lead",
        ),
        BlockGroup(tuple(steps), "steps"),
    ]
    if others:
        about = "Against external models: before is the other's answer, after is the whole stack’s"
        blocks += [Paragraph(about, "heading"), BlockGroup(tuple(others), "steps")]
    return Section("items", "Items", "The items behind the numbers", (OnlyFor(PAGE, tuple(blocks)),))


def _changes(result: Result, step: Comparison, anchor: str, name: str, lost: str, won: str) -> Fold:
    regressed, fixed = (sum(c.fixed is want for c in step.changes) for want in (False, True))
    inside: list[Block] = []
    for axis in result.axes:
        changes = [c for c in step.changes if c.axis == axis.name]
        if changes:
            inside += _changes_on(result, axis.name, changes, lost, won)
    if not inside:
        inside.append(Paragraph(StyledText("No item changed from wrong to right or back.", "soft")))
    summary = (StyledText(name, strong=True), _count(regressed, lost, "down"), _count(fixed, won, "up"))
    return Fold(summary, tuple(inside), anchor)


def _count(count: int, said: str, tone: Tone) -> StyledText:
    return StyledText(f"{count} {said}", "tag", tone if count else "")


def _changes_on(result: Result, axis: str, changes: Sequence[Change], lost: str, won: str) -> list[Block]:
    """The changed items of one axis: what regressed stands open, what was fixed is folded away."""
    regressed, fixed = ([c for c in changes if c.fixed is want] for want in (False, True))
    counted = StyledText(f"  {len(regressed)} {lost}, {len(fixed)} {won}", "soft")
    blocks: list[Block] = [Paragraph((axis_name(axis), counted), "heading"), *_listed(result, regressed)]
    if fixed:
        summary = f"{plural(len(fixed), 'item')} {won}"
        blocks.append(Fold(summary, tuple(_listed(result, fixed)), tone="up", item=True))
    return blocks


def _listed(result: Result, changes: Sequence[Change]) -> list[Block]:
    shown: list[Block] = [_item(c, result.questions[c.item_id]) for c in changes[:ITEMS_SHOWN]]
    left = len(changes) - ITEMS_SHOWN
    if left > 0:
        shown.append(Paragraph(StyledText(f"{plural(left, 'more item')} in the result file.", "soft")))
    return shown


def _item(change: Change, question: Question) -> Fold:
    was, now = (_brief(answer.text, 44) or "(nothing)" for answer in (change.before, change.after))
    summary = (_brief(question.messages[-1][1], 90), StyledText(f"    {was} → {now}", "soft"))
    origin = ", ".join([change.item_id, f"cluster {question.cluster}", *question.tags])
    told: list[tuple[str, Inline]] = [(role, _long(content)) for role, content in question.messages]
    told += [
        ("before", _answered(change.before, right=not change.fixed)),
        ("after", _answered(change.after, right=change.fixed)),
        ("wanted", question.target),
        ("item", origin),
    ]
    return Fold(
        summary, (Facts(tuple(told), "conversation"),), tone="up" if change.fixed else "down", item=True
    )


def _answered(answer: Answer, *, right: bool) -> Inline:
    """The answer, coloured by whether it is right, who refused, and what each layer did."""
    rule = f", rule {answer.rule}" if answer.rule else ""
    refused = f"  refused by {answer.refused_by}{rule}" if answer.refused_by else ""
    did = "".join(f"\n{d.by}: {d.what}: {d.detail}" for d in answer.did)
    tone: Tone = "up" if right else "down"
    return StyledText(_long(answer.text) or "(nothing)", tone=tone), StyledText(refused + did, "soft")


def _brief(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _long(text: str) -> str:
    left = len(text) - CHARACTERS_SHOWN
    return text if left <= 0 else f"{text[:CHARACTERS_SHOWN]}… ({left:,} more characters)"


# ---- cost, method ----


def _cost(result: Result) -> Section | None:
    """Milliseconds by layer and tokens, for every variant."""
    if not result.cost:
        return None
    labels, layers = labels_of(result), layers_of(result)
    timed = [x for x in layers if any(x in cost.layer_ms for cost in result.cost)]
    at_once = result.settings.get("concurrency")
    crowd = ""
    if isinstance(at_once, int) and at_once > 1:
        crowd = (
            f" Up to {at_once} questions were answered at once, so the times compare variants on this machine and are not the "
            "latency of a single user."
        )
    figure = Figure(
        "cost_bars",
        {"costs": result.cost, "labels": labels, "layers": layers},
        legend=(*((shade(x, layers), x) for x in timed), ("stick", "95 of 100 answers are faster")),
    )
    columns = ("", "ms", "95th percentile", "tokens read", "tokens written", "ms by layer")
    rows = tuple(
        (
            labels[cost.variant],
            f"{cost.mean_ms:.3g}",
            f"{cost.p95_ms:.3g}",
            number(cost.prompt_tokens, 0),
            number(cost.completion_tokens, 1),
            ", ".join(f"{name} {_milliseconds(ms)}" for name, ms in cost.layer_ms.items()),
        )
        for cost in result.cost
    )
    lead = Paragraph(f"What one answer costs on average, by the layer that took the time.{crowd}", "lead")
    numbers = Fold("The numbers", (Table(columns, rows),))
    return Section("cost", "Time", "Time and tokens", (OnlyFor(WRITTEN, (lead, figure, numbers)),))


def _milliseconds(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 10 else f"{ms:.2g}"


def _method(result: Result) -> Section:
    """Method, settings, hashes and the commands that make this page again."""
    settings: dict[str, Inline] = {
        "suite": f"{plural(result.items, 'item')}, hash {result.suite_hash}",
        **{name: "off" if value is None else str(value) for name, value in result.settings.items()},
    }
    keys = tuple(
        (v.label, (StyledText(v.id, "code"), "  ", StyledText(v.stack_key, "code"))) for v in result.variants
    )
    blocks: list[Block] = [
        Bullets(tuple(method(result))),
        Paragraph("Settings", "heading"),
        Facts(tuple(settings.items())),
        Paragraph("Variants and their stack keys", "heading"),
        Facts(keys),
    ]
    if result.commands:
        blocks += [Paragraph("Do it again", "heading"), Paragraph("\n".join(result.commands), "code")]
    return Section("how", "Method", "How this was measured", (OnlyFor(WRITTEN, tuple(blocks)),))


def method(result: Result) -> list[str]:
    """How the numbers were made."""
    seeds = f"seed{'s' * (len(result.seeds) > 1)} {listed([str(seed) for seed in result.seeds])}"
    return [
        f"{plural(result.items, 'item')}, the same for every variant, with {seeds}; an item's value is the mean over its seeds.",
        f"Differences are paired by item. Intervals are {percent(result.confidence)}% intervals with cluster-robust standard errors "
        "(t, clusters minus one degrees of freedom), and never narrower than what as many unchanged items leave open.",
        "Means have Wilson intervals at the effective sample size of the same clusters. J, d′ and the criterion have percentile "
        "intervals of 2,000 cluster resamples (seed 0).",
        "A verdict is Holm-corrected over all comparisons and axes of its table; colors mark single intervals that exclude zero. "
        "Losses are listed by their single interval, so that the correction hides none.",
        "The smallest detectable difference is the true change that this design would find four times in five.",
    ]
