"""May this version ship? Declared rules over paired differences: pass, fail, or inconclusive with the n that would decide.

In: rules, items, rows of a candidate and a baseline. Out: a Judgement. A pass needs every rule shown (each at the full
confidence: an intersection-union test); a failure is claimed at 1 - alpha/rules, so that two equal versions fail together in at
most alpha of runs however many rules there are. Nothing is "probably fine": what cannot be shown either way is inconclusive.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from demeanor.app import StackRuntime
from demeanor.core.errors import DataError, Problem, SpecError, unknown
from demeanor.core.registry import Spec
from demeanor.core.types import Item, Verdict
from demeanor.evaluation import design, measure, statistics
from demeanor.evaluation import judge as verdicts
from demeanor.evaluation.diagnosis import cases
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.rows import Row, read_rows
from demeanor.evaluation.scorers import score_item as rule
from demeanor.evaluation.table import SAME, PairedTable
from demeanor.stack import validate
from demeanor.stack.stack import Stack
from demeanor.train.runs import Runs, origin

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Kind: TypeAlias = Literal["superiority", "non_inferiority", "zero_tolerance", "stability"]


class Superiority(Spec):
    """The candidate must be better on `axis` by more than `by` (a share)."""

    axis: str
    by: float = Field(0.0, ge=0, lt=1)


class NonInferiority(Spec):
    """The candidate may lose less than `margin` (a share) on `axis`; `*` stands for every axis not named otherwise."""

    axis: str
    margin: Share


class ZeroTolerance(Spec):
    """No failure among the items of `axis` and/or `items`, and so many of them that the failure rate is shown to be below `below`."""

    axis: str | None = None
    items: tuple[str, ...] = ()
    below: Share


class Stability(Spec):
    """The share of rewordings (tag `same:NAME`) on `axis` whose answers are not all alike must be shown to be below `flip_rate`."""

    axis: str
    flip_rate: Share


class Rules(Spec):
    """gate.yaml."""

    superiority: tuple[Superiority, ...] = ()
    non_inferiority: tuple[NonInferiority, ...] = ()
    zero_tolerance: tuple[ZeroTolerance, ...] = ()
    stability: tuple[Stability, ...] = ()
    confidence: float = Field(0.95, ge=0.5, lt=1)

    @model_validator(mode="after")
    def _something(self) -> Rules:
        if not (self.superiority or self.non_inferiority or self.zero_tolerance or self.stability):
            raise ValueError(
                "a gate without a rule lets everything pass; give superiority, non_inferiority, zero_tolerance or stability"
            )
        if any(not z.axis and not z.items for z in self.zero_tolerance):
            raise ValueError("zero_tolerance: a rule needs an axis or a list of items")
        return self


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule came to: the measured value, the bounds that decide, the limit, and the clusters that would decide."""

    kind: Kind
    what: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    limit: float
    n: int
    clusters: int
    needed: int | None
    items: tuple[str, ...] = ()
    """Items at fault: failures of a zero-tolerance rule, broken items of a comparison, flipped rewordings."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict and every finding behind it."""

    verdict: Verdict
    findings: tuple[Finding, ...]


def decide(
    rules: Rules, items: Sequence[Item], rows: Sequence[Row], *, candidate: str, baseline: str
) -> GateReport:
    """Apply the rules to two variants measured on the same items; raises SpecError for axes and items the suite has not."""
    cells = PairedTable(rows, items)
    non_inferiority = _spread(rules, cells)
    known(rules, cells.items.values())
    total = len(rules.superiority) + len(non_inferiority) + len(rules.zero_tolerance) + len(rules.stability)
    alpha = 1 - rules.confidence
    denial = 1 - alpha / total
    findings = [
        _compared(
            cells, "superiority", s.axis, s.by, candidate, baseline, 1 - alpha / 2, 1 - alpha / 2 / total
        )
        for s in rules.superiority
    ]
    findings += [
        _compared(cells, "non_inferiority", axis, -margin, candidate, baseline, rules.confidence, denial)
        for axis, margin in non_inferiority.items()
    ]
    findings += [_clean(cells, z, candidate, rules.confidence) for z in rules.zero_tolerance]
    findings += [_stable(cells, s, candidate, rules.confidence, denial) for s in rules.stability]
    verdicts = {f.verdict for f in findings}
    worst = next(v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in verdicts)
    return GateReport(worst, tuple(findings))


