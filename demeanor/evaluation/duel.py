"""Duels: a judge compares the answers of two variants; length-controlled win rates and Bradley-Terry ratings with intervals.

In: a stack with a judge; or preferences_N in [0, 1] (1: the candidate won, 0.5: a tie), lengths, opponents, clusters. Out: a `DuelResult`
with every comparison. Intervals resample clusters.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from demeanor.core.errors import DataError, DemeanorError, UsageError
from demeanor.core.files import origin
from demeanor.core.table import (
    NONE,
    WRITTEN,
    Bullets,
    Fold,
    OnlyFor,
    Paragraph,
    Section,
    StyledText,
    Table,
    interval,
    percent,
    plural,
    points,
    share,
)
from demeanor.core.types import Item
from demeanor.evaluation import judge_validation, statistics
from demeanor.evaluation.experiment import Experiment, at_once, named, suite
from demeanor.evaluation.external import external_models, probe
from demeanor.evaluation.items import JUDGED, READ, suite_hash
from demeanor.evaluation.judge import NO_JUDGE, JudgeClient, conversation, ensure, judge_client
from demeanor.evaluation.judge_validation import Position
from demeanor.evaluation.result import plain, save
from demeanor.evaluation.result_rows import Row
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.scorers import judged
from demeanor.evaluation.statistics import (
    Estimate,
    Floats,
    Labels,
    cluster_draws,
    expanded,
    mean,
    percentile,
)
from demeanor.stack.schema import JudgeSpec
from demeanor.stack.stack import Stack, decoding_of, digest

DRAWS = 500
RIDGE = 1e-3
"""Penalty that keeps separated data finite; in units of one preference."""
ELO = 400 / np.log(10)


class Wins(NamedTuple):
    """A raw and a length-controlled win rate, each with its 95% interval (None with one cluster), and the slope of the length term."""

    raw: float
    raw_low: float | None
    raw_high: float | None
    controlled: float
    low: float | None
    high: float | None
    slope: float
    n: int


def win_rate(
    preferences_N: Floats,
    lengths_N: Floats,
    other_lengths_N: Floats,
    clusters: Labels,
    *,
    seed: int,
    draws: int = DRAWS,
) -> Wins:
    """The win rate as it would be if both answers were equally long: sigma(b0) of P(win) = sigma(b0 + b1 tanh(dl / sd dl)).

    The interval refits the regression in every cluster resample. Source: Dubois et al. 2024 (2404.04475) without its per-item
    difficulty; AlpacaEval's own standard error ignores the coefficients' uncertainty.
    """
    y_N = np.asarray(preferences_N, dtype=float)
    longer_N = np.asarray(lengths_N, dtype=float) - np.asarray(other_lengths_N, dtype=float)
    spread = float(longer_N.std())
    x_N = np.tanh(longer_N / spread) if spread > 0 else np.zeros_like(longer_N)
    index_N, counts_RG = cluster_draws(clusters, draws=draws, seed=seed)
    b0, b1 = _logistic(x_N, y_N, np.ones_like(y_N))
    fits = np.array([_logistic(x_N, y_N, counts_G[index_N].astype(float)) for counts_G in counts_RG])
    weights_RN = counts_RG[:, index_N]
    few = counts_RG.shape[1]
    raw: tuple[float | None, float | None]
    controlled: tuple[float | None, float | None]
    if few < 2:
        return Wins(float(y_N.mean()), None, None, float(special.expit(b0)), None, None, b1, len(y_N))
    if (
        np.ptp(y_N) == 0
    ):  # every resample says the same, and the fit's penalty says the rest: that is no certainty
        whole = mean(y_N, clusters)
        raw = controlled = (whole.low, whole.high)
    else:
        raw = percentile(weights_RN @ y_N / weights_RN.sum(1), expanded(few))
        controlled = percentile(special.expit(fits[:, 0]), expanded(few))
    return Wins(float(y_N.mean()), *raw, float(special.expit(b0)), *controlled, b1, len(y_N))


def _logistic(x_N: Floats, y_N: Floats, weights_N: Floats) -> tuple[float, float]:
    """Weighted logistic regression on one feature by Newton's method."""
    design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    b_2 = np.zeros(2)
    for _ in range(50):
        p_N = special.expit(design_N2 @ b_2)
        gradient = design_N2.T @ (weights_N * (y_N - p_N)) - RIDGE * b_2
        hessian = (design_N2 * (weights_N * p_N * (1 - p_N))[:, None]).T @ design_N2 + RIDGE * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -4, 4)
        b_2 = b_2 + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(b_2[0]), float(b_2[1])


