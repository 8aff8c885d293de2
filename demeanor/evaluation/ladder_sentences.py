"""What the report of an evaluation says in words: of steps, regressions and external models; and the names and colours it uses.

In: a Result or parts of one. Out: sentences. None says more than its interval: one that covers zero is "no change shown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from demeanor.core.table import (
    MINUS,
    axis_name,
    estimate,
    interval,
    listed,
    percent,
    plural,
    points,
    size,
)
from demeanor.evaluation.profile import NOBODY
from demeanor.evaluation.result import (
    Comparison,
    Delta,
    Rate,
    Regression,
    Result,
    is_firm,
    ladder_of,
)
from demeanor.evaluation.result_rows import WEIGHTS

NOT_CORRECTED = (
    " Its own interval excludes zero, but not after correction for the many comparisons of the table."
)


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
