"""Duels of variants: the stack's judge compares two answers to the same item, in both orders, and the verdicts become win rates.

In: a Stack with `evaluation.judge`, which variants, other servers. Out: results/NAME.duel.json, and a section in NAME.html where `eval`
wrote NAME.json. Rows go to NAME.rows.jsonl and verdicts to NAME.verdicts.jsonl; neither is made twice. The numbers are in standings.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demeanor.build import measure, rubrics, standings, verdicts
from demeanor.build.beside import peers, probe
from demeanor.build.house import House, decoding_of
from demeanor.build.standings import Duel, Duels
from demeanor.build.verdicts import Court
from demeanor.errors import DataError, DemeanorError, UsageError
from demeanor.evaluation.asking import READ
from demeanor.evaluation.row import Row
from demeanor.evaluation.run import JUDGED
from demeanor.evaluation.suite import suite_hash
from demeanor.scorers import judged
from demeanor.stack import Stack, digest
from demeanor.train.lineage import Runs
from demeanor.types import Item, Respond

MOST_OF_ALL_PAIRS = 4
"""Variants up to which every pair is compared; of more, each against the last rung."""
CONCURRENCY = 16
NO_JUDGE = (
    "{stack}: evaluation.judge: got null, wanted the server and model that compares the answers, such as "
    "--set evaluation.judge='{{url: http://127.0.0.1:8000/v1, model: NAME}}'"
)


@dataclass(frozen=True, slots=True)
class Field:
    """Who duels: variants of the stack by model id, `--beside` servers with their keys, and the suites if not the stack's."""

    variants: Sequence[str] = ()
    beside: Sequence[str] = ()
    beside_keys: Sequence[str] = ()
    suites: Sequence[str] = ()
    limit: int | None = None


def run(
    stack: Stack,
    runs: Runs,
    folder: Path,
    given: Field,
    *,
    name: str | None,
    house: House | None = None,
    respond: Respond | None = None,
) -> tuple[Duels, Court]:
    """Answer, compare and write the duels; raises DemeanorError before anything runs where no judge is set.

    `house` serves the stack and `respond` is the judge (default: new ones); the house is closed at the end.
    """
    judge = stack.spec.evaluation.judge
    if judge is None:
        raise DemeanorError(NO_JUDGE.format(stack=stack.path))
    name = measure.named(stack, name, given.limit)
    stack = with_suites(stack, given.suites) if given.suites else stack
    chosen = {s.model_id: s for s in ([stack.resolve(v) for v in given.variants] or stack.ladder())}
    others = peers(given.beside, given.beside_keys, taken=chosen)
    order = [*(peer.name for peer in others), *chosen]
    pairs, design = paired(order)
    items = [item for item in measure.suite(stack, given.limit) if item.messages and item.scorer not in READ]
    if not items:
        raise DataError(
            f"{', '.join(stack.spec.evaluation.suites)}: no item of these suites is answered in words, so there is nothing to "
            "compare; name another with --suite"
        )
    court = verdicts.court(judge, folder / f"{name}.verdicts.jsonl", respond)
    for peer in others:
        probe(peer, decoding_of(stack))
    house = house or House(stack, runs, memory={}, operational=False)
    try:
        rows, _ = asyncio.run(measure.rows_of(house, chosen, items, folder / f"{name}.rows.jsonl", others))
    finally:
        house.close()
    each, missing = asyncio.run(compare(court, items, rows, pairs))
    found = standings.standings(
        each,
        missing,
        pairs,
        order,
        name=name,
        design=design,
        court=court,
        folder=folder,
        stack_key=stack.key(),
        suites=stack.spec.evaluation.suites,
        suite=suite_hash(measure.suite(stack, given.limit)),
        items=len(items),
    )
    measure.write(folder / f"{name}.duel.json", found.to_json() + "\n")
    return found, court


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
    court: Court, items: Sequence[Item], rows: Sequence[Row], pairs: Sequence[tuple[str, str]]
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
    free = asyncio.Semaphore(CONCURRENCY)
    columns = (
        TextColumn("comparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[about]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(there), about="")

        async def one(item: Item, a: Row, b: Row) -> Duel:
            async with free:
                found = await duel(court, item, a, b)
            bar.update(task, advance=1, about=f"{len(court.failures)} failed" if court.failures else "")
            return found

        return await asyncio.gather(*(one(*x) for x in there)), len(wanted) - len(there)


async def duel(court: Court, item: Item, other: Row, candidate: Row) -> Duel:
    """One comparison; a refused answer and equal texts are a tie that nobody is asked about."""
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
    told: list[float | None] = []
    problem = ""
    request = asked(item)
    for swap in _orders(court, request, texts[0]):
        try:
            words = await court.ask(rubrics.comparison(request, *(texts[::-1] if swap else texts)))
        except DemeanorError as error:
            court.failures.append(str(error))
            problem = str(error)
            told.append(None)
            continue
        place = rubrics.last_line(words, "better")
        told.append(
            None if place is None else float((place == "1") == swap)
        )  # swapped, the candidate stands first
        problem = problem if place else f"no verdict in: {words[-200:]}"
    if court.judge.both_orders:
        return replace(about, as_given=told[0], swapped=told[1], problem=problem)
    return replace(about, as_given=told[0], one_order=True, problem=problem)


def _orders(court: Court, request: str, text: str) -> tuple[bool, ...]:
    """Both orders; or the one that the content decides, so that neither variant has a place of its own."""
    return (False, True) if court.judge.both_orders else (bool(int(digest([request, text]), 16) % 2),)


def asked(item: Item) -> str:
    """What was asked, as the judge reads it: the conversation of the item, and the user's later turns."""
    talk = (
        [m.content for m in item.messages]
        if len(item.messages) == 1
        else [f"{m.role}: {m.content}" for m in item.messages]
    )
    later = judged.Spec.model_validate(dict(item.target)).turns if item.scorer == JUDGED else ()
    return "\n\n".join([*talk, *(f"user, later turn {n}: {text}" for n, text in enumerate(later, 2))])


def on_page(folder: Path, found: Duels) -> bool:
    """Write NAME.html again if NAME.json was measured on the same suite; says why not."""
    path = folder / f"{found.name}.json"
    if path.is_file() and measure.read(path).suite_hash != found.suite_hash:
        print(
            f"page: {found.name}.html is about another suite, so the duels are not on it; choose a --name of their own to keep both"
        )
        return False
    measure.refresh(folder, found.name)
    return path.is_file()