@dataclass(frozen=True, slots=True)
class Rating:
    """A Bradley-Terry strength in Elo points (mean of all variants 0) with its 95% interval.

    `open_ended` says where a variant won or lost all, so that only a penalty keeps its rating finite.
    """

    player: str
    rating: float
    low: float | None
    high: float | None
    games: int
    open_ended: str = ""


def ratings(
    first: Sequence[str],
    second: Sequence[str],
    preferences_N: Floats,
    clusters: Labels,
    *,
    seed: int,
    draws: int = DRAWS,
) -> list[Rating]:
    """Bradley-Terry by maximum likelihood, ties as half a win, best first; intervals resample clusters of duels.

    P(first wins) = sigma(s_first - s_second); points are s * 400 / ln 10. Source: Bradley & Terry 1952.
    """
    players = sorted({*first, *second})
    place = {name: i for i, name in enumerate(players)}
    a_N, b_N = np.array([place[x] for x in first]), np.array([place[x] for x in second])
    y_N = np.asarray(preferences_N, dtype=float)
    index_N, counts_RG = cluster_draws(clusters, draws=draws, seed=seed)
    best_P = _strengths(a_N, b_N, y_N, np.ones_like(y_N), len(players))
    draws_RP = np.array(
        [_strengths(a_N, b_N, y_N, counts_G[index_N].astype(float), len(players)) for counts_G in counts_RG]
    )
    games = np.bincount(np.concatenate([a_N, b_N]), minlength=len(players))
    found = [
        Rating(name, float(best_P[i]), low, high, int(games[i]))
        for name, i in place.items()
        for low, high in [_bounds(draws_RP[:, i], counts_RG.shape[1])]
    ]
    return sorted(found, key=lambda r: -r.rating)


def _bounds(values_R: Floats, clusters: int) -> tuple[float, float] | tuple[None, None]:
    """The percentiles of resamples, levels widened for few clusters; None with one cluster, and where no resample differs."""
    if clusters < 2 or np.ptp(values_R) < 1e-9:
        return None, None
    return percentile(values_R, expanded(clusters))


def _strengths(
    a_N: np.ndarray[tuple[int, ...], np.dtype[np.int_]],
    b_N: np.ndarray[tuple[int, ...], np.dtype[np.int_]],
    y_N: Floats,
    weights_N: Floats,
    players: int,
) -> Floats:
    wins_PP, lost_PP = np.zeros((players, players)), np.zeros((players, players))
    np.add.at(wins_PP, (a_N, b_N), weights_N * y_N)
    np.add.at(lost_PP, (a_N, b_N), weights_N * (1 - y_N))
    won_PP = wins_PP + lost_PP.T

    def loss(s_P: Floats) -> tuple[float, Floats]:
        gap_PP = s_P[:, None] - s_P[None, :]
        pull_PP = won_PP * special.expit(-gap_PP)
        nll = -float((won_PP * special.log_expit(gap_PP)).sum()) + RIDGE / 2 * float(s_P @ s_P)
        return nll, -(pull_PP.sum(1) - pull_PP.sum(0)) + RIDGE * s_P

    s_P = np.asarray(
        optimize.minimize(
            loss, np.zeros(players), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 1e-14}
        ).x
    )
    return np.asarray((s_P - s_P.mean()) * ELO, dtype=float)


