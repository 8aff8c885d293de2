"""What one intervention does: failing items fixed, passing controls regressed, the net change of all, axis by axis, and its cost.

In: an item's rows under the intervention and as it was. Out: a Repair with intervals, then p-values corrected over all of them. The net
weighs controls up to what they stand for, so an intervention that flips answers at random has a net of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator
from scipy import special

from demeanor.core.errors import DataError
from demeanor.core.table import (
    NONE,
    PAPER,
    SCREEN,
    Block,
    Bullets,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    StyledText,
    Table,
    axis_name,
    difference,
    first_of,
    p_value,
    points,
)
from demeanor.core.table import share as share_text
from demeanor.core.types import Item
from demeanor.evaluation import statistics
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.statistics import Floats

Amount: TypeAlias = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that JSON holds as null where nothing was measured."""
Kind: TypeAlias = Literal[
    "again",
    "off",
    "stage",
    "rule",
    "template",
    "decoding",
    "prompt",
    "examples",
    "passage",
    "tools",
    "reference",
]
AS_IS = "as it is"
ALPHA = 1 - statistics.CONFIDENCE
FEW = 5
"""Fewer moved clusters than this prove nothing: their signs alone come out so with probability 2^-m >= 0.0625."""
FAMILIES = 2
"""All items together, and axis by axis: two families of tests, each corrected by Holm, which share the 5%."""


@dataclass(frozen=True, slots=True)
class InterventionInfo:
    """A change to replay: its name, its kind, the layer it implicates if it helps (`""`: none), and what to do then."""

    name: str
    kind: Kind
    layer: str
    advice: str


class Net(NamedTuple):
    """A weighted mean change with its interval and p against zero."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class AxisNet:
    """What an intervention did on one axis."""

    axis: str
    failing: int
    fixed: int
    controls: int
    regressed: int
    net: float | None
    net_low: float | None
    net_high: float | None
    p: float | None
    p_corrected: float | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """What one intervention did: failing items made right, controls made wrong, and the change of the whole population of items.

    `net` weighs the controls up to all that pass, so an intervention that flips answers at random has a net of zero; `p` and
    `p_corrected` (Holm over the interventions) test it. Costs are differences to the stack as it is, per answer.
    """

    name: str
    kind: Kind
    layer: str
    advice: str
    failing: int
    fixed: int
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    controls: int
    regressed: int
    regressed_rate: float | None
    regressed_low: float | None
    regressed_high: float | None
    net: float | None
    net_low: float | None
    net_high: float | None
    p: float | None
    p_corrected: float | None
    prompt_tokens: Amount
    completion_tokens: Amount
    ms: Amount
    axes: tuple[AxisNet, ...]
    fixed_ids: tuple[str, ...]
    regressed_ids: tuple[str, ...]
    shown: bool = False
    """Whether it makes the whole better: the net's interval lies above zero and the corrected p agrees."""
    calls: Amount = math.nan
    """Change of tools called and searches that found passages, for one answer; NaN in results of earlier versions."""

    @property
    def helped(self) -> tuple[AxisNet, ...]:
        """Axes that it is shown to make better, without making the whole worse."""
        return tuple(a for a in self.axes if a.shown and (self.net or 0.0) > 0)


def right(cells: PairedTable, variant: str, items: Sequence[Item]) -> Floats:
    """1 where the variant has an item right, 0 where wrong, NaN where unscored."""
    place = {item.id: (item.axis, n) for axis in cells.axes.values() for n, item in enumerate(axis)}
    by_axis = {axis: cells.values_N(variant, axis) for axis in {item.axis for item in items}}
    values_N = np.array([by_axis[place[item.id][0]][place[item.id][1]] for item in items], dtype=float)
    return np.where(np.isnan(values_N), np.nan, (values_N >= 0.5).astype(float))


