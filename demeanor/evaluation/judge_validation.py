"""Judge validation: how far the verdicts of a judge agree with people and with themselves when the order of answers is swapped.

In: pairs of answers with people's preferences; or ratings_NR (N units, R raters, NaN where one is missing), verdicts_N (1: the answer shown
first won), clusters. Out: a `JudgeValidation`: accuracy, Fleiss' kappa, position bias; Krippendorff's alpha of any ratings.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from demeanor.core.errors import DataError, DemeanorError, UsageError
from demeanor.core.files import origin
from demeanor.core.table import NONE, Paragraph, Section, Table, estimate, p_value, plural, share
from demeanor.core.types import Messages, Preference
from demeanor.data import rows
from demeanor.data.readers import Bad, raw_rows
from demeanor.evaluation.experiment import at_once, named
from demeanor.evaluation.judge import NO_JUDGE, JudgeClient, judge_client
from demeanor.evaluation.result import save
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import (
    Estimate,
    Floats,
    Labels,
    cluster_draws,
    expanded,
    mcnemar_exact,
    mean,
    percentile,
)
from demeanor.stack.stack import Stack, digest

Level: TypeAlias = Literal["nominal", "ordinal", "interval"]
DRAWS = 2000


class Agreement(NamedTuple):
    """A coefficient (1: perfect, 0: as by chance) with its cluster-bootstrap interval; None: nothing varies, between resamples or at all, or one cluster."""

    value: float | None
    low: float | None
    high: float | None
    units: int
    ratings: int


class Position(NamedTuple):
    """What happens to a verdict when the order is swapped: the answer wins again (`consistent`), or the place does (`first`, `second`)."""

    consistent: Estimate
    follows: Estimate
    first: Estimate
    second: Estimate
    p: float
    """Exact sign test: among verdicts that follow the place, first and second are equally likely."""


def alpha(
    ratings_NR: Floats, clusters: Labels, *, level: Level, draws: int = DRAWS, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha = 1 - observed / expected disagreement over pairable ratings; clusters of units are resampled.

    Ordinal distances are differences of midranks (equal to Krippendorff's sum of marginals between two ranks), taken anew in each resample.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    counts_NV, values_V = _counts(ratings_NR)
    kept = counts_NV.sum(axis=1) >= 2  # a rating without a partner says nothing about agreement
    counts_UV = counts_NV[kept]
    return _interval(
        lambda weights_U: _alpha(counts_UV, values_V, weights_U, level),
        counts_UV,
        np.asarray(clusters)[kept],
        draws,
        seed,
    )


def fleiss(ratings_NR: Floats, clusters: Labels, *, draws: int = DRAWS, seed: int = 0) -> Agreement:
    """Fleiss' kappa = (P - P_e) / (1 - P_e) of complete nominal ratings (two raters: Scott's pi); raises DataError if one is missing.

    Source: Fleiss 1971, equations 3 to 7.
    """
    if np.isnan(ratings_NR).any() or ratings_NR.shape[1] < 2:
        raise DataError(
            "fleiss: wanted two ratings or more of every unit and none missing; Krippendorff's alpha takes the others"
        )
    counts_NV, _ = _counts(ratings_NR)
    return _interval(
        lambda weights_N: _fleiss(counts_NV, weights_N), counts_NV, np.asarray(clusters), draws, seed
    )


def position(forward_N: Floats, swapped_N: Floats, clusters: Labels) -> Position:
    """Position bias of a pairwise judge that was asked in both orders; 1 where the answer shown first won, 0 where the second did.

    Equal verdicts in both orders chose another answer each time: they followed the place. Wilson intervals, effective n.
    """
    same_N = forward_N == swapped_N
    first_N, second_N = same_N & (forward_N == 1), same_N & (forward_N == 0)
    shares = [mean(x_N.astype(float), clusters) for x_N in (~same_N, same_N, first_N, second_N)]
    return Position(
        shares[0], shares[1], shares[2], shares[3], mcnemar_exact(int(first_N.sum()), int(second_N.sum()))
    )


def accuracy(verdicts_N: Floats, people_N: Floats, clusters: Labels) -> Estimate:
    """The share of a judge's verdicts that are what people said, with a Wilson interval at the effective sample size of the clusters."""
    return mean((verdicts_N == people_N).astype(float), clusters)