SEED = 0
FEWEST_CLUSTERS = 8
"""Clusters below which resamples are so few and so alike that their interval would be far too narrow: none is given."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one item and which was found better: 1 the candidate's, 0 the other's, None no verdict.

    `as_given` has the other's answer first; `one_order`: only one order was asked, which the content decides.
    """

    item_id: str
    seed: int
    cluster: str
    other: str
    candidate: str
    characters: tuple[int, int]
    refused_by: tuple[str, str]
    equal: bool
    as_given: float | None = None
    swapped: float | None = None
    one_order: bool = False
    problem: str = ""

    @property
    def tied_unasked(self) -> bool:
        """A tie about which the judge is not asked: the texts are equal, or one of them is a refusal."""
        return self.equal or any(self.refused_by)

    @property
    def won(self) -> float | None:
        """1, 0, or 0.5 for a tie; None where an order has no verdict, since the other alone would favour a place."""
        if self.tied_unasked:
            return 0.5
        if self.as_given is None or (self.swapped is None and not self.one_order):
            return None
        return self.as_given if self.swapped is None else (self.as_given + self.swapped) / 2


@dataclass(frozen=True, slots=True)
class Matchup:
    """A pair of variants: what the candidate won of `n` duels, raw and at equal length, and what was left out of it."""

    candidate: str
    other: str
    n: int
    clusters: int
    judged: int
    left_out: int
    ties: int
    equal: int
    refused_candidate: int
    refused_other: int
    refused_both: int
    longer: float | None
    raw: Estimate | None
    controlled: float | None
    low: float | None
    high: float | None
    slope: float | None
    why_not: str
    position: Position | None


@dataclass(frozen=True, slots=True)
class DuelResult:
    """All that was found; `judge_validation` says how far the judge agrees with people, None where that was not measured."""

    name: str
    stack_key: str
    suite_hash: str
    suites: tuple[str, ...]
    items: int
    design: str
    judge: Mapping[str, Any]
    judge_validation: Mapping[str, Any] | None
    matchups: tuple[Matchup, ...]
    ratings: tuple[Rating, ...]
    position: Position | None
    positional: str
    unread: int
    missing: int
    cost: Mapping[str, int | float]
    made: Mapping[str, Any]
    each: tuple[Duel, ...]


def duel_result(
    each: Sequence[Duel],
    missing: int,
    pairs: Sequence[tuple[str, str]],
    order: Sequence[str],
    *,
    name: str,
    design: str,
    judge: JudgeClient,
    folder: Path,
    stack_key: str,
    suites: tuple[str, ...],
    suite: str,
    items: int,
) -> DuelResult:
    """Everything that the duels say; raises DemeanorError where the judge was asked and not one verdict could be read."""
    asked = [duel for duel in each if not duel.tied_unasked]
    if asked and all(duel.won is None for duel in asked):
        raise DemeanorError(
            f"evaluation.judge: not one of {len(asked)} comparisons has a verdict that can be read; run again to ask again "
            f"where the judge did not answer. The first: {asked[0].problem}"
        )
    if not each:
        raise DemeanorError(
            f"duel: none of {missing} pairs of answers is there, because answers failed; see the warnings above"
        )
    by = {pair: [duel for duel in each if (duel.other, duel.candidate) == pair] for pair in pairs}
    place = positions(each)
    unread = sum((duel.as_given is None) + (duel.swapped is None and not duel.one_order) for duel in asked)
    return DuelResult(
        name,
        stack_key,
        suite,
        suites,
        items,
        design,
        judge.judge.model_dump(mode="json", exclude={"key_env"}),
        validation_of(folder, name, judge.judge),
        tuple(matchup(*pair, found) for pair, found in by.items()),
        tuple(rated(each, order)),
        place,
        positional(place),
        unread,
        missing,
        judge.cost(),
        origin(),
        tuple(each),
    )


