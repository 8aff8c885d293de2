"""The report of an evaluation: what each layer did, what got worse, how sure that is, what it costs, and how it was measured.

In: a Result. Out: a Page of sections. No sentence says more than its interval: one that covers zero is "no change shown".
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.core.table import (
    MINUS,
    NONE,
    TERMINAL,
    WRITTEN,
    Block,
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
    axis_name,
    difference,
    interval,
    listed,
    number,
    p_value,
    percent,
    plural,
    points,
)
from demeanor.evaluation import training_report
from demeanor.evaluation.answer_report import confidence_section, refusals_section, robustness_section
from demeanor.evaluation.changed_items import items_section
from demeanor.evaluation.ladder_sentences import (
    biggest_steps,
    external_sentence,
    headline,
    idle_steps,
    labels_of,
    layers_of,
    no_regressions,
    regression_headline,
    regression_sentence,
    shade,
)
from demeanor.evaluation.result import (
    TRAINED,
    Comparison,
    Delta,
    Regression,
    Result,
    delta_on,
    is_firm,
    ladder_of,
    mean_text,
)

ANOTHER = (
    "The weights were trained in {}. They are one draw: another seed, number format or kind of CPU rounds differently and trains other "
    "weights, so a table made elsewhere differs in some cells. `demeanor seeds` trains several times and says what holds."
)
APPENDIX = ("items", "cost", "training", "how")
"""Anchors of the sections that come after those of other analyses."""
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
        refusals_section(result, {v.id for v in steps}),
        confidence_section(result),
        robustness_section(result),
        items_section(result),
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


# ---- sentences ----


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
            delta = delta_on(other, axis.name)
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


# ---- what an answer is worth ----


# ---- the items behind the numbers ----


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
        *([ANOTHER.format(result.settings[TRAINED])] if TRAINED in result.settings else []),
    ]
