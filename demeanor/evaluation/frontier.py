"""The frontier of safety and helpfulness: safe requests answered, unsafe ones refused, and capability, by weights and by policy.

In: rows and items, and the points to place (variant and label). Out: one `Frontier` tree, nothing rendered. The refusal numbers are
those of profile.py; capability is the mean over all items that are no contrast twins; the tax is counted in items.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from scipy import special

from demeanor.core import registry
from demeanor.core.errors import ContextError, DataError, DemeanorError
from demeanor.core.long_text import Folded
from demeanor.core.table import (
    NONE,
    NOT_SCREEN,
    SCREEN,
    Block,
    BlockGroup,
    Figure,
    Fold,
    OnlyFor,
    Paragraph,
    Section,
    Table,
    estimate,
    first_of,
    number,
    p_value,
    percent,
    plural,
)
from demeanor.core.types import Decoding, Item, Text, Turn, complete
from demeanor.evaluation import statistics
from demeanor.evaluation.answer_report import refusal_figures
from demeanor.evaluation.experiment import Experiment, sampled
from demeanor.evaluation.items import SAFE, UNSAFE, suite_hash
from demeanor.evaluation.ladder_sentences import rate_text
from demeanor.evaluation.profile import NOBODY, calibration, cost_of, mean_of, refusals
from demeanor.evaluation.result import Calibration, Mean, Refusals, mean_text, save
from demeanor.evaluation.result_rows import PairedTable, Row, note_answers
from demeanor.evaluation.runtime import Runtime, Services
from demeanor.evaluation.scorers import score_item
from demeanor.evaluation.statistics import Floats
from demeanor.layers.policy import Spec, matching
from demeanor.layers.policy.rules import RuleSpec
from demeanor.stack.schema import Remote
from demeanor.stack.stack import Stack, decoding_of


@dataclass(frozen=True, slots=True)
class KlFromParent:
    """Log p(answer) of a stage minus that of its parent, in nats, for one answer of `tokens` tokens that the stage drew."""

    item_id: str
    cluster: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """How likely an answer was to its own weights, and whether it is right."""

    item_id: str
    confidence: float
    right: bool
    cluster: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL to the parent in nats per answer, with its cluster-robust t interval, and per token."""

    value: float
    low: float | None
    high: float | None
    per_token: float
    n: int


@dataclass(frozen=True, slots=True)
class Tax:
    """An item that was right before and is wrong now, with both answers."""

    item_id: str
    axis: str
    question: str
    before: str
    now: str


@dataclass(frozen=True, slots=True)
class Point:
    """One variant on the frontier; `lost` are the items that its predecessor `before` had right and it has wrong (the tax)."""

    variant: str
    label: str
    refusals: Refusals
    capability: Mean
    before: str | None
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    mean_ms: float
    dominated_by: tuple[str, ...]
    """Labels of points at least as good on all three measured values and better on one; values, not intervals."""
    mean_tokens: float = 0.0
    """Tokens read and written for one answer."""
    tax: tuple[Tax, ...] = ()
    divergence: Divergence | None = None
    calibration: Calibration | None = None
    rule: str = ""
    """The rule of cues whose `threshold` this point has, where thresholds were swept."""
    threshold: float | None = None
    swept: bool = False
    """Is it there only to show another threshold than the declared one?"""
    mean_written: float | None = None
    """Of `mean_tokens`, those that the model wrote; None in results of earlier versions."""
    mean_calls: float | None = None
    """Tools called and searches that found passages, for one answer."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """All points, in the order given."""

    name: str
    suite_hash: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A variant to place: its label, the variant that it came from, and where thresholds were swept its rule and threshold.

    `swept` points are there only to show another threshold than the declared one; they dominate no other point.
    """

    label: str
    before: str | None = None
    rule: str = ""
    threshold: float | None = None
    swept: bool = False


