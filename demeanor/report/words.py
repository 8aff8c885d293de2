"""Numbers as words: points, intervals and the sentences of the report, each made from the numbers it states.

In: parts of a result. Out: plain text. No sentence says more than its interval: one that covers zero is "no change shown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from demeanor.report.shape import Comparison, Delta, Mean, Rate, Regression, Result, Variant

MINUS, WEIGHTS, NOBODY = "−", "weights", "nobody"
DOUBT = " Its own interval excludes zero; corrected for the many comparisons of the table, it would not."


def percent(value: float | None) -> str:
    """A share as whole per cent, never rounded to 0 or 100 unless it is: 0.997 is '>99'."""
    if value is None:
        return "–"
    rounded = round(100 * value)
    if rounded == 100 and value < 1:
        return ">99"
    return "<1" if rounded == 0 and value > 0 else str(rounded)


def points(value: float | None) -> str:
    """A difference of shares in signed percentage points."""
    if value is None:
        return "–"
    rounded = round(100 * value)
    return f"+{rounded}" if rounded > 0 else f"{MINUS}{-rounded}" if rounded < 0 else "0"


def interval(found: Delta) -> str:
    """`+3 to +14`; a comparison without clusters to spare has none."""
    if found["low"] is None or found["high"] is None:
        return "no interval"
    return f"{_signed(found['low'])} to {_signed(found['high'])}"


def _signed(value: float) -> str:
    """A bound in points; one decimal where rounding would move it onto zero."""
    if value != 0 and round(100 * value) == 0:
        return f"{'+' if value > 0 else MINUS}{abs(100 * value):.1f}"
    return points(value)


def mean_interval(found: Mean) -> str:
    if found["value"] is None:
        return "not measured"
    if found["low"] is None or found["high"] is None:
        return f"{percent(found['value'])}%, no interval (one cluster)"
    return f"{percent(found['value'])}% ({percent(found['low'])} to {percent(found['high'])})"


def rate_interval(found: Rate) -> str:
    return f"{number(found['value'])} ({number(found['low'])} to {number(found['high'])})"


def number(value: float, places: int = 2) -> str:
    """A number with a true minus; what rounds to zero has none."""
    return f"{value:z.{places}f}".replace("-", MINUS)


def axis_name(name: str) -> str:
    return name.replace("_", " ")


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def ladder_of(result: Result) -> list[Variant]:
    """The variants of the ladder in order."""
    known = {variant["id"]: variant for variant in result["variants"]}
    steps = result["steps"]
    ids = [steps[0]["before"], *(step["after"] for step in steps)] if steps else [result["variants"][0]["id"]]
    return [known[i] for i in ids]


def labels_of(result: Result) -> dict[str, str]:
    """Variant id -> short label."""
    return {variant["id"]: re.sub("^-", MINUS, variant["label"]) for variant in result["variants"]}


def layers_of(result: Result) -> list[str]:
    """Every layer that spent time or declined, the weights first: the order of their colours."""
    spent = [name for s in result["cost"] for name in s["layer_ms"]]
    declined = [
        name for r in result["refusals"] for name in (*r["who_unsafe"], *r["who_safe"]) if name != NOBODY
    ]
    return list(dict.fromkeys([WEIGHTS, *spent, *declined]))


# ---- sentences ----


def headline(result: Result) -> str:
    """What the whole stack changed against its base, counted by corrected verdicts."""
    if result["whole"] is None:
        return f"{result['name']} on {plural(result['items'], 'question')}"
    verdicts = [delta["verdict"] for delta in result["whole"]["deltas"]]
    rungs = ladder_of(result)
    first, last = (
        rungs[0]["label"],
        "the whole stack" if result["without"] else rungs[-1]["label"].lstrip("+"),
    )
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if better and not worse:
        return f"From {first} to {last}, {_of(better, len(verdicts))} improved{_rest(verdicts)}."
    if worse and not better:
        return f"From {first} to {last}, {_of(worse, len(verdicts))} got worse{_rest(verdicts)}."
    if better and worse:
        return f"From {first} to {last}, {_of(better, len(verdicts))} improved and {worse} got worse{_rest(verdicts)}."
    return f"From {first} to {last}, no behaviour shows a change on these {result['items']:,} questions."


def _of(count: int, total: int) -> str:
    return (
        f"all {total} behaviours"
        if count == total and total > 1
        else f"{count} of {plural(total, 'behaviour')}"
    )


def _rest(verdicts: Sequence[str]) -> str:
    quiet = len(verdicts) - verdicts.count("better") - verdicts.count("worse")
    return "" if not quiet else f"; for {quiet} no change is shown"


def biggest_steps(result: Result, count: int = 3) -> list[str]:
    """The largest improvements that survive the correction, at most one per step."""
    best: list[tuple[float, str]] = []
    for step in result["steps"]:
        gains = [d for d in step["deltas"] if d["verdict"] == "better" and d["value"] is not None]
        if gains:
            top = max(gains, key=lambda d: d["value"] or 0.0)
            best.append(
                (top["value"] or 0.0, f"+{step['name']} raised {axis_name(top['axis'])} by {_by(top)}")
            )
    return [text for _, text in sorted(best, key=lambda x: -x[0])[:count]]


def idle_steps(result: Result) -> list[str]:
    """Steps whose every interval covers zero."""
    return [step["name"] for step in result["steps"] if not any(d["shown"] for d in step["deltas"])]


def cost_sentence(cost: Regression) -> str:
    """One honest cost, with its interval and whether it survives the correction."""
    delta = cost["delta"]
    axis = axis_name(delta["axis"])
    by = _by(delta)
    told = (
        f"Adding {cost['name']} lowered {axis} by {by}"
        if cost["kind"] == "step"
        else (f"In the whole stack, {axis} is lower with {cost['name']} than without it, by {by}")
    )
    count = f"{plural(delta['regressed'], 'item')} newly wrong, {delta['fixed']} newly right."
    return f"{told}. {count}{'' if cost['certain'] else DOUBT}"


def cost_headline(result: Result) -> str | None:
    """The worst loss on the ladder in one line, and how many more there are."""
    steps = [cost for cost in result["regressions"] if cost["kind"] == "step"]
    if not steps:
        return None
    doubt = "" if steps[0]["certain"] else ", which does not survive the correction for many comparisons"
    left = len(steps) - 1
    more = f" {left} more {'loss' if left == 1 else 'losses'} below." if left else ""
    worst = steps[0]["delta"]
    return f"+{steps[0]['name']} lowered {axis_name(worst['axis'])} by {_by(worst)}{doubt}.{more}"


def beside_sentence(comparison: Comparison) -> str:
    """The whole stack against somebody else's assistant, counted by corrected verdicts."""
    verdicts = [delta["verdict"] for delta in comparison["deltas"]]
    better, worse = (
        [axis_name(d["axis"]) for d in comparison["deltas"] if d["verdict"] == want]
        for want in ("better", "worse")
    )
    told = [f"better on {listed(better)}"] * bool(better) + [f"worse on {listed(worse)}"] * bool(worse)
    quiet = len(verdicts) - len(better) - len(worse)
    alone = [
        axis_name(d["axis"])
        for d in comparison["deltas"]
        if d["shown"] and d["verdict"] not in ("better", "worse")
    ]
    if not told and alone:
        return (
            f"Beside {comparison['name']}: no difference of the whole stack is shown after Holm's correction; "
            f"before it, the interval excludes zero on {listed(alone)}."
        )
    if not told:
        return f"Beside {comparison['name']}: no difference of the whole stack is shown on any behaviour."
    rest = f"; for {quiet} no difference is shown" if quiet else ""
    return f"Beside {comparison['name']}: the whole stack is {' and '.join(told)}{rest}."