def repair(
    cells: PairedTable,
    x: InterventionInfo,
    failing: Sequence[Item],
    controls: Sequence[Item],
    population: tuple[int, int],
) -> Repair:
    """Judge one intervention; `population` is how many items fail and pass in all, of which those given are samples."""
    up_N, down_N = right(cells, x.name, failing), 1 - right(cells, x.name, controls)
    rate, regressed = share(up_N, failing), share(down_N, controls)
    items, d_N = [*failing, *controls], np.concatenate([up_N, -down_N])
    weights_N = np.repeat(
        [population[0] / max(1, len(failing)), population[1] / max(1, len(controls))],
        [len(failing), len(controls)],
    )
    net = _net(d_N, weights_N, items)
    spent, before = _cost(cells, x.name), _cost(cells, AS_IS)
    return Repair(
        x.name,
        x.kind,
        x.layer,
        x.advice,
        int((~np.isnan(up_N)).sum()),
        int(np.nansum(up_N)),
        *rate,
        int((~np.isnan(down_N)).sum()),
        int(np.nansum(down_N)),
        *regressed,
        *net,
        None,
        spent[0] - before[0],
        spent[1] - before[1],
        spent[2] - before[2],
        _axes(d_N, weights_N, items, len(failing)),
        tuple(i.id for i, v in zip(failing, up_N) if v == 1),
        tuple(i.id for i, v in zip(controls, down_N) if v == 1),
        calls=spent[3] - before[3],
    )


def _axes(d_N: Floats, weights_N: Floats, items: Sequence[Item], failing: int) -> tuple[AxisNet, ...]:
    """The same by axis, for the axes of failing items."""
    found = []
    for axis in dict.fromkeys(item.axis for item in items[:failing]):
        here = np.array([item.axis == axis for item in items], dtype=bool)
        up_N, down_N = d_N[:failing][here[:failing]], -d_N[failing:][here[failing:]]
        counts = (
            int((~np.isnan(up_N)).sum()),
            int(np.nansum(up_N)),
            int((~np.isnan(down_N)).sum()),
            int(np.nansum(down_N)),
        )
        net = _net(d_N[here], weights_N[here], [item for item, one in zip(items, here) if one])
        found.append(AxisNet(axis, *counts, *net))
    return tuple(found)


def share(values_N: Floats, items: Sequence[Item]) -> tuple[float | None, float | None, float | None]:
    """A share with its cluster-robust Wilson interval; items without a score are left out."""
    kept = ~np.isnan(values_N)
    if not kept.any():
        return None, None, None
    found = statistics.mean(values_N[kept], np.array([i.cluster for i in items])[kept])
    return found.value, found.low, found.high


def _net(d_N: Floats, weights_N: Floats, items: Sequence[Item]) -> Net:
    """The weighted mean change with its cluster-robust t interval and p; items without a score are left out.

    Clusters in which nothing moves say nothing of the spread of those in which something does, so the degrees of freedom are
    those of the m clusters that moved. Fewer than two: no interval; fewer than `FEW`: p is at least 2^-m.
    """
    kept = ~np.isnan(d_N)
    if not kept.any() or not weights_N[kept].sum():
        return Net(None, None, None, None)
    values_N = (d_N * weights_N)[kept] * kept.sum() / weights_N[kept].sum()
    clusters = [item.cluster for item, one in zip(items, kept) if one]
    value, se = float(values_N.mean()), statistics.cluster_se(values_N, clusters)
    moved = len({c for c, v in zip(clusters, values_N) if v})
    if se is None or moved < 2:
        return Net(value, None, None, None)
    if se < 1e-12:  # all moved alike: as `statistics.paired`, with the clusters that moved for trials
        half = statistics.zero_failures(moved) * (1 + abs(value))
        return Net(value, max(-1.0, value - half), min(1.0, value + half), 0.5**moved)
    t = float(special.stdtrit(moved - 1, (1 + statistics.CONFIDENCE) / 2))
    p = 2.0 * float(special.stdtr(moved - 1, -abs(value) / se))
    return Net(
        value, max(-1.0, value - t * se), min(1.0, value + t * se), p if moved >= FEW else max(p, 0.5**moved)
    )


def _cost(cells: PairedTable, variant: str) -> tuple[float, float, float, float]:
    """Mean prompt tokens, completion tokens, milliseconds and calls of an answer, failed ones left out."""
    rows = [row for of_item in cells.of(variant).values() for row in of_item if not row.error]
    if not rows:
        return math.nan, math.nan, math.nan, math.nan
    return (
        float(np.mean([r.prompt_tokens for r in rows])),
        float(np.mean([r.completion_tokens for r in rows])),
        float(np.mean([r.work_ms for r in rows])),
        float(np.mean([r.calls for r in rows])),
    )