def _spread(rules: Rules, cells: PairedTable) -> dict[str, float]:
    """The margin of every guarded axis, `*` spelled out."""
    named = {n.axis: n.margin for n in rules.non_inferiority if n.axis != "*"}
    others = {s.axis for s in rules.superiority} | {z.axis for z in rules.zero_tolerance if z.axis}
    rest = next((n.margin for n in rules.non_inferiority if n.axis == "*"), None)
    return (
        named
        if rest is None
        else {axis: named.get(axis, rest) for axis in cells.axes if axis in named or axis not in others}
    )


def known(rules: Rules, items: Iterable[Item], where: str = "gate rules") -> None:
    """Nothing if the rules name axes and items that are there; raises SpecError with every name that is not."""
    held = list(items)
    axes, ids = {item.axis for item in held}, {item.id for item in held}
    named = [
        (f"{kind}[{n}].axis", rule.axis)
        for kind in ("superiority", "non_inferiority", "zero_tolerance", "stability")
        for n, rule in enumerate(getattr(rules, kind))
        if rule.axis and rule.axis != "*"
    ]
    problems = [
        Problem(f"{where}: {place}", unknown(axis, axes, noun="axis"))
        for place, axis in named
        if axis not in axes
    ]
    problems += [
        Problem(f"{where}: zero_tolerance[{n}].items", f"'{item}' is not an item of the suite")
        for n, rule in enumerate(rules.zero_tolerance)
        for item in rule.items
        if item not in ids
    ]
    if problems:
        raise SpecError(problems)


def _compared(
    cells: PairedTable,
    kind: Kind,
    axis: str,
    bound: float,
    candidate: str,
    baseline: str,
    confidence: float,
    denial: float,
) -> Finding:
    a_N, b_N = cells.values_N(baseline, axis), cells.values_N(candidate, axis)
    both = ~(np.isnan(a_N) | np.isnan(b_N))
    if not both.any():
        return Finding(kind, axis, Verdict.INCONCLUSIVE, None, None, None, bound, 0, 0, None)
    found = statistics.paired(a_N[both], b_N[both], cells.clusters_N(axis)[both])
    shown = design.above(found, bound, confidence, denial)
    verdict = {"yes": Verdict.PASS, "no": Verdict.FAIL, "undecided": Verdict.INCONCLUSIVE}[shown.claim]
    if verdict is Verdict.PASS and not both.all():
        verdict = Verdict.INCONCLUSIVE  # an item that could not be scored might be the one that broke
    broken = tuple(item.id for item, a, b in zip(cells.axes[axis], a_N, b_N) if a >= 0.5 > b)
    return Finding(
        kind,
        axis,
        verdict,
        found.value,
        shown.low,
        shown.high,
        bound,
        found.n,
        found.clusters,
        shown.needed,
        broken,
    )


def _clean(cells: PairedTable, rule: ZeroTolerance, candidate: str, confidence: float) -> Finding:
    """Failures by cluster: items of one source are one trial, which is cautious."""
    chosen = [item for item in cells.items.values() if item.axis == rule.axis or item.id in rule.items]
    rows = cells.of(candidate)
    values = {item.id: [row.value for row in rows.get(item.id, ())] for item in chosen}
    failed = tuple(i for i, v in values.items() if any(x is not None and x < 0.5 for x in v))
    unscored = sum(not v or None in v for v in values.values())
    clusters = {item.cluster for item in chosen}
    bad = {cells.items[i].cluster for i in failed}
    upper = design.upper_bound(len(bad), len(clusters), confidence)
    verdict = (
        Verdict.FAIL
        if failed
        else Verdict.PASS
        if upper <= rule.below and not unscored
        else Verdict.INCONCLUSIVE
    )
    needed = design.clean_trials_needed(rule.below, confidence) if verdict is Verdict.INCONCLUSIVE else None
    what = " and ".join(x for x in (rule.axis, f"{len(rule.items)} items" if rule.items else None) if x)
    return Finding(
        "zero_tolerance",
        what,
        verdict,
        len(failed) / len(chosen),
        None,
        upper,
        rule.below,
        len(chosen),
        len(clusters),
        needed,
        failed,
    )


