"""The release gate: declared rules over paired differences decide pass, fail, or inconclusive with the n that would decide.

In: rules, and a stack with a baseline, or items and rows of both. Out: a GateReport, written as a signed record. A pass needs every rule shown (each at the full
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.errors import DataError, Problem, SpecError, unknown
from demeanor.core.files import origin
from demeanor.core.registry import Spec
from demeanor.core.table import (
    NONE,
    PAGE,
    Block,
    Facts,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    StyledText,
    Table,
    Tone,
    axis_name,
    first_of,
    listed,
    number,
    plural,
)
from demeanor.core.types import Item, Verdict
from demeanor.evaluation import statistics
from demeanor.evaluation.experiment import Experiment
from demeanor.evaluation.items import suite_hash
from demeanor.evaluation.result import FORMAT, load, plain, save
from demeanor.evaluation.result_rows import SAME, PairedTable, Row, read_rows
from demeanor.evaluation.runtime import Services
from demeanor.stack import validate
from demeanor.stack.stack import Stack

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
    """Items at fault: failures of a zero-tolerance rule, regressed items of a comparison, flipped rewordings."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict and every finding behind it; nothing passes while answers failed."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    failed: int = 0


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
    failed = sum(bool(row.error) for row in rows)
    if failed and worst is Verdict.PASS:
        worst = Verdict.INCONCLUSIVE
    return GateReport(worst, tuple(findings), failed)


def _spread(rules: Rules, cells: PairedTable) -> dict[str, float]:
    """The margin of every guarded axis, `*` spelled out."""
    margins = {n.axis: n.margin for n in rules.non_inferiority}
    rest = margins.pop("*", None)
    if rest is None:
        return margins
    others = {s.axis for s in rules.superiority} | {z.axis for z in rules.zero_tolerance if z.axis}
    return {axis: margins.get(axis, rest) for axis in cells.axes if axis in margins or axis not in others}


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
    shown = statistics.above(found, bound, confidence, denial)
    # a pass needs every item scored: one that could not be might be the one that regressed
    verdict = _verdict(fails=shown.claim == "no", passes=shown.claim == "yes" and bool(both.all()))
    regressed = tuple(item.id for item, a, b in zip(cells.axes[axis], a_N, b_N) if a >= 0.5 > b)
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
        regressed,
    )


def _verdict(*, fails: bool, passes: bool) -> Verdict:
    if fails:
        return Verdict.FAIL
    return Verdict.PASS if passes else Verdict.INCONCLUSIVE


def _clean(cells: PairedTable, rule: ZeroTolerance, candidate: str, confidence: float) -> Finding:
    """Failures by cluster: items of one source are one trial, which is cautious."""
    chosen = [item for item in cells.items.values() if item.axis == rule.axis or item.id in rule.items]
    rows = cells.of(candidate)
    values = {item.id: [row.value for row in rows.get(item.id, ())] for item in chosen}
    failed = tuple(i for i, v in values.items() if any(x is not None and x < 0.5 for x in v))
    unscored = sum(not v or None in v for v in values.values())
    clusters = {item.cluster for item in chosen}
    bad = {cells.items[i].cluster for i in failed}
    upper = statistics.upper_bound(len(bad), len(clusters), confidence)
    verdict = _verdict(fails=bool(failed), passes=upper <= rule.below and not unscored)
    needed = (
        statistics.clean_trials_needed(rule.below, confidence) if verdict is Verdict.INCONCLUSIVE else None
    )
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
    clusters = [cells.items[ids[0]].cluster for ids in groups.values()]
    trials = statistics.independent_trials(clusters)
    fewest, most = k * trials // n, -(-k * trials // n)
    low = 1 - statistics.upper_bound(trials - fewest, trials, denial)
    high = statistics.upper_bound(most, trials, confidence)
    scored = all(None not in seen and seen for seen in values.values())
    verdict = _verdict(fails=low > rule.flip_rate, passes=high <= rule.flip_rate and scored)
    return Finding(
        "stability",
        rule.axis,
        verdict,
        k / n,
        low,
        high,
        rule.flip_rate,
        n,
        len(set(clusters)),
        _groups_needed(k / n, rule.flip_rate, confidence) if verdict is Verdict.INCONCLUSIVE else None,
        tuple(flipped),
    )