def frontier(
    rows: Sequence[Row],
    items: Sequence[Item],
    placements: Mapping[str, Placement],
    *,
    name: str,
    moved: Mapping[str, Sequence[KlFromParent]] | None = None,
    answered: Mapping[str, Sequence[Answered]] | None = None,
) -> Frontier:
    """Place the variants; `moved` and `answered` are log-probabilities of answers by variant, where they were measured.

    Raises DataError without contrast twins.
    """
    cells = PairedTable(rows, items)
    found = []
    for variant, placement in placements.items():
        picture, before = refusals(cells, variant), placement.before
        spent = cost_of(cells, variant)
        if picture is None or spent is None:
            raise DataError(
                f"frontier: {variant} has no scored items on both '{SAFE}' and '{UNSAFE}'; wanted contrast twins"
            )
        values_N, clusters, ids = _capability(cells, variant)
        old_N = _capability(cells, before)[0] if before else values_N
        changes = [(i, a >= 0.5, b >= 0.5) for i, a, b in zip(ids, old_N, values_N) if not np.isnan(a + b)]
        lost = tuple(i for i, a, b in changes if a and not b)
        found.append(
            Point(
                variant,
                placement.label,
                picture,
                mean_of(values_N, clusters),
                before,
                lost,
                tuple(i for i, a, b in changes if b and not a),
                spent.mean_ms,
                (),
                spent.prompt_tokens + spent.completion_tokens,
                tuple(_tax(cells, before, variant, i) for i in lost) if before else (),
                divergence((moved or {}).get(variant, ())),
                calibration_of((answered or {}).get(variant, ()), variant),
                placement.rule,
                placement.threshold,
                placement.swept,
                spent.completion_tokens,
                spent.calls,
            )
        )
    declared = [point for point in found if not point.swept]
    return Frontier(name, suite_hash(items), tuple(_with_dominators(point, declared) for point in found))


def divergence(answers: Sequence[KlFromParent]) -> Divergence | None:
    """The mean of log-ratios of drawn answers, an unbiased estimate of the KL; None without answers."""
    if not answers:
        return None
    nats_N, clusters = np.array([m.nats for m in answers]), [m.cluster for m in answers]
    value, se, count = float(nats_N.mean()), statistics.cluster_se(nats_N, clusters), len(set(clusters))
    half = None if not se else float(special.stdtrit(count - 1, (1 + statistics.CONFIDENCE) / 2)) * se
    per_token = float(nats_N.sum() / max(1, sum(m.tokens for m in answers)))
    return Divergence(
        value,
        None if half is None else value - half,
        None if half is None else value + half,
        per_token,
        len(answers),
    )


def calibration_of(answered: Sequence[Answered], variant: str = "") -> Calibration | None:
    """Calibration of the probabilities that weights gave to their own answers; None without answers."""
    if not answered:
        return None
    confidences_N = np.array([answer.confidence for answer in answered])
    right_N = np.array([float(answer.right) for answer in answered])
    clusters = [answer.cluster for answer in answered]
    return calibration(confidences_N, right_N, seed=0, clusters=clusters, variant=variant)


def _tax(cells: PairedTable, before: str, now: str, item_id: str) -> Tax:
    item = cells.items[item_id]
    old, new = cells.of(before)[item_id][0], cells.of(now)[item_id][0]
    return Tax(item_id, item.axis, item.messages[-1].content, old.text, new.text)


def _capability(cells: PairedTable, variant: str) -> tuple[Floats, list[str], list[str]]:
    axes = [axis for axis in cells.axes if axis not in (SAFE, UNSAFE)]
    values = [cells.values_N(variant, axis) for axis in axes]
    items = [item for axis in axes for item in cells.axes[axis]]
    return (
        np.concatenate(values) if values else np.array([]),
        [item.cluster for item in items],
        [item.id for item in items],
    )


def _with_dominators(point: Point, points: Sequence[Point]) -> Point:
    mine = _goods(point)
    above = [
        p.label
        for p in points
        if p is not point and all(a >= b for a, b in zip(_goods(p), mine)) and _goods(p) != mine
    ]
    return replace(point, dominated_by=tuple(above))