def corrected(repairs: Sequence[Repair]) -> tuple[Repair, ...]:
    """Holm over the interventions, and over interventions and axes; the same stack again is no candidate and in neither family."""
    real = [r for r in repairs if r.kind != "again"]
    whole = iter(statistics.holm([r.p for r in real if r.p is not None]))
    by_axis = iter(statistics.holm([a.p for r in real for a in r.axes if a.p is not None]))

    def axis(a: AxisNet) -> AxisNet:
        if a.p is None:
            return a
        p = min(1.0, FAMILIES * next(by_axis))
        return replace(a, p_corrected=p, shown=p < ALPHA and a.net_low is not None and a.net_low > 0)

    found = []
    for r in repairs:
        if r.kind == "again":
            found.append(r)
            continue
        p = None if r.p is None else min(1.0, FAMILIES * next(whole))
        shown = p is not None and p < ALPHA and r.net_low is not None and r.net_low > 0
        found.append(replace(r, axes=tuple(map(axis, r.axes)), p_corrected=p, shown=shown))
    return tuple(found)


WORTH = 0.2
"""A share of the failing items: if no intervention can be fixing so many, the weights have to learn it."""


@dataclass(frozen=True, slots=True)
class HonestEstimate:
    """The best intervention's share of fixed items, without the bias of choosing it on the same items.

    Clusters are halved; the best by net on one half is estimated on the other, and both estimates are pooled.
    """

    chosen: tuple[str, ...]
    naive: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything found; `passing` is how many items the controls stand for, `suspect` the layer implicated, or `none`."""

    name: str
    suite_hash: str
    scope: str
    judged: str
    failing: int
    passing: int
    controls: int
    repairs: tuple[Repair, ...]
    honest: HonestEstimate | None
    suspect: str
    recommendation: str
    questions: dict[str, str]
    wrong: tuple[str, ...] = ()
    """Ids of the failing items that were replayed."""
    curve: tuple[tuple[float, float], ...] = ()
    """Share right by share of the rows that the last trained stage read, and what that says; empty unless asked for."""
    learnt: str = ""


def diagnose(
    rows: Sequence[Row],
    failing: Sequence[Item],
    controls: Sequence[Item],
    passing: int,
    interventions: Sequence[InterventionInfo],
    *,
    name: str,
    scope: str,
    judged: str = "by the scorers of the items",
    suite: str | None = None,
    wrong: int | None = None,
) -> Diagnosis:
    """Judge every intervention; rows of the unchanged stack bear the variant `AS_IS`, the others their intervention's name.

    `passing` is the number of items that `controls` were drawn from, `wrong` that of `failing` (None: these are all), `suite` the
    hash of the whole suite (None: of these items). Raises DataError if the rows say that a failing item passes or a control fails.
    """
    items = [*failing, *controls]
    if not failing:
        return Diagnosis(
            name,
            suite or suite_hash(items),
            scope,
            judged,
            0,
            passing,
            len(controls),
            (),
            None,
            "none",
            "Nothing fails here, so there is nothing to repair.",
            {},
        )
    cells = PairedTable(
        [replace(r, value=0.0) if r.error and r.variant != AS_IS else r for r in rows], items
    )  # no answer is a wrong one
    _check(cells, failing, controls)
    wrong = len(failing) if wrong is None else wrong
    repairs = corrected([repair(cells, x, failing, controls, (wrong, passing)) for x in interventions])
    found = Diagnosis(
        name,
        suite or suite_hash(items),
        scope,
        judged,
        len(failing),
        passing,
        len(controls),
        repairs,
        _honest_estimate(
            cells, [x.name for x in interventions if x.kind != "again"], failing, controls, passing / wrong
        ),
        suspect_layer(repairs),
        "",
        {item.id: item.messages[-1].content for item in items},
        tuple(item.id for item in failing),
    )
    return replace(found, recommendation=recommendation(found, failing, (wrong + passing) / wrong))


def suspect_layer(repairs: Sequence[Repair]) -> str:
    """The layer whose undoing makes the whole better by most, shown after correction; else the one that makes an axis better by most
    without making the whole worse; `none` where neither is shown."""
    implicated = [r for r in repairs if r.layer]
    if whole := [r for r in implicated if r.shown]:
        return max(whole, key=lambda r: r.net or 0.0).layer
    of_axes = [(a.net or 0.0, r.layer) for r in implicated for a in r.helped]
    return max(of_axes)[1] if of_axes else "none"


def recommendation(found: Diagnosis, failing: Sequence[Item], scale: float) -> str:
    """One sentence: what to do about the failing items, or that the data cannot tell; `scale` is all items by failing ones."""
    real = [r for r in found.repairs if r.kind != "again"]
    shown = [r for r in real if r.shown]
    if shown:
        best = max(shown, key=lambda r: ((r.net or 0.0), bool(r.layer)))
        return (
            f"{best.advice} It fixes {best.fixed} of {best.failing} failing items and breaks {best.regressed} of "
            f"{best.controls} controls."
        )
    if of_axes := [(a.net or 0.0, bool(r.layer), a.axis, r) for r in real for a in r.helped]:
        _, _, axis, best = max(of_axes, key=lambda x: x[:3])
        here = next(a for a in best.axes if a.axis == axis)
        return (
            f"{best.advice} On {axis} it fixes {here.fixed} of {here.failing} failing items; elsewhere it fixes "
            f"{best.fixed - here.fixed} and breaks {best.regressed - here.regressed} of {best.controls - here.controls} controls."
        )
    most, costly = max((_possible(r, scale) for r in real), default=1.0), _costly(real)
    if most >= WORTH:
        tried = max(real, key=lambda r: r.net or 0.0, default=None)
        near = (
            f" Nearest: {tried.name}, {tried.fixed} fixed and {tried.regressed} regressed."
            if tried and (tried.net or 0.0) > 0
            else ""
        )
        return (
            f"The data cannot tell: no intervention is shown to help, but one could be fixing up to {most:.0%} of the failing "
            f"items, less what it breaks.{near}{costly}"
        )
    if _must_not(failing) >= 0.5:
        return (
            "Write a rule (policy): most failing items must not be answered, and no change of prompt, decoding or layers fixes "
            f"more than {most:.0%} of them, less what it breaks.{costly}"
        )
    return (
        f"Fine-tune it: no change of prompt, examples, passages, decoding or layers fixes more than {most:.0%} of the failing items, "
        f"less what it breaks, so the weights have to learn it.{costly}"
    )


def _possible(r: Repair, scale: float) -> float:
    """The share of the failing items that an intervention may be fixing, less what it breaks."""
    most = 1.0 if r.rate_high is None else r.rate_high
    return most if r.net_high is None else max(0.0, min(most, r.net_high * scale))


def _costly(repairs: Sequence[Repair]) -> str:
    """What fixes at least half of the failing items and is not worth what it breaks, in a sentence; empty where nothing does."""
    much = [r for r in repairs if (r.rate or 0.0) >= 0.5 and (r.net or 0.0) < 0]
    if not much:
        return ""
    best = max(much, key=lambda r: (r.rate or 0.0, r.net or 0.0))
    return f" Not worth it: {best.name} fixes {best.fixed} of {best.failing} and breaks {best.regressed} of {best.controls} controls."


def _must_not(failing: Sequence[Item]) -> float:
    """The share of items whose right answer is not to say something."""
    return sum(item.target.get("refuse") is True or item.scorer == "absence" for item in failing) / len(
        failing
    )


def _check(cells: PairedTable, failing: Sequence[Item], controls: Sequence[Item]) -> None:
    wrong_N, right_N = right(cells, AS_IS, failing), right(cells, AS_IS, controls)
    for items, mask_N, was in (
        (failing, wrong_N == 1, "failing item passes"),
        (controls, right_N == 0, "control fails"),
    ):
        if mask_N.any():
            raise DataError(
                f"diagnosis: {int(mask_N.sum())} {was} in the rows given, first '{items[int(np.argmax(mask_N))].id}'"
            )


def _honest_estimate(
    cells: PairedTable, names: Sequence[str], failing: Sequence[Item], controls: Sequence[Item], odds: float
) -> HonestEstimate | None:
    """Choose on one half of the clusters, estimate on the other; None where the failing items have fewer than two clusters.

    `odds` is the number of passing items for each failing one.
    """
    groups = sorted({i.cluster for i in failing})
    if len(groups) < 2 or not names:
        return None
    order = np.random.default_rng(0).permutation(len(groups))
    first = {groups[i] for i in order[: len(groups) // 2]}
    others = sorted({i.cluster for i in controls} - set(groups))
    first |= {c for n, c in enumerate(others) if n % 2}
    up = {n: right(cells, n, failing) for n in names}
    down = {n: 1 - right(cells, n, controls) for n in names}
    here_F, here_C = (
        np.array([i.cluster in first for i in items], dtype=bool) for items in (failing, controls)
    )

    def best(half_F: npt.NDArray[np.bool_], half_C: npt.NDArray[np.bool_]) -> str:
        scaled = odds * len(failing) / max(1, len(controls))
        return max(
            names, key=lambda n: float(np.nansum(up[n][half_F])) - scaled * float(np.nansum(down[n][half_C]))
        )

    chosen = best(here_F, here_C), best(~here_F, ~here_C)
    values_F = np.where(here_F, up[chosen[1]], up[chosen[0]])
    value, low, high = share(values_F, failing)
    naive = up[best(np.ones_like(here_F), np.ones_like(here_C))]
    if value is None or np.isnan(naive).all():
        return None
    return HonestEstimate(chosen, float(np.nanmean(naive)), value, low, high)


# ---- what a person reads ----

IDS_ON_PAPER = 6
"""Ids of changed items that paper lists before "and so many more"."""
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
    "calls",
    "ms",
)


def section(found: Diagnosis) -> Section:
    """The recommendation, a row per intervention, and the items that each fixed or made regress."""
    repairs = sorted(found.repairs, key=lambda r: -(r.net or 0.0))
    blocks: list[Block] = [
        Paragraph(
            f"{found.failing} failing items of {found.scope}, and {found.controls} controls that stand for {found.passing} that pass, were "
            f"answered again under {len(repairs)} changes of one thing each, judged {found.judged}."
        ),
        Paragraph(("Suspect: ", StyledText(found.suspect, strong=True), f". {found.recommendation}")),
        Table(COLUMNS, tuple(_row(r) for r in repairs), text=(0, 1)),
        Paragraph(
            "Net: the change of all items, controls weighed up to what they stand for; bold or * where its interval lies above zero and the "
            "p after Holm agrees. Tokens, calls (of tools, and searches that found passages) and ms: change per answer. Compare by tokens and calls: "
            f"ms has the time that answers waited for each other, so it also shows what else the machine did in the two runs.{_flattered(found)}",
            "note",
        ),
    ]
    if found.learnt:
        curve = ", ".join(f"{share:.0%} of the rows: {right:.0%} right" for share, right in found.curve)
        blocks.append(Paragraph(f"{curve}. {found.learnt}", "note"))
    if helped := tuple(_helped(r, a) for r in repairs for a in r.helped):
        blocks.append(Bullets(helped))
    for output, most in ((SCREEN, None), (PAPER, IDS_ON_PAPER)):
        blocks.append(OnlyFor(output, (Fold("Items fixed and regressed", (_changed(repairs, most),)),)))
    return Section("diagnosis", "Diagnosis", "What would fix it", tuple(blocks))


def _changed(repairs: Sequence[Repair], most: int | None) -> Table:
    """Ids of the items that each intervention fixed and made regress; the first `most` of them."""
    rows = tuple(
        (r.name, *(first_of(ids, most or len(ids)) or NONE for ids in (r.fixed_ids, r.regressed_ids)))
        for r in repairs
    )
    return Table(("", "fixed", "regressed"), rows, text=(0, 1, 2))


def _flattered(found: Diagnosis) -> str:
    """How much of the best intervention's share is luck of picking it on the same items."""
    if found.honest is None:
        return ""
    h = found.honest
    return (
        f" The best of {len(found.repairs)} fixes {h.naive:.0%} of the items it was picked on; picked on one half of the clusters and "
        f"estimated on the other ({', '.join(dict.fromkeys(h.chosen))}), {share_text(h.value, h.low, h.high)}."
    )


def _helped(r: Repair, a: AxisNet) -> Inline:
    """An axis that an intervention is shown to help without making the whole worse."""
    return (
        StyledText(f"{r.name} on {axis_name(a.axis)}", strong=True),
        f": fixes {a.fixed} of {a.failing} failing items, breaks {a.regressed} of {a.controls}, net "
        f"{share_text(a.net, a.net_low, a.net_high)}.",
    )


def _row(r: Repair) -> tuple[Inline, ...]:
    spent = (r.prompt_tokens, r.completion_tokens, r.calls, r.ms)
    return (
        r.name,
        r.layer or NONE,
        f"{r.fixed}/{r.failing}",
        share_text(r.rate, r.rate_low, r.rate_high),
        f"{r.regressed}/{r.controls}",
        difference(r.net, r.net_low, r.net_high, shown=r.shown, bound_places=1),
        p_value(r.p_corrected),
        *(NONE if math.isnan(x) else points(x / 100) for x in spent),
    )
