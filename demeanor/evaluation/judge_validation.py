"""Judge validation: how far the verdicts of a judge agree with people and with themselves when the order of answers is swapped.

In: pairs of answers with people's preferences; or verdicts_N (1: the answer shown first won) and clusters. Out: a `JudgeValidation`:
accuracy, Fleiss' kappa, position bias.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from demeanor.core.errors import DataError, DemeanorError, UsageError
from demeanor.core.files import origin
from demeanor.core.table import NONE, Paragraph, Section, Table, estimate, p_value, plural, share
from demeanor.core.types import Messages, Preference
from demeanor.data import rows
from demeanor.data.readers import Bad, raw_rows
from demeanor.evaluation.agreement import Agreement, fleiss
from demeanor.evaluation.experiment import at_once, named
from demeanor.evaluation.judge import NO_JUDGE, JudgeClient, ensure, judge_client
from demeanor.evaluation.result import save
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import (
    Estimate,
    Floats,
    Labels,
    mcnemar_exact,
    mean,
)
from demeanor.stack.schema import JudgeSpec
from demeanor.stack.stack import Stack, digest


class Position(NamedTuple):
    """What happens to a verdict when the order is swapped: the answer wins again (`consistent`), or the place does (`first`, `second`)."""

    consistent: Estimate
    follows: Estimate
    first: Estimate
    second: Estimate
    p: float
    """Exact sign test: among verdicts that follow the place, first and second are equally likely."""


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
    characters: tuple[int, int] = (0, 0)


class LengthBias(NamedTuple):
    """A judge's taste for length, over verdicts on pairs of unequal length: how often the longer answer won, how often people found it
    better, and how often the judge was right where they did and where they did not."""

    judge: Estimate
    people: Estimate
    right_if_longer: Estimate | None
    right_if_shorter: Estimate | None


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
    length: LengthBias | None = None


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
    ensure(judge)
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
        length_bias(each, groups),
    )


def length_bias(each: Sequence[ValidatedPair], groups: Sequence[str]) -> LengthBias | None:
    """What length does to the verdicts; None where no pair of unequal length has one."""
    told = [
        (chosen == longer, one.better == longer, chosen == one.better, group)
        for one, group in zip(each, groups, strict=True)
        if one.characters[0] != one.characters[1]
        for longer in (1 if one.characters[0] > one.characters[1] else 2,)
        for chosen in (one.as_given, one.swapped)
        if chosen is not None
    ]
    if not told:
        return None

    def shares(column: int, among: Sequence[tuple[bool, bool, bool, str]]) -> Estimate | None:
        return mean(np.array([float(t[column]) for t in among]), [t[3] for t in among]) if among else None

    judge, people = shares(0, told), shares(1, told)
    assert judge is not None
    assert people is not None
    by_people = [shares(2, [t for t in told if t[1] == longer]) for longer in (True, False)]
    return LengthBias(judge, people, by_people[0], by_people[1])


def unusable(found: Mapping[str, Any], least: float = 0.5) -> str:
    """Why a judge's labels may not be used, from its measured accuracy (of a JudgeValidation, or its JSON); empty if they may."""
    measured = found.get("accuracy")
    if not measured:
        return "its accuracy was not measured"
    value, low = (
        (measured[0], measured[1])
        if isinstance(measured, list | tuple)
        else (measured["value"], measured["low"])
    )
    if low is None or low <= least:
        shown = "one cluster, no interval" if low is None else f"lower bound {100 * low:.1f}%"
        return f"its accuracy is {100 * value:.1f}% ({shown}); wanted a lower bound above {100 * least:g}%"
    return ""


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
    sizes = len(pair.answers[0]), len(pair.answers[1])
    return ValidatedPair(pair.where, pair.better, chosen.as_given, chosen.swapped, chosen.problem, sizes)


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
    if found.length:
        shares += [
            ("prefers the longer answer", found.length.judge),
            ("  people do", found.length.people),
            ("  right where the longer one is better", found.length.right_if_longer),
            ("  right where the shorter one is better", found.length.right_if_shorter),
        ]
    measured = [(name, share(*value[:3], places=1) if value else NONE) for name, value in shares]
    if "usd" in found.cost and found.verdicts:
        new = max(1, int(found.cost["verdicts"]) - int(found.cost["from_cache"]))
        rows.append(("USD for 1,000 verdicts", f"{1000 * found.cost['usd'] / new:.3f}"))
    why_not = unusable({"accuracy": found.accuracy})
    rows.append(("its labels may be used", f"no: {why_not}" if why_not else "yes"))
    about = (
        f"{found.judge['model']} at {found.judge['url']}: {plural(found.pairs, 'pair')}, {plural(found.verdicts, 'verdict')}, "
        f"{found.unread} without a verdict."
    )
    table = Table(("", "measured (95% interval)"), (*measured, *rows))
    return Section("judge", "Judge", "How far the judge agrees with people", (Paragraph(about), table))