def _goods(point: Point) -> tuple[float, float, float]:
    r = point.refusals
    return r.safe_compliance.value or 0.0, r.unsafe_refusal.value or 0.0, point.capability.value or 0.0


TOGETHER = 32


async def kl_from_parent(
    runtime: Runtime, variant: Stack, parent: str, items: Sequence[Item], *, seed: int = 0
) -> list[KlFromParent]:
    """Log p(answer) under a stage minus under its parent, in nats, for one drawn answer (temperature 1) per item.

    Its mean estimates KL(stage || parent) per answer without bias. Both read the same tokens, so a parent with another template or
    tokenizer is compared at what the stage is prompted with. Items that do not fit the context are left out.
    """
    limit, gate = decoding_of(runtime.stack).max_tokens, asyncio.Semaphore(TOGETHER)

    async def one(n: int, item: Item) -> KlFromParent | None:
        async with gate:
            turn = Turn(item.messages, Decoding(1.0, max_tokens=limit, seed=seed + n), item.tools)
            try:
                prompt, answer, logprob = await runtime.sample(variant, turn)
                there = await runtime.logprob(parent, prompt, answer)
            except ContextError:
                return None
            return KlFromParent(item.id, item.cluster, logprob - there, len(answer))

    return [found for found in await asyncio.gather(*(one(n, item) for n, item in enumerate(items))) if found]


async def confidences(runtime: Runtime, variant: Stack, items: Sequence[Item]) -> list[Answered]:
    """The probability that a variant gave its own answer (the product over its tokens), and whether the answer is right.

    Greedy. Answers of which no probability came back (a layer refused or redacted, or called a tool) are left out.
    """
    respond, gate = runtime.respond(variant), asyncio.Semaphore(TOGETHER)
    decoding = replace(decoding_of(runtime.stack), temperature=0.0, top_logprobs=0, seed=0)

    async def one(item: Item) -> Answered | None:
        async with gate:
            try:
                done = await complete(
                    respond,
                    Turn(item.messages, decoding, item.tools, id=f"certainty-{item.id}", user="evaluation"),
                )
            except DemeanorError as error:
                note_answers((), failed=str(error))
                return None
        read = [t.logprob for event in done.events if isinstance(event, Text) for t in event.logprobs]
        value = score_item(item, done).value
        if done.refusal or not read or value is None:
            return None
        return Answered(item.id, min(1.0, math.exp(sum(read))), value >= 0.5, item.cluster)

    return [found for found in await asyncio.gather(*map(one, items)) if found]


MOST = 8
"""Thresholds of one rule; of more, so many evenly spread ones."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A variant whose rule refuses from `threshold` on; `declared`: as the file has it."""

    rule: str
    threshold: float
    declared: bool
    variant: Stack


def operating_points(variant: Stack, items: Sequence[Item], scratch: Path) -> Iterator[OperatingPoint]:
    """Every rule with a score that reads requests at every threshold worth looking at; `scratch` is a folder for the changed policy files."""
    for layer in variant.layers:
        if not isinstance(layer.spec, Spec):
            continue
        declared = matching.declared(registry.file_path(variant.root, layer.spec.rules))
        for spec in declared:
            sweepable = spec.scored and not spec.can_fail and "input" in spec.stages
            for threshold in thresholds(spec, items) if sweepable else ():
                if threshold == matching.rule(spec).threshold:
                    yield OperatingPoint(spec.name, threshold, True, variant)
                    continue
                changed = [
                    {
                        **r.model_dump(mode="json", exclude_unset=True),
                        **({"threshold": threshold} if r is spec else {}),
                    }
                    for r in declared
                ]
                path = scratch / f"{layer.name}-{spec.name}-{threshold:.9g}.yaml"
                path.write_text(yaml.safe_dump({"rules": changed}), encoding="utf-8")
                other = layer.spec.model_copy(update={"rules": str(path.resolve())})
                found = variant.with_layer(layer.name, replace(layer, spec=other))
                yield OperatingPoint(
                    spec.name,
                    threshold,
                    False,
                    replace(found, model_id=f"{variant.model_id}@{spec.name}={threshold:.9g}"),
                )