def matchup(other: str, candidate: str, found: Sequence[Duel]) -> Matchup:
    """One pair; a tie about which the judge was not asked counts as one between answers of equal length."""
    told = [duel for duel in found if duel.won is not None]
    judged = [duel for duel in told if not duel.tied_unasked]
    won_N, clusters = np.array([duel.won for duel in told], dtype=float), [duel.cluster for duel in told]
    lengths_N2 = np.array(
        [(0, 0) if duel.tied_unasked else duel.characters for duel in told], dtype=float
    ).reshape(-1, 2)
    longer_J = np.array([duel.characters[1] - duel.characters[0] for duel in judged], dtype=float)
    wins = None
    why, bounds = "nothing was judged", False
    if judged:
        wins = win_rate(won_N, lengths_N2[:, 1], lengths_N2[:, 0], clusters, seed=SEED)
        bounds = len(set(clusters)) >= FEWEST_CLUSTERS
        if why := undecided(longer_J, np.array([duel.won for duel in judged])):
            wins, bounds = wins._replace(controlled=0.5, low=0.0, high=1.0), True
    refused = [tuple(map(bool, duel.refused_by)) for duel in found if not duel.equal]
    return Matchup(
        candidate,
        other,
        len(told),
        len(set(clusters)),
        len(judged),
        len(found) - len(told),
        int((won_N == 0.5).sum()),
        sum(duel.equal for duel in found),
        refused.count((False, True)),
        refused.count((True, False)),
        refused.count((True, True)),
        float((longer_J > 0).mean()) if judged else None,
        statistics.mean(won_N, clusters) if told else None,
        wins and wins.controlled,
        wins.low if wins and bounds else None,
        wins.high if wins and bounds else None,
        wins and wins.slope,
        why,
        positions(found),
    )


def undecided(longer_J: statistics.Floats, won_J: statistics.Floats) -> str:
    """Why nothing is known of answers of equal length, so that any rate would come from the penalty of the fit; empty where it is."""
    if (longer_J == 0).any():
        return ""
    if (longer_J > 0).all() or (longer_J < 0).all():
        return f"its answers are always the {'longer' if longer_J[0] > 0 else 'shorter'} ones, so length and quality cannot be told apart"
    for longer, word in ((longer_J, "longer"), (-longer_J, "shorter")):
        if (won_J == (longer > 0)).all():
            return f"every verdict went to the {word} answer, so length explains all of them"
    return ""


def positions(found: Sequence[Duel]) -> Position | None:
    """What swapping the order did to the verdicts; None where no duel has both."""
    both = [duel for duel in found if duel.as_given is not None and duel.swapped is not None]
    if not both:
        return None
    forward_N, swapped_N = (
        np.array([1 - (d.as_given or 0) for d in both]),
        np.array([d.swapped or 0 for d in both]),
    )  # the first won
    return judge_validation.position(forward_N, swapped_N, [duel.cluster for duel in both])


def positional(place: Position | None) -> str:
    """A warning where the verdicts follow the place more often than the answers, or lean to one place; else empty."""
    if place is None:
        return ""
    which, share = max(("first", place.first.value), ("second", place.second.value), key=lambda x: x[1])
    if place.follows.low is not None and place.follows.low > 0.5:
        return f"positional: {place.follows.value:.0%} of its pairs of verdicts follow the place, mostly the {which}, and not the answers"
    if place.p < 0.05:
        p = "p < 0.001" if place.p < 0.001 else f"p {place.p:.3f}"
        return f"leans to the answer shown {which}: {share:.0%} of its pairs of verdicts ({p})"
    return ""


def rated(each: Sequence[Duel], order: Sequence[str]) -> list[Rating]:
    """Bradley-Terry over all duels with a result, best first; lengths are not controlled here."""
    told = [(duel, won) for duel in each if (won := duel.won) is not None]
    clusters = [duel.cluster for duel, _ in told]
    found = ratings(
        [duel.candidate for duel, _ in told],
        [duel.other for duel, _ in told],
        np.array([won for _, won in told]),
        clusters,
        seed=SEED,
    )
    points: dict[str, list[float]] = {name: [] for name in order}
    for duel, won in told:
        points[duel.candidate].append(won)
        points[duel.other].append(1 - won)
    if len(set(clusters)) < FEWEST_CLUSTERS:
        found = [replace(rating, low=None, high=None) for rating in found]
    return [replace(rating, open_ended=_open_ended(points[rating.player])) for rating in found]


