"""How far a judge may be believed: pairs of answers that people compared, shown to it in both orders.

In: a Court, a file of pairs (LLMBar's, or prompt, chosen, rejected). Out: a Trust: accuracy against people, what the order changes, every
verdict. The court keeps each verdict, so a killed run goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demeanor.build import rubrics
from demeanor.build.verdicts import Court
from demeanor.data import rows
from demeanor.data.files import Bad, raw_rows
from demeanor.errors import DataError, DemeanorError
from demeanor.evaluation import agreement
from demeanor.evaluation.agreement import Agreement, Position
from demeanor.evaluation.statistics import Estimate
from demeanor.stack import digest
from demeanor.train.lineage import origin
from demeanor.types import Messages, Preference

LLMBAR = frozenset(("input", "output_1", "output_2", "label"))
CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request, of which people found number `better` (1 or 2) better; `where` it stands in its file."""

    where: str
    request: str
    answers: tuple[str, str]
    better: int


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge chose of a pair, the answer's own number whatever its place: as given, swapped; None where it gave no verdict."""

    where: str
    better: int
    as_given: int | None
    swapped: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
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
    each: tuple[Judged, ...]

    def to_json(self) -> str:
        """As one tree; the named tuples of the statistics become mappings."""
        tree = {key: getattr(self, key) for key in self.__slots__}
        return json.dumps(
            tree
            | {
                "accuracy": _tree(self.accuracy),
                "kappa": _tree(self.kappa),
                "position": _tree(self.position),
                "each": [asdict(one) for one in self.each],
            },
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )


def pairs(path: Path, limit: int | None = None) -> list[Pair]:
    """The first `limit` pairs of a .json or .jsonl file; raises DataError with every row that is none."""
    found: list[Pair] = []
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


def measure(court: Court, given: Sequence[Pair], name: str, path: Path) -> Trust:
    """Ask the judge about every pair and compare it with people and with itself; raises DemeanorError if not one verdict could be read."""
    each = asyncio.run(_all(court, given))
    if all(one.as_given is None and one.swapped is None for one in each):
        raise DemeanorError(
            f"evaluation.judge: no verdict on {len(each)} pairs could be read; the first: {each[0].problem}"
        )
    groups = [digest(pair.request) for pair in given]  # pairs about one request are not independent
    accuracy, kappa = against_people(each, groups)
    place = when_swapped(each, groups)
    judge = court.judge.model_dump(mode="json", exclude={"key_env"})
    asked = len(each) * (1 + court.judge.both_orders)
    read = sum(x is not None for one in each for x in (one.as_given, one.swapped))
    return Trust(
        name,
        judge,
        str(path),
        digest([asdict(pair) for pair in given]),
        len(given),
        read,
        asked - read,
        accuracy,
        kappa,
        place,
        court.cost(),
        origin(),
        tuple(each),
    )


def against_people(each: Sequence[Judged], groups: Sequence[str]) -> tuple[Estimate, Agreement]:
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
    return agreement.accuracy(judge_N, people_N, names), agreement.fleiss(
        np.stack([judge_N, people_N], axis=1), names
    )


def when_swapped(each: Sequence[Judged], groups: Sequence[str]) -> Position | None:
    """What swapping the order does to the verdicts; None where no pair has both."""
    both = [(one, group) for one, group in zip(each, groups, strict=True) if one.as_given and one.swapped]
    if not both:
        return None
    forward_N, swapped_N = (
        np.array([float(x) for x in firsts])
        for firsts in ([one.as_given == 1 for one, _ in both], [one.swapped == 2 for one, _ in both])
    )  # swapped, answer 2 stands first
    return agreement.position(forward_N, swapped_N, [group for _, group in both])


async def _all(court: Court, given: Sequence[Pair]) -> list[Judged]:
    columns = (
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[about]}"),
    )
    free = asyncio.Semaphore(CONCURRENCY)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(given), about="")

        async def one(pair: Pair) -> Judged:
            async with free:
                found = await _judged(court, pair)
            bar.update(task, advance=1, about=f"{len(court.failures)} failed" if court.failures else "")
            return found

        return await asyncio.gather(*(one(pair) for pair in given))


async def _judged(court: Court, pair: Pair) -> Judged:
    """A pair in both orders; or in the one that its content decides, so that the better answer has no place of its own."""
    chosen: dict[int, int | None] = {1: None, 2: None}
    problem = ""
    for first in (
        (1, 2) if court.judge.both_orders else (1 + int(digest(pair.request + pair.answers[0]), 16) % 2,)
    ):
        shown = pair.answers if first == 1 else pair.answers[::-1]
        try:
            words = await court.ask(rubrics.comparison(pair.request, *shown))
        except DemeanorError as error:
            court.failures.append(str(error))
            problem = str(error)
            continue
        place = rubrics.last_line(words, "better")
        chosen[first] = None if place is None else first if place == "1" else 3 - first
        problem = problem if place else f"no verdict in: {words[-200:]}"
    return Judged(pair.where, pair.better, chosen[1], chosen[2], problem)


def _llmbar(raw: Mapping[str, Any], where: str) -> Pair:
    request, first, second, label = (raw[name] for name in ("input", "output_1", "output_2", "label"))
    if not all(isinstance(text, str) for text in (request, first, second)) or label not in (1, 2):
        raise ValueError(f"wanted input, output_1 and output_2 as text and label 1 or 2; got label {label!r}")
    return Pair(where, request, (first, second), label)


def _preference(raw: Mapping[str, Any], where: str) -> Pair:
    """The better one comes first or second as its content decides."""
    found = rows.parse(raw, "preferences", where)
    if not isinstance(found, Preference) or len(found.completions) != 2:
        raise ValueError("wanted two completions of one prompt")
    best, worst = (
        _text(c) for _, c in sorted(zip(found.ranks, found.completions, strict=True), key=lambda x: x[0])
    )
    swap = bool(int(digest([best, worst]), 16) % 2)
    return Pair(where, _text(found.prompt), (worst, best) if swap else (best, worst), 2 if swap else 1)


def _text(messages: Messages) -> str:
    return (
        messages[0].content if len(messages) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in messages)
    )


def _tree(value: Any) -> Any:
    """Named tuples as mappings, inside too."""
    return {k: _tree(v) for k, v in value._asdict().items()} if hasattr(value, "_asdict") else value