def thresholds(spec: RuleSpec, items: Sequence[Item]) -> list[float]:
    """The scores above 0 that the messages of the twins have (a threshold between two of them refuses the same), and the declared one."""
    rule = matching.rule(spec)
    weigh = rule.weigh
    assert weigh is not None, "only a rule with a score has thresholds"
    scores = (
        weigh(Folded(message.content).text)
        for item in items
        if item.axis in (SAFE, UNSAFE)
        for message in item.messages
    )
    found: list[float] = []
    most = 1 - 1e-6 if rule.has_probability else math.inf
    for score in sorted(s for s in scores if matching.ROUNDING < s < most):
        if (
            not found or score - found[-1] > matching.ROUNDING
        ):  # 0.1 + 0.2 and 0.3 are one score and refuse the same
            found.append(score)
    if len(found) > MOST:
        found = [found[round(i * (len(found) - 1) / (MOST - 1))] for i in range(MOST)]
    declared = rule.threshold
    return sorted(
        [*(s for s in found if abs(s - declared) > matching.ROUNDING), *([declared] if declared else [])]
    )


POLICY = "policy"
ASKED = 160
"""Items, at most, that the weights of a stage are asked about their own answers."""


def points(stack: Stack) -> tuple[dict[str, Stack], dict[str, Placement]]:
    """Variants to place: bare stages; each behind all layers but policy, where there is any; and behind all."""
    policies = [x.name for x in stack.layers if x.kind == POLICY]
    others = [name for name in stack.switches if name not in policies]
    variants: dict[str, Stack] = {}
    placements: dict[str, Placement] = {}
    for on, suffix in (((), ""), (tuple(others), "+layers"), (tuple(stack.switches), "+policy")):
        earlier = None
        for stage in stack.chain(stack.serve):
            variant = stack.variant(stage, *on)
            if variant.model_id in variants:
                continue
            before = stack.variant(stage, *others).model_id if suffix == "+policy" else earlier
            variants[variant.model_id] = variant
            placements[variant.model_id] = Placement(f"{stage}{suffix}", before)
            earlier = variant.model_id
    return variants, placements


def sweep(
    variants: Mapping[str, Stack], placements: Mapping[str, Placement], items: Sequence[Item], scratch: Path
) -> tuple[dict[str, Stack], dict[str, Placement]]:
    """The variants and placements with every point that has a policy also at every threshold of its rules with a score."""
    swept_variants, swept = dict(variants), dict(placements)
    for model_id, variant in variants.items():
        for point in operating_points(variant, items, scratch):
            placement = replace(placements[model_id], rule=point.rule, threshold=point.threshold)
            if not point.declared:
                label = f"{placement.label}@{point.threshold:g}"
                placement = replace(placement, label=label, swept=True)
            swept_variants[point.variant.model_id] = point.variant
            swept[point.variant.model_id] = placement
    return swept_variants, swept


def run(
    stack: Stack, services: Services, folder: Path, *, limit: int | None = None, name: str | None = None
) -> Frontier:
    """Measure every point, and of the bare stages also their KL to the parent and their calibration; write NAME.frontier.json."""
    with (
        tempfile.TemporaryDirectory(prefix="demeanor-") as scratch,
        Experiment(stack, services, folder, name=name, limit=limit) as experiment,
    ):
        variants, placements = sweep(*points(stack), experiment.items, Path(scratch))
        rows, moved, answered = asyncio.run(_measure(experiment, variants))
    found = frontier(rows, experiment.items, placements, name=experiment.name, moved=moved, answered=answered)
    save(folder, found.name, "frontier", found, stack_key=stack.key())
    return found


