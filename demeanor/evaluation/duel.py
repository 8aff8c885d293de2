"""Duels: a judge compares the answers of two variants.

In: a stack with a judge. Out: a `DuelResult` with every comparison, and its section of the report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from demeanor.core.errors import DataError, UsageError
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
from demeanor.evaluation.experiment import Experiment, at_once, named, suite
from demeanor.evaluation.external import external_models, probe
from demeanor.evaluation.items import JUDGED, READ, suite_hash
from demeanor.evaluation.judge import NO_JUDGE, JudgeClient, conversation, ensure, judge_client
from demeanor.evaluation.matchups import Duel, DuelResult, Matchup, duel_result
from demeanor.evaluation.result import plain, save
from demeanor.evaluation.result_rows import Row
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.scorers import judged
from demeanor.evaluation.win_rates import Rating
from demeanor.stack.stack import Stack, decoding_of, digest

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