def _groups_needed(rate: float, limit: float, confidence: float) -> int | None:
    """Rewordings that would show a rate like the measured one to lie below the limit; None if it does not."""
    if rate >= limit:
        return None
    for n in range(1, 5001):
        if statistics.upper_bound(round(rate * n), n, confidence) <= limit:
            return n
    return None


KEY = "DEMEANOR_GATE_KEY"
BASELINE = "baseline"


def read_rules(path: Path) -> Rules:
    """Read gate.yaml; raises SpecError with every mistake in it."""
    rules, problems = registry.parse(Rules, validate.read_yaml(path), str(path))
    if rules is None:
        raise SpecError(problems)
    return rules


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    *,
    against: str,
    rules: Path,
    limit: int | None = None,
    name: str | None = None,
) -> tuple[GateReport, Path]:
    """Compare the whole stack with a baseline and write NAME.gate.json; returns the report and where the record lies.

    `against` is a model id of the stack, or the file of an earlier result.
    """
    declared, candidate = read_rules(rules), stack.resolve(stack.spec.name)
    with Experiment(stack, services, folder, name=name, limit=limit) as experiment:
        items = experiment.items
        known(declared, items, str(rules))
        variants, earlier = [candidate], list[Row]()
        if against.endswith(".json"):
            earlier, baseline_key = _earlier(Path(against), items)
        else:
            variants.append(stack.resolve(against))
            baseline_key = variants[-1].key()
        if baseline_key == candidate.key():
            print(
                f"note: {against} and {candidate.model_id} are one stack ({baseline_key}), so nothing can differ but luck of decoding"
            )
        rows = experiment.measure(variants)
        new = [row for row in rows if row.variant == candidate.model_id]
        old = [row for row in rows if row.variant == variants[-1].model_id]
        if earlier:
            old = asyncio.run(experiment.scored_anew(earlier))
    report = decide(
        declared,
        items,
        [*new, *(replace(row, variant=BASELINE) for row in old)],
        candidate=candidate.model_id,
        baseline=BASELINE,
    )
    record = {
        "format": FORMAT,
        "verdict": report.verdict.name.lower(),
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
        "failed": report.failed,
        "findings": plain(report.findings),
    }
    return report, save(folder, experiment.name, "gate", signed(record, os.environ.get(KEY)))


def _earlier(path: Path, items: Sequence[Item]) -> tuple[list[Row], str]:
    """Rows and stack key of the last step of an earlier result; raises DataError if it answered other items."""
    result, suite, ids = load(path), suite_hash(items), {item.id for item in items}
    if result.suite_hash != suite:
        raise DataError(
            f"{path}: measured on suite {result.suite_hash}, this stack's is {suite}: nothing to pair. "
            "Measure the baseline on these items (same suites and --limit), or name a model id of this stack"
        )
    last = result.steps[-1].after if result.steps else result.variants[-1].id
    key = next(v.stack_key for v in result.variants if v.id == last)
    file = path.with_name(f"{path.stem}.rows.jsonl")  # may hold more items
    rows = [row for row in read_rows(file) if row.stack_key == key and row.item_id in ids]
    if not rows:
        raise DataError(
            f"{file}: no answers of {last} ({key}); the gate compares item by item and needs the rows beside {path.name}"
        )
    return rows, key


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


# ---- what a person reads ----

TONES: dict[Verdict, Tone] = {Verdict.PASS: "up", Verdict.FAIL: "down", Verdict.INCONCLUSIVE: ""}
DECISIONS = {
    Verdict.PASS: "Ship",
    Verdict.FAIL: "Do not ship",
    Verdict.INCONCLUSIVE: "Not enough data to ship",
}
ITEMS = 12


@dataclass(frozen=True, slots=True)
class GateRecord:
    """A gate's decision as NAME.gate.json holds it: what was compared, every finding, and the hashes of all of it."""

    candidate: str
    against: str
    hashes: dict[str, str]
    report: GateReport
    is_signed: bool


def read_record(tree: Mapping[str, Any]) -> GateRecord:
    """The record from its JSON."""
    findings = [
        Finding(**{**f, "verdict": Verdict[f["verdict"].upper()], "items": tuple(f["items"])})
        for f in tree["findings"]
    ]
    report = GateReport(Verdict[tree["verdict"].upper()], tuple(findings), tree.get("failed", 0))
    return GateRecord(tree["candidate"], tree["against"], tree["hashes"], report, bool(tree.get("signature")))