def _open_ended(points: Sequence[float]) -> str:
    if min(points) == 1:
        return "won all"
    return "lost all" if max(points) == 0 else ""


def validation_of(folder: Path, name: str, judge: JudgeSpec) -> dict[str, Any] | None:
    """What `demeanor judge` measured of this server, model and longest verdict: NAME.judge.json first, then any other of the folder."""
    for path in (folder / f"{name}.judge.json", *sorted(folder.glob("*.judge.json"))):
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            who = tree["judge"]
            same = (who["url"].rstrip("/"), who["model"], who["max_tokens"]) == (
                judge.url.rstrip("/"),
                judge.model,
                judge.max_tokens,
            )
            if same and tree["accuracy"]:
                return {
                    "file": str(path),
                    "pairs_file": tree["pairs_file"],
                    "pairs": tree["pairs"],
                    "accuracy": tree["accuracy"],
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


MOST_OF_ALL_PAIRS = 4
"""Variants up to which every pair is compared; of more, each against the last step."""
CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Contestants:
    """What is compared: variants of the stack by model id, `--compare` servers with their keys, and the suites if not the stack's."""

    variants: Sequence[str] = ()
    compare: Sequence[str] = ()
    compare_keys: Sequence[str] = ()
    suites: Sequence[str] = ()
    limit: int | None = None


def run(
    stack: Stack, services: Services, folder: Path, given: Contestants, *, name: str | None = None
) -> DuelResult:
    """Answer, compare and write NAME.duel.json; raises DemeanorError before anything runs where no judge is set."""
    spec = stack.spec.evaluation.judge
    if spec is None:
        raise UsageError(NO_JUDGE.format(stack=stack.path))
    name = named(stack, name, given.limit)
    stack = with_suites(stack, given.suites) if given.suites else stack
    chosen = {s.model_id: s for s in ([stack.resolve(v) for v in given.variants] or stack.ladder())}
    external = external_models(given.compare, given.compare_keys, taken=chosen)
    order = [*(model.name for model in external), *chosen]
    pairs, design = paired(order)
    whole = suite(stack, given.limit)
    items = [item for item in whole if item.messages and item.scorer not in READ]
    if not items:
        raise DataError(
            f"{', '.join(stack.spec.evaluation.suites)}: no item of these suites is answered in words, so there is nothing to "
            "compare; name another with --suite"
        )
    judge = judge_client(spec, folder / f"{name}.verdicts.jsonl", services.connect)
    ensure(judge)
    for model in external:
        probe(model, decoding_of(stack), services.connect)
    with Experiment(stack, services, folder, name=name, items=items) as experiment:
        rows = experiment.measure(chosen.values(), external)
    each, missing = asyncio.run(compare(judge, items, rows, pairs))
    found = duel_result(
        each,
        missing,
        pairs,
        order,
        name=name,
        design=design,
        judge=judge,
        folder=folder,
        stack_key=stack.key(),
        suites=stack.spec.evaluation.suites,
        suite=suite_hash(whole),
        items=len(items),
    )
    print(judge.summary())
    tree = plain(found) | {"each": [plain(duel) | {"won": duel.won} for duel in found.each]}
    save(folder, name, "duel", tree)
    return found


def with_suites(stack: Stack, suites: Iterable[str]) -> Stack:
    """The stack measured on other suites; a file is looked for where the command was called."""
    names = tuple(
        name if ":" in name and not Path(name).exists() else str(Path(name).resolve()) for name in suites
    )
    evaluation = stack.spec.evaluation.model_copy(update={"suites": names})
    return replace(stack, spec=stack.spec.model_copy(update={"evaluation": evaluation}))


def paired(order: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Pairs (other, candidate), the later of `order` being the candidate, and how they were chosen in words."""
    if len(order) < 2:
        raise UsageError(
            f"duel: got {len(order)} variant ({', '.join(order)}), wanted two or more; name them with --variants"
        )
    if len(order) <= MOST_OF_ALL_PAIRS:
        return list(combinations(order, 2)), f"every pair of {len(order)} variants"
    last = order[-1]
    return (
        [(other, last) for other in order[:-1]],
        f"{len(order)} variants, more than {MOST_OF_ALL_PAIRS}, so the last one ({last}) against each of the others, not every pair",
    )


async def compare(
    judge: JudgeClient, items: Sequence[Item], rows: Sequence[Row], pairs: Sequence[tuple[str, str]]
) -> tuple[list[Duel], int]:
    """Every pair of answers to one item (and seed) as a Duel; and how many there are not because an answer failed."""
    answers = {(row.variant, row.item_id, row.seed): row for row in rows if not row.error}
    seeds = sorted({row.seed for row in rows})
    wanted = [
        (item, answers.get((other, item.id, seed)), answers.get((candidate, item.id, seed)))
        for other, candidate in pairs
        for item in items
        for seed in seeds
    ]
    there = [(item, a, b) for item, a, b in wanted if a and b]
    jobs = [duel(judge, item, a, b) for item, a, b in there]
    found = await at_once("comparing", jobs, CONCURRENCY, lambda: len(judge.failures))
    return found, len(wanted) - len(there)


async def duel(judge: JudgeClient, item: Item, other: Row, candidate: Row) -> Duel:
    """One comparison; a refused answer and equal texts are a tie about which the judge is not asked."""
    texts = other.text.strip(), candidate.text.strip()
    about = Duel(
        item.id,
        candidate.seed,
        item.cluster,
        other.variant,
        candidate.variant,
        (len(texts[0]), len(texts[1])),
        (other.refused_by, candidate.refused_by),
        texts[0] == texts[1],
    )
    if about.tied_unasked:
        return about
    request, one_order = asked(item), not judge.judge.both_orders
    swap_alone = bool(int(digest([request, texts[0]]), 16) % 2)
    chosen = await judge.better(request, texts, swap_alone=swap_alone)
    won = [None if answer is None else float(answer == 2) for answer in (chosen.as_given, chosen.swapped)]
    if one_order:
        return replace(about, as_given=won[swap_alone], one_order=True, problem=chosen.problem)
    return replace(about, as_given=won[0], swapped=won[1], problem=chosen.problem)


def asked(item: Item) -> str:
    """What was asked, as the judge reads it: the conversation of the item, and the user's later turns."""
    later = judged.Spec.model_validate(dict(item.target)).turns if item.scorer == JUDGED else ()
    turns = (f"user, later turn {n}: {text}" for n, text in enumerate(later, 2))
    return "\n\n".join([conversation(item.messages), *turns])


# ---- what a person reads ----

PAIRS = (
    "candidate",
    "against",
    "win rate",
    "at equal length",
    "longer in",
    "ties",
    "follows the place",
    "duels (clusters)",
    "left out",
)
RATINGS = ("variant", "rating", "interval", "duels", "")
UNASKED = ("", "equal texts", "refused by the candidate only", "by the other only", "by both")


def section(found: DuelResult) -> Section:
    """What the judge is worth, a row per pair, the ratings, and what to doubt."""
    shown = "both orders" if found.judge["both_orders"] else "one order"
    unasked = tuple(
        (
            f"{m.candidate} against {m.other}",
            *map(str, (m.equal, m.refused_candidate, m.refused_other, m.refused_both)),
        )
        for m in found.matchups
    )
    return Section(
        "duel",
        "Duels",
        "Which answer is better",
        (
            Paragraph(StyledText(f"{judge_worth(found)}.", strong=True)),
            Paragraph(
                f"{found.judge['model']} compared the answers to {plural(found.items, 'item')}: {found.design}. Each pair of answers is shown "
                f"in {shown}. Equal texts and refused answers are ties that the judge is not asked about; a tie is half a win."
            ),
            Table(PAIRS, tuple(_pair_row(m) for m in found.matchups), text=(0, 1)),
            Paragraph(
                "At equal length: the win rate as it would be if both answers were equally long, with an interval that refits it in every "
                "resample of clusters. Intervals are 95% intervals and not corrected for the number of pairs.",
                "note",
            ),
            Table(RATINGS, tuple(_rating_row(r) for r in found.ratings)),
            Paragraph(
                "Bradley-Terry ratings in Elo points, mean 0; length is not controlled in them.", "note"
            ),
            Bullets(tuple(f"{line}." for line in (*caveats(found), _cost(found)))),
            OnlyFor(WRITTEN, (Fold("Ties that the judge was not asked about", (Table(UNASKED, unasked),)),)),
        ),
    )


def judge_worth(found: DuelResult) -> str:
    """How far the judge agrees with people, or that this was not measured."""
    validated = found.judge_validation
    if validated is None:
        return "This judge has not been compared with people. To do that: demeanor judge validate STACK.yaml PAIRS"
    accuracy = validated["accuracy"]
    right = share(accuracy["value"], accuracy["low"], accuracy["high"], places=1)
    return (
        f"This judge agrees with people in {right} of its verdicts on {validated['pairs']} pairs of {validated['pairs_file']} "
        f"({validated['file']})"
    )


def caveats(found: DuelResult) -> list[str]:
    """What a reader must know before believing the rates."""
    told = []
    if found.positional:
        told.append(
            f"The judge {'is ' if found.positional.startswith('positional') else ''}{found.positional}"
        )
    if not found.judge["both_orders"]:
        told.append("Shown in one order only, so whether the judge follows the place is not known")
    for m in found.matchups:
        pair = f"{m.candidate} against {m.other}"
        if m.why_not:
            told.append(f"{pair}: nothing is known at equal length: {m.why_not}")
        if m.controlled is not None and m.low is None:
            told.append(
                f"{pair}: {plural(m.clusters, 'cluster')}, too few to resample: no interval at equal length"
            )
    left = sum(m.left_out for m in found.matchups)
    if left:
        told.append(
            f"{plural(left, 'duel')} left out: {plural(found.unread, 'verdict')} could not be read or did not come"
        )
    refused = sum(m.refused_candidate + m.refused_other for m in found.matchups)
    if refused:
        told.append(
            f"{plural(refused, 'tie')} where only one of the two refused: the scores say whether that was right, not the duels"
        )
    if found.missing:
        told.append(f"{plural(found.missing, 'pair')} of answers missing, because an answer failed")
    return told


def _cost(found: DuelResult) -> str:
    c = found.cost
    return (
        f"Verdicts: {c['verdicts']}, {c['from_cache']} of them from the cache; {c['verdicts'] - c['from_cache']} calls in this run, "
        f"{c['prompt_tokens']} + {c['completion_tokens']} tokens; {c['failed']} failed"
    )


def _pair_row(m: Matchup) -> tuple[str, ...]:
    return (
        m.candidate,
        m.other,
        share(*m.raw[:3], places=1) if m.raw else NONE,
        NONE if m.controlled is None else share(m.controlled, m.low, m.high, places=1),
        NONE if m.longer is None else f"{percent(m.longer)}%",
        str(m.ties),
        share(*m.position.follows[:3], places=1) if m.position else NONE,
        f"{m.n} ({m.clusters})",
        str(m.left_out),
    )


def _rating_row(r: Rating) -> tuple[str, ...]:
    bounds = NONE if r.low is None or r.high is None else interval(r.low / 100, r.high / 100)
    open_ended = f"{r.open_ended}: no finite rating" if r.open_ended else ""
    return r.player, points(r.rating / 100), bounds, str(r.games), open_ended