def _counts(ratings_NR: Floats) -> tuple[Floats, Floats]:
    """How often each value was given to each unit, and the values in rising order."""
    given_NR = ~np.isnan(ratings_NR)
    values_V, place = np.unique(ratings_NR[given_NR], return_inverse=True)
    counts_NV = np.zeros((len(ratings_NR), len(values_V)))
    np.add.at(counts_NV, (np.nonzero(given_NR)[0], place.reshape(-1)), 1.0)
    return counts_NV, values_V


def _alpha(counts_UV: Floats, values_V: Floats, weights_U: Floats, level: Level) -> float:
    """Alpha with each unit counted `weights_U` times; NaN where no disagreement is to be expected."""
    sizes_U, totals_V = counts_UV.sum(axis=1), weights_U @ counts_UV
    n = float(totals_V.sum())
    if level == "nominal":
        apart_U = sizes_U**2 - (counts_UV**2).sum(axis=1)
        expected = n**2 - float((totals_V**2).sum())
    else:
        # the sum of (a - b)^2 over ordered pairs is 2 (n sum a^2 - (sum a)^2)
        s_V = values_V if level == "interval" else np.cumsum(totals_V) - totals_V / 2
        s_V = s_V - float(totals_V @ s_V) / max(n, 1.0)  # distances do not move, squares stay small
        apart_U = 2 * (sizes_U * (counts_UV @ s_V**2) - (counts_UV @ s_V) ** 2)
        expected = 2 * (n * float(totals_V @ s_V**2) - float(totals_V @ s_V) ** 2)
    if expected <= 1e-12 * n * n:
        return math.nan
    return 1 - (n - 1) * float(weights_U @ (apart_U / (sizes_U - 1))) / expected


def _fleiss(counts_NV: Floats, weights_N: Floats) -> float:
    """Kappa with each unit counted `weights_N` times; NaN where chance agrees always."""
    raters, n = float(counts_NV[0].sum()), float(weights_N.sum())
    agreed_N = ((counts_NV**2).sum(axis=1) - raters) / (raters * (raters - 1))
    chance = float((((weights_N @ counts_NV) / (n * raters)) ** 2).sum())
    return math.nan if chance > 1 - 1e-12 else (float(weights_N @ agreed_N) / n - chance) / (1 - chance)


def _interval(
    coefficient: Callable[[Floats], float], counts_UV: Floats, clusters_U: Labels, draws: int, seed: int
) -> Agreement:
    """A coefficient and the percentiles of its values over resampled clusters, levels widened for few of them (Hesterberg 2015)."""
    units, ratings = len(counts_UV), int(counts_UV.sum())
    value = coefficient(np.ones(units)) if units else math.nan
    if math.isnan(value):
        return Agreement(None, None, None, units, ratings)
    index_U, counts_RG = cluster_draws(clusters_U, draws=draws, seed=seed)
    G = counts_RG.shape[1]
    if G < 2:
        return Agreement(value, None, None, units, ratings)
    values_R = np.array([coefficient(drawn_G[index_U].astype(float)) for drawn_G in counts_RG])
    low, high = percentile(values_R, expanded(G))
    if high - low < 1e-12:  # nothing varied between resamples: that is no certainty
        return Agreement(value, None, None, units, ratings)
    return Agreement(value, low, high, units, ratings)


LLMBAR = frozenset(("input", "output_1", "output_2", "label"))
CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class HumanPair:
    """Two answers to one request, of which people found number `better` (1 or 2) better; `where` it stands in its file."""

    where: str
    request: str
    answers: tuple[str, str]
    better: int