async def _measure(
    experiment: Experiment, variants: dict[str, Stack]
) -> tuple[list[Row], dict[str, list[KlFromParent]], dict[str, list[Answered]]]:
    rows, runtime = await experiment.rows(experiment.variants(variants.values())), experiment.runtime
    if isinstance(experiment.stack.spec.weights.base, Remote):
        return rows, {}, {}  # its tokens are another server's
    bare = {i: v for i, v in variants.items() if not any(x.behaviour for x in v.layers)}
    some = [item for item in sampled(experiment.items, ASKED) if item.messages]
    able = [item for item in some if item.axis not in (SAFE, UNSAFE)]
    moved = {
        i: await kl_from_parent(runtime, v, v.parent(v.serve), some)
        for i, v in bare.items()
        if v.serve != "base"
    }
    return rows, moved, {i: await confidences(runtime, v, able) for i, v in bare.items()}


# ---- what a person reads ----

TAXES, LOST_IDS = 3, 40
"""Lost items that the terminal, Markdown and paper show of each point, with their answers and as ids alone."""
POINTS = ("", "safe answered", "unsafe refused", "capability")


def section(found: Frontier) -> Section:
    """The picture, who refused, a row per point, other thresholds, and the items that each point lost."""
    declared = [p for p in found.points if not p.swept]
    swept = [p for p in found.points if p.threshold is not None]
    refused = [p.refusals for p in declared]
    layers = list(dict.fromkeys(by for r in refused for by in (*r.who_safe, *r.who_unsafe) if by != NOBODY))
    figures = refusal_figures(refused, {p.variant: p.label for p in declared}, layers, layers)
    return Section(
        "frontier",
        "Frontier",
        "What safety costs",
        (
            Paragraph(
                "Every set of weights, bare and behind the layers, with and without policy. A stricter rule moves the threshold along a "
                "curve; only better discrimination raises d′. Capability is the share right of everything that is no contrast twin; “items "
                "lost” were right before the stage, or without the policy, and are wrong with it. A point is beaten by those that are at "
                "least as good in all three and better in one.",
                "lead",
            ),
            figures,
            points_table(found),
            Paragraph(
                "Read, written: tokens of an answer's calls of the model; calls: tools called and searches that found passages. These three "
                "do not depend on what else the machine does: compare points by them. ms: mean time of an answer, with the time that answers "
                "waited for each other.",
                "note",
            ),
            *_thresholds(swept),
            *_own(declared),
            *(block for p in declared if p.lost for block in _lost(p)),
        ),
    )


def points_table(found: Frontier) -> Table:
    """A row per point: what is traded, what it lost and gained, what it costs, who refused, and which points beat it."""
    columns = (
        *POINTS,
        "d′",
        "threshold",
        "items lost",
        "gained",
        "read",
        "written",
        "calls",
        "ms",
        "who refused",
        "beaten by",
    )
    rows = []
    for p in found.points:
        if p.swept:
            continue
        r = p.refusals
        who = ", ".join(f"{by} {count}" for by, count in r.who_unsafe.items() if by != NOBODY)
        counts = (len(p.lost), len(p.gained), *_spent(p))
        beaten = ", ".join(p.dominated_by)
        rows.append(
            (
                p.label,
                *_traded(p),
                rate_text(r.d_prime),
                rate_text(r.criterion),
                *map(str, counts),
                who or NONE,
                beaten or NONE,
            )
        )
    return Table(columns, tuple(rows))


def _spent(p: Point) -> tuple[str, str, str, str]:
    """Tokens read and written, calls and milliseconds of one answer; tokens together where a result of an earlier version has no more."""
    if p.mean_written is None or p.mean_calls is None:
        return f"{p.mean_tokens:.0f} in all", NONE, NONE, f"{p.mean_ms:.0f}"
    return (
        f"{p.mean_tokens - p.mean_written:.0f}",
        f"{p.mean_written:.0f}",
        f"{p.mean_calls:.3g}",
        f"{p.mean_ms:.0f}",
    )


def brief(found: Frontier) -> Table:
    """A row per point: only what is traded, items lost and gained, and which points beat it."""
    rows = tuple(
        (
            p.label,
            *_traded(p),
            str(len(p.lost)),
            str(len(p.gained)),
            first_of(p.dominated_by[::-1], 1) or NONE,
        )
        for p in found.points
        if not p.swept
    )
    return Table((*POINTS, "items lost", "gained", "beaten by"), rows, text=(0, 6))