def _stable(cells: PairedTable, rule: Stability, candidate: str, confidence: float, denial: float) -> Finding:
    """Flip rate over groups of rewordings, exact bounds; raises DataError if the axis has none."""
    groups: dict[str, list[str]] = {}
    for item in cells.axes[rule.axis]:
        for tag in item.tags:
            if tag.startswith(SAME):
                groups.setdefault(tag, []).append(item.id)
    groups = {tag: ids for tag, ids in groups.items() if len(ids) > 1}
    if not groups:
        raise DataError(
            f"gate rules: stability on '{rule.axis}': no two of its items share a tag `{SAME}NAME`: nothing is reworded"
        )
    rows = cells.of(candidate)
    values = {tag: {row.value for i in ids for row in rows.get(i, ())} for tag, ids in groups.items()}
    flipped = [tag for tag, seen in values.items() if len(seen - {None}) > 1]
    n, k = len(groups), len(flipped)
    low, high = 1 - design.upper_bound(n - k, n, denial), design.upper_bound(k, n, confidence)
    scored = all(None not in seen and seen for seen in values.values())
    verdict = (
        Verdict.FAIL
        if low > rule.flip_rate
        else Verdict.PASS
        if high <= rule.flip_rate and scored
        else Verdict.INCONCLUSIVE
    )
    return Finding(
        "stability",
        rule.axis,
        verdict,
        k / n,
        low,
        high,
        rule.flip_rate,
        n,
        n,
        _groups_needed(k / n, rule.flip_rate, confidence) if verdict is Verdict.INCONCLUSIVE else None,
        tuple(flipped),
    )


def _groups_needed(rate: float, limit: float, confidence: float) -> int | None:
    """Rewordings that would show a rate like the measured one to lie below the limit; None if it does not."""
    if rate >= limit:
        return None
    for n in range(1, 5001):
        if design.upper_bound(round(rate * n), n, confidence) <= limit:
            return n
    return None


KEY = "DEMEANOR_GATE_KEY"
BASELINE = "baseline"


def read_rules(path: Path) -> Rules:
    """Read gate.yaml; raises SpecError with every mistake in it."""
    rules, problems = validate.parse(Rules, validate.read_yaml(path), str(path))
    if rules is None:
        raise SpecError(problems)
    return rules