@dataclass(frozen=True, slots=True)
class ValidatedPair:
    """What the judge chose of a pair, the answer's own number whatever its place: as given, swapped; None where it gave no verdict."""

    where: str
    better: int
    as_given: int | None
    swapped: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class JudgeValidation:
    """The measured trustworthiness of a judge; `position` and `kappa` are None where one order or nothing was read."""

    name: str
    judge: dict[str, Any]
    pairs_file: str
    pairs_hash: str
    pairs: int
    verdicts: int
    unread: int
    accuracy: Estimate | None
    kappa: Agreement | None
    position: Position | None
    cost: Mapping[str, int | float]
    made: Mapping[str, Any]
    each: tuple[ValidatedPair, ...]


def pairs(path: Path, limit: int | None = None) -> list[HumanPair]:
    """The first `limit` pairs of a .json or .jsonl file; raises DataError with every row that is none."""
    found: list[HumanPair] = []
    problems: list[str] = []
    for where, raw in raw_rows(path):
        if len(found) == limit:
            break
        try:
            if isinstance(raw, Bad) or not isinstance(raw, Mapping):
                raise ValueError(
                    raw.why if isinstance(raw, Bad) else f"got a {type(raw).__name__}, wanted an object"
                )
            found.append(_llmbar(raw, where) if set(raw) >= LLMBAR else _preference(raw, where))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise DataError(
            f"{path}: {len(problems)} rows are no pairs; wanted {', '.join(sorted(LLMBAR))} (LLMBar) or {rows.PREFERENCES}\n  "
            + "\n  ".join(problems[:10])
        )
    if not found:
        raise DataError(f"{path}: has no pairs")
    return found


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    path: Path,
    *,
    limit: int | None = None,
    name: str | None = None,
) -> JudgeValidation:
    """Compare the stack's judge with people's preferences in a file and write NAME.judge.json."""
    spec = stack.spec.evaluation.judge
    if spec is None:
        raise UsageError(NO_JUDGE.format(stack=stack.path))
    name, given = named(stack, name, None), pairs(path, limit)
    judge = judge_client(spec, folder / f"{name}.verdicts.jsonl", services.connect)
    found = validate(judge, given, name, path)
    print(judge.summary())
    save(folder, name, "judge", found)
    return found


def validate(judge: JudgeClient, given: Sequence[HumanPair], name: str, path: Path) -> JudgeValidation:
    """Ask the judge about every pair and compare it with people and with itself; raises DemeanorError if not one verdict could be read."""
    each = asyncio.run(_all(judge, given))
    if all(one.as_given is None and one.swapped is None for one in each):
        raise DemeanorError(
            f"evaluation.judge: no verdict on {len(each)} pairs could be read; the first: {each[0].problem}"
        )
    groups = [digest(pair.request) for pair in given]  # pairs about one request are not independent
    accuracy, kappa = against_people(each, groups)
    asked = len(each) * (1 + judge.judge.both_orders)
    read = sum(x is not None for one in each for x in (one.as_given, one.swapped))
    return JudgeValidation(
        name,
        judge.judge.model_dump(mode="json", exclude={"key_env"}),
        str(path),
        digest([asdict(pair) for pair in given]),
        len(given),
        read,
        asked - read,
        accuracy,
        kappa,
        when_swapped(each, groups),
        judge.cost(),
        origin(),
        tuple(each),
    )


def against_people(each: Sequence[ValidatedPair], groups: Sequence[str]) -> tuple[Estimate, Agreement]:
    """Accuracy and Fleiss' kappa of judge and people over all verdicts, each about which place the better answer had."""
    told = [
        (float(chosen == first), float(one.better == first), group)
        for one, group in zip(each, groups, strict=True)
        for chosen, first in ((one.as_given, 1), (one.swapped, 2))
        if chosen is not None
    ]
    judge_N, people_N, names = (
        np.array([t[0] for t in told]),
        np.array([t[1] for t in told]),
        [t[2] for t in told],
    )
    return accuracy(judge_N, people_N, names), fleiss(np.stack([judge_N, people_N], axis=1), names)