def no_costs(result: Result) -> str:
    """What may be said when nothing fell: only as much as the design could have found."""
    sizes = [axis["detectable"] for axis in result["axes"] if axis["detectable"] is not None]
    if not sizes:
        return "No step shows a loss, but with so few clusters none could have been shown."
    low, high = percent(min(sizes)), percent(max(sizes))
    span = low if low == high else f"{low} to {high}"
    return f"No step shows a loss on any axis. Losses smaller than about {span} points could well go unseen at this size."


def _by(delta: Delta) -> str:
    """The size of a difference in points, with its interval as sizes in the same direction."""
    value, low, high = delta["value"] or 0.0, delta["low"], delta["high"]
    size = f"{100 * abs(value):.0f}"
    if low is None or high is None:
        return f"{size} points"
    bounds = sorted((low, high), key=abs)
    if low < 0 < high or value == 0:
        return f"{size} points (interval {interval(delta)})"
    return f"{size} points (interval {_size(bounds[0])} to {_size(bounds[1])})"


def _size(bound: float) -> str:
    return _signed(abs(bound)).lstrip("+")


def delta_sentence(name: str, delta: Delta) -> str:
    """One comparison in words."""
    axis = axis_name(delta["axis"])
    if delta["value"] is None:
        return f"{name} on {axis}: not measured."
    if not delta["shown"]:
        return f"{name} on {axis}: no change shown ({points(delta['value'])} points, {interval(delta)}; n {delta['n']})."
    verb = "raised" if delta["value"] > 0 else "lowered"
    firm = "" if delta["verdict"] in ("better", "worse") else "; not after correction"
    return f"{name} {verb} {axis} by {_by(delta)}{firm}; n {delta['n']} in {plural(delta['clusters'], 'cluster')}."


