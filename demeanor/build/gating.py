"""The gate over a stack: measure candidate and baseline on the same items, judge by the rules, and leave a record.

In: a Stack, gate.yaml, and a baseline: a model id of the stack, or a result that `eval` wrote. Out: results/NAME.gate.json with all
hashes, signed (HMAC-SHA256 of its canonical JSON) where DEMEANOR_GATE_KEY is set.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demeanor import check
from demeanor.build import cases, measure, verdicts
from demeanor.build.house import House
from demeanor.build.house import judge as rule
from demeanor.errors import DataError, SpecError
from demeanor.evaluation.gate import Judgement, Rules, judge, known
from demeanor.evaluation.row import Row, read_rows
from demeanor.evaluation.suite import suite_hash
from demeanor.stack import Stack
from demeanor.train.lineage import Runs, origin
from demeanor.types import Item, Verdict

KEY = "DEMEANOR_GATE_KEY"
BASELINE = "baseline"


def read_rules(path: Path) -> Rules:
    """Read gate.yaml; raises SpecError with every mistake in it."""
    rules, problems = check.parse(Rules, check.read_yaml(path), str(path))
    if rules is None:
        raise SpecError(problems)
    return rules


def run(
    stack: Stack, runs: Runs, folder: Path, *, against: str, rules: Path, limit: int | None, name: str | None
) -> tuple[Judgement, Path]:
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
    house = House(stack, runs, memory={}, operational=False)
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
    judgement = judge(
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