def section(record: GateRecord) -> Section:
    """The decision, a row per rule, the items at fault, and what was hashed."""
    report = record.report
    decision, why = DECISIONS[report.verdict], reason(report)
    hashes: tuple[tuple[str, Inline], ...] = tuple(record.hashes.items())
    return Section(
        "gate",
        "Gate",
        "May it ship",
        (
            Paragraph(
                (
                    StyledText(f"{decision}.", strong=True),
                    f" {why} ({record.candidate} against {record.against})",
                )
            ),
            Paragraph(
                "Compared item by item. A pass needs every rule shown at its full confidence; a failure "
                "is claimed only beyond what chance does to equal versions; what neither shows is inconclusive, with the number of clusters "
                "that would decide it.",
                "lead",
            ),
            findings_table(report.findings),
            *at_fault(report),
            OnlyFor(
                PAGE,
                (
                    Fold(
                        f"The record: hashes of everything, {'signed' if record.is_signed else 'not signed'}",
                        (Facts(hashes),),
                    ),
                ),
            ),
        ),
        verdict=(TONES[report.verdict], f"{decision}: {record.candidate} against {record.against}.", why),
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per rule: what was measured, the bounds that decide, the limit and the verdict."""
    rows: list[tuple[Inline, ...]] = []
    for f in findings:
        ends = ["" if x is None else number(100 * x, 1) for x in (f.low, f.high)]
        bounds = " to ".join(ends).strip() if any(ends) else ""
        more = f" ({f.needed} clusters would decide)" if f.needed else ""
        rows.append(
            (
                f.kind.replace("_", " "),
                axis_name(f.what),
                NONE if f.value is None else number(100 * f.value, 1),
                bounds,
                number(100 * f.limit, 1),
                str(f.clusters),
                StyledText(f.verdict.name.lower() + more, "tag", TONES[f.verdict]),
            )
        )
    return Table(
        ("rule", "on", "measured", "bounds", "limit", "clusters", "verdict"), tuple(rows), text=(0, 1)
    )


def brief(report: GateReport) -> list[Block]:
    """Only the rules that are not shown to hold, and the decision."""
    open_rules = [f for f in report.findings if f.verdict is not Verdict.PASS]
    held = f"{len(report.findings) - len(open_rules)} of {len(report.findings)} rules hold"
    decision = StyledText(f"{DECISIONS[report.verdict]} ({held}).", strong=True)
    return [findings_table(open_rules), *at_fault(report), Paragraph(decision)]


def at_fault(report: GateReport) -> list[Paragraph]:
    """The items at fault of every rule that is not shown to hold."""
    return [
        Paragraph(
            f"At fault, {f.kind.replace('_', ' ')} on {axis_name(f.what)}: {first_of(f.items, ITEMS)}.",
            "note",
        )
        for f in report.findings
        if f.items and f.verdict is not Verdict.PASS
    ]


def reason(report: GateReport) -> str:
    """Which rules failed, or which could not be decided and what would decide them."""
    total = len(report.findings)
    failed, undecided = (
        [f for f in report.findings if f.verdict is verdict]
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    )
    if report.failed and not failed and not undecided:
        return f"All {total} rules hold of what was answered, but {plural(report.failed, 'answer')} failed: run again."
    if failed:
        return f"{plural(len(failed), 'rule')} of {total} shown not to hold: {_told(failed)}."
    if undecided:
        return f"{total - len(undecided)} of {total} rules hold; not decided: {_told(undecided)}."
    return f"All {total} rules are shown to hold."


MOST_TOLD = 4  # rules in the sentence of a verdict; the table has all


def _told(findings: Sequence[Finding]) -> str:
    told = [_finding_text(f) for f in findings[:MOST_TOLD]]
    more = len(findings) - len(told)
    return listed([*told, f"{more} more in the table"] if more else told)


def _finding_text(f: Finding) -> str:
    value = "not measured" if f.value is None else number(100 * f.value, 1)
    needed = f", {f.needed} clusters like these would decide" if f.needed else ""
    return f"{f.kind.replace('_', ' ')} on {axis_name(f.what)} ({value}, limit {number(100 * f.limit, 1)}{needed})"