def crowd(result: Result) -> str:
    """What the setting `concurrency` means for the times, where it was handed in."""
    at_once = result["settings"].get("concurrency")
    if not isinstance(at_once, int) or at_once < 2:
        return ""
    return (
        f" Up to {at_once} questions were answered at once, so the times compare variants on this machine and are not the latency "
        "of a single user."
    )


COMPARISON_COLUMNS = (
    "",
    "axis",
    "points",
    "interval",
    "p",
    "p (Holm)",
    "verdict",
    "newly right",
    "newly wrong",
    "n (clusters)",
    "smallest detectable",
)


def comparison_row(delta: Delta) -> list[str]:
    """One paired difference as the cells of `COMPARISON_COLUMNS` after the first."""
    return [
        axis_name(delta["axis"]),
        points(delta["value"]),
        interval(delta),
        p_value(delta["p"]),
        p_value(delta["p_holm"]),
        delta["verdict"],
        str(delta["fixed"]),
        str(delta["regressed"]),
        f"{delta['n']} ({delta['clusters']})",
        percent(delta["detectable"]),
    ]


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def method(result: Result) -> list[str]:
    """How the numbers were made."""
    seeds = f"seed{'s' * (len(result['seeds']) > 1)} {listed([str(seed) for seed in result['seeds']])}"
    return [
        f"{plural(result['items'], 'item')}, the same for every variant, with {seeds}; an item's value is the mean over its "
        "seeds.",
        f"Differences are paired by item. Intervals are {round(100 * result['confidence'])}% intervals with cluster-robust "
        "standard "
        "errors (t, clusters minus one degrees of freedom), and never narrower than what as many unchanged items leave open.",
        "Means have Wilson intervals at the effective sample size of the same clusters. J, d′ and the criterion have percentile "
        "intervals of 2,000 cluster resamples (seed 0).",
        "A verdict is Holm-corrected over all comparisons and axes of its table; colours mark single intervals that exclude "
        "zero. "
        "Losses are listed by their single interval, so that the correction hides none.",
        "The smallest detectable difference is the true change that this design would find four times in five.",
    ]