def _traded(p: Point) -> tuple[str, str, str]:
    return (
        mean_text(p.refusals.safe_compliance),
        mean_text(p.refusals.unsafe_refusal),
        mean_text(p.capability),
    )


def _thresholds(swept: Sequence[Point]) -> list[Block]:
    """What each rule of cues would do at other thresholds: a picture for each set of weights, and the numbers."""
    if not swept:
        return []
    of: dict[tuple[str, str], list[Point]] = {}
    for p in swept:
        of.setdefault((p.rule, p.label.partition("@")[0]), []).append(p)
    figures, rows = [], []
    for (rule, behind), same in of.items():
        ranked = sorted(same, key=lambda p: p.threshold or 0.0)
        labels = {p.variant: f"{p.threshold:g}" for p in ranked}
        data = {"refusals": [p.refusals for p in ranked], "labels": labels}
        figures.append(Figure("refusal_plane", data, title=f"{rule}, {behind}"))
        for p in ranked:
            at = f"{p.threshold:g}{'' if p.swept else ' (declared)'}"
            rows.append((rule, behind, at, *_traded(p), rate_text(p.refusals.d_prime)))
    columns = ("rule", "weights and layers", "threshold", *POINTS[1:], "d′")
    return [
        Paragraph("At other thresholds", "heading"),
        Paragraph(
            "The same weights and layers with one rule stricter or laxer; nothing is generated anew. A threshold chosen here is chosen on "
            "these items: let another suite, or the gate, confirm it.",
            "lead",
        ),
        BlockGroup(tuple(figures), "three"),
        Fold("The numbers", (Table(columns, tuple(rows), text=(0, 1)),)),
    ]


def _own(points: Sequence[Point]) -> list[Block]:
    """How far bare weights moved from their parent, and how well their probabilities are calibrated."""
    rows = []
    for p in points:
        kl, sure = p.divergence, p.calibration
        if not kl and not sure:
            continue
        row = [p.label, *([NONE] * 8)]
        if kl:
            row[1:3] = [estimate(kl.value, kl.low, kl.high), number(kl.per_token, 3)]
        if sure:
            perfect = f"{sure.expected:.3f} (to {sure.null_high:.3f})"
            row[3:] = [
                number(sure.ece, 3),
                perfect,
                p_value(sure.p),
                percent(sure.mean_confidence),
                percent(sure.right),
                str(sure.n),
            ]
        rows.append(tuple(row))
    if not rows:
        return []
    columns = (
        "",
        "KL to parent",
        "per token",
        "calibration error",
        "if perfect",
        "p",
        "mean confidence, %",
        "right, %",
        "answers",
    )
    return [
        Paragraph(
            "How far the weights moved and how sure they are, with no layer around them. KL: nats per answer between a stage and its parent, "
            "from one drawn answer per item. Calibration error: how far the probability of its own answers lies from the share that is right, "
            "beside what a perfectly calibrated model would show with so few items.",
            "lead",
        ),
        Table(columns, tuple(rows), "bare weights"),
    ]


def _lost(p: Point) -> list[Block]:
    """The items that were right before this point and are wrong now, with both answers where they were kept."""
    title = f"{p.label}: {plural(len(p.lost), 'item')} right before and wrong now"
    if not p.tax:
        ids = (Paragraph(first_of(p.lost, most)) for most in (len(p.lost), LOST_IDS))
        return [Fold(title, tuple(map(OnlyFor, (SCREEN, NOT_SCREEN), zip(ids))))]
    rows = tuple((t.item_id, t.question, t.before, t.now) for t in p.tax)
    table, few = (
        Table(("item", "question", "before", "now"), some, text=(0, 1, 2, 3)) for some in (rows, rows[:TAXES])
    )
    left = len(rows) - TAXES
    more = (
        (Paragraph(f"{plural(left, 'more item')} in the page, not printed here.", "note"),)
        if left > 0
        else ()
    )
    return [Fold(title, (OnlyFor(SCREEN, (table,)), OnlyFor(NOT_SCREEN, (few, *more))))]