def run(
    stack: Stack, runs: Runs, folder: Path, *, against: str, rules: Path, limit: int | None, name: str | None
) -> tuple[GateReport, Path]:
    """Judge the whole stack against a baseline and write the record; returns the judgement and where the record lies."""
    declared, name, items = read_rules(rules), measure.named(stack, name, limit), measure.suite(stack, limit)
    known(declared, items, str(rules))
    candidate = stack.resolve(stack.spec.name)
    variants = {candidate.model_id: candidate}
    old: list[Row] = []
    if against.endswith(".json"):
        old, baseline_key = _earlier(Path(against), items)
    else:
        other = stack.resolve(against)
        variants[other.model_id], baseline_key = other, other.key()
    if baseline_key == candidate.key():
        print(
            f"note: {against} and {candidate.model_id} are one stack ({baseline_key}), so nothing can differ but luck of decoding"
        )
    house = StackRuntime(stack, runs, memory={}, operational=False)
    try:
        rows, _ = asyncio.run(measure.rows_of(house, variants, items, folder / f"{name}.rows.jsonl"))
    finally:
        house.close()
    old = (
        asyncio.run(_scored(stack, old, items, folder / f"{name}.rows.jsonl"))
        if old
        else [r for r in rows if r.variant == against]
    )
    new = [row for row in rows if row.variant == candidate.model_id]
    judgement = decide(
        declared,
        items,
        [*new, *(replace(row, variant=BASELINE) for row in old)],
        candidate=candidate.model_id,
        baseline=BASELINE,
    )
    record = {
        "verdict": judgement.verdict.name.lower(),
        "candidate": candidate.model_id,
        "against": against,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hashes": {
            "candidate": candidate.key(),
            "candidate weights": stack.stage_key(candidate.serve),
            "baseline": baseline_key,
            "suite": suite_hash(items),
            "rules": hashlib.sha256(rules.read_bytes()).hexdigest(),
            "stack file": hashlib.sha256(stack.path.read_bytes()).hexdigest(),
            "answers": _answers(new),
            "baseline answers": _answers(old),
        },
        "rules": declared.model_dump(mode="json"),
        "origin": origin(),
        "findings": [{**asdict(f), "verdict": f.verdict.name.lower()} for f in judgement.findings],
    }
    path = folder / f"{name}.gate.json"
    measure.write(
        path,
        json.dumps(signed(record, os.environ.get(KEY)), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    return judgement, path


def _earlier(path: Path, items: Sequence[Item]) -> tuple[list[Row], str]:
    """Rows and stack key of the last rung of an earlier result; raises DataError if it answered other items."""
    result, suite, ids = measure.read(path), suite_hash(items), {item.id for item in items}
    if result.suite_hash != suite:
        raise DataError(
            f"{path}: measured on suite {result.suite_hash}, this stack's is {suite}: nothing to pair. "
            "Measure the baseline on these items (same suites and --limit), or name a model id of this stack"
        )
    last = result.steps[-1].after if result.steps else result.variants[-1].id
    key = next(v.stack_key for v in result.variants if v.id == last)
    file = path.with_name(f"{path.stem}.rows.jsonl")
    rows = [
        row for row in read_rows(file) if row.stack_key == key and row.item_id in ids
    ]  # may hold more items
    if not rows:
        raise DataError(
            f"{file}: no answers of {last} ({key}); the gate compares item by item and needs the rows beside {path.name}"
        )
    return rows, key


async def _scored(stack: Stack, rows: Sequence[Row], items: Sequence[Item], out: Path) -> list[Row]:
    """Earlier rows with what this stack's judge says of judged items: two judges' verdicts are no pair."""
    court = verdicts.of_suite(stack, items, out)
    return await cases.scored_anew(rows, items, court.score if court else rule)


def _answers(rows: list[Row]) -> str:
    """SHA-256 over what was answered and how it was scored."""
    text = json.dumps(
        sorted((row.item_id, row.seed, row.text, row.value is None, row.value or 0.0) for row in rows),
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def signed(record: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """The record with its signature; unsigned (null) without a key."""
    return {**record, "signature": _mac(record, key) if key else None}


def verify(path: Path, key: str | None) -> Verdict:
    """The verdict of a record whose signature holds; raises DataError if it was changed, is unsigned, or there is no key."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdict, signature = Verdict[record["verdict"].upper()], record.pop("signature")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; wanted results/NAME.gate.json, as `demeanor gate` wrote it"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a gate's record ({type(error).__name__}); wanted results/NAME.gate.json"
        ) from error
    if not key or not isinstance(signature, str):
        raise DataError(f"{path}: cannot be verified: {'it is not signed' if key else f'{KEY} is not set'}")
    if not hmac.compare_digest(signature, _mac(record, key)):
        raise DataError(
            f"{path}: the signature does not hold: the record was changed, or signed with another {KEY}"
        )
    return verdict


def _mac(record: Mapping[str, Any], key: str) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