def when_swapped(each: Sequence[ValidatedPair], groups: Sequence[str]) -> Position | None:
    """What swapping the order does to the verdicts; None where no pair has both."""
    both = [(one, group) for one, group in zip(each, groups, strict=True) if one.as_given and one.swapped]
    if not both:
        return None
    forward_N, swapped_N = (
        np.array([float(x) for x in firsts])
        for firsts in ([one.as_given == 1 for one, _ in both], [one.swapped == 2 for one, _ in both])
    )  # swapped, answer 2 stands first
    return position(forward_N, swapped_N, [group for _, group in both])


async def _all(judge: JudgeClient, given: Sequence[HumanPair]) -> list[ValidatedPair]:
    jobs = [_judged(judge, pair) for pair in given]
    return await at_once("judging", jobs, CONCURRENCY, lambda: len(judge.failures))


async def _judged(judge: JudgeClient, pair: HumanPair) -> ValidatedPair:
    """A pair in both orders; or in the one that its content decides, so that the better answer has no place of its own."""
    swap_alone = bool(int(digest(pair.request + pair.answers[0]), 16) % 2)
    chosen = await judge.better(pair.request, pair.answers, swap_alone=swap_alone)
    return ValidatedPair(pair.where, pair.better, chosen.as_given, chosen.swapped, chosen.problem)


def _llmbar(raw: Mapping[str, Any], where: str) -> HumanPair:
    request, first, second, label = (raw[name] for name in ("input", "output_1", "output_2", "label"))
    if not all(isinstance(text, str) for text in (request, first, second)) or label not in (1, 2):
        raise ValueError(f"wanted input, output_1 and output_2 as text and label 1 or 2; got label {label!r}")
    return HumanPair(where, request, (first, second), label)


def _preference(raw: Mapping[str, Any], where: str) -> HumanPair:
    """The better one comes first or second as its content decides."""
    found = rows.parse(raw, "preferences", where)
    if not isinstance(found, Preference) or len(found.completions) != 2:
        raise ValueError("wanted two completions of one prompt")
    best, worst = (
        _text(c) for _, c in sorted(zip(found.ranks, found.completions, strict=True), key=lambda x: x[0])
    )
    swap = bool(int(digest([best, worst]), 16) % 2)
    return HumanPair(where, _text(found.prompt), (worst, best) if swap else (best, worst), 2 if swap else 1)


def _text(messages: Messages) -> str:
    return (
        messages[0].content if len(messages) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in messages)
    )


# ---- what a person reads ----


def section(found: JudgeValidation) -> Section:
    """What was measured of the judge, a row each with its interval."""
    shares: list[tuple[str, Estimate | None]] = [("right, as people said (chance: 50%)", found.accuracy)]
    rows = [("Fleiss' kappa with people (chance: 0)", estimate(*found.kappa[:3]) if found.kappa else NONE)]
    if found.position:
        shares += [
            ("same answer in both orders", found.position.consistent),
            ("follows the place instead", found.position.follows),
            ("  always the first", found.position.first),
            ("  always the second", found.position.second),
        ]
        rows.append(("first and second equally often: p", p_value(found.position.p)))
    measured = [(name, share(*value[:3], places=1) if value else NONE) for name, value in shares]
    about = (
        f"{found.judge['model']} at {found.judge['url']}: {plural(found.pairs, 'pair')}, {plural(found.verdicts, 'verdict')}, "
        f"{found.unread} without a verdict."
    )
    table = Table(("", "measured (95% interval)"), (*measured, *rows))
    return Section("judge", "Judge", "How far the judge agrees with people", (Paragraph(about), table))
